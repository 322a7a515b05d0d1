"""Lists of images of a VOC folder: names may hold spaces, and only a column of flags is none of the name."""

from pathlib import Path

import pytest
from own_folders import write_voc_folder

from dyn_d2.data.validity.voc import image_ids

from detectron2.data.datasets import load_voc_instances


@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        ("000001  1\n000002 -1\n000003\t0\n", ["000001", "000002", "000003"]),
        ("train image 5\n  a dog \n", ["train image 5", "a dog"]),
        ("train image 5 -1\na dog   1\n", ["train image 5", "a dog"]),
        ("train image 1\ntrain image 2\n", ["train image 1", "train image 2"]),
        ("train image 0\ntrain image 1\n", ["train image 0", "train image 1"]),
        ("1\n0\n", ["1", "0"]),
        ("", []),
    ],
)
def test_names_of_a_list(tmp_path: Path, lines: str, ids: list[str]) -> None:
    path = tmp_path / "all.txt"
    path.write_text(lines)
    assert image_ids(path) == ids


@pytest.mark.embedded  # Detectron2's own splits each line at its spaces
def test_another_image_is_never_read_for_one_with_spaces(tmp_path: Path) -> None:
    root = write_voc_folder(tmp_path / "voc", images=2)
    for old, new in (("001", "train"), ("002", "train image 5")):
        for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
            (root / folder / f"{old}{suffix}").rename(root / folder / f"{new}{suffix}")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("train image 5\n")
    records = load_voc_instances(str(root), "trainval", ("red", "green", "blue", "yellow"))
    assert [(r["image_id"], Path(r["file_name"]).name) for r in records] == [("train image 5", "train image 5.jpg")]
