"""dyn-d2 show-data: a picture of each data set, with what its records say drawn in it."""

import numpy as np
import pytest
from own_folders import write_class_folders, write_json_folder, write_label_folder
from PIL import Image
from tiny_detection import tiny_opts

from dyn_d2.cli.show_data import main
from dyn_d2.evaluation.data_figures import draw_records

from detectron2.data import MetadataCatalog


def keys(**values) -> list[str]:
    return [part for key, value in values.items() for part in (f"DATASETS.CUSTOM.{key}", str(value))]


def drawn(folder, *opts: str, images: int = 4) -> dict[str, np.ndarray]:
    assert main(["--output", str(folder), "--images", str(images), *opts]) == 0
    return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in folder.glob("*.png")}


def test_boxes_and_masks_of_ones_own_json(tmp_path, capsys):
    write_json_folder(tmp_path / "data")
    paths = {"TRAIN": "instances.json", "TRAIN_IMAGES": "images"}
    pictures = drawn(tmp_path / "out", *keys(FORMAT="coco", ROOT=tmp_path / "data", **paths))
    assert set(pictures) == {"custom_train"} and pictures["custom_train"].shape[1] > 800
    assert "8 images, 24 objects, 4 drawn" in capsys.readouterr().out


def test_training_sets_have_the_masks_of_training(tmp_path, capsys, monkeypatch):
    paths = {"TRAIN": "instances.json", "TRAIN_IMAGES": "images", "TEST": "instances.json", "TEST_IMAGES": "images"}
    write_json_folder(tmp_path / "data")
    opts = keys(FORMAT="coco", ROOT=tmp_path / "data", **paths)
    given = {}

    def draw(records, metadata, columns, title):
        given[title.partition(":")[0]] = {
            a["category_id"] for r in records for a in r["annotations"] if "segmentation" in a
        }
        return draw_records(records, metadata, columns, title)

    monkeypatch.setattr("dyn_d2.cli.show_data.draw_records", draw)
    drawn(tmp_path / "out", *opts, "INPUT.PARTIAL_MASKS.CLASSES", "['red']", "MODEL.MASK_ON", "True", images=8)
    assert given["custom_train"] == {0} and len(given["custom_test"]) == 4
    drawn_sets = [line for line in capsys.readouterr().out.splitlines() if ".png: 8 images" in line]
    assert (
        len(drawn_sets) == 2 and [line for line in drawn_sets if "of 24 objects have masks" in line] == drawn_sets[:1]
    )


def test_shots_have_a_row_a_class(tmp_path, capsys):
    data = write_json_folder(tmp_path / "data")
    opts = tiny_opts(data, tmp_path / "run", FEW_SHOT__SHOTS=2)
    pictures = drawn(tmp_path / "out", *opts)
    shots = "custom_split1_finetune_gfsod_2shot_seed0_train"
    assert set(pictures) >= {"custom_split1_base_train", shots}
    height, width, _ = pictures[shots].shape
    assert height > 1.7 * width  # two columns, four classes
    assert "8 images, 8 objects, 8 drawn" in capsys.readouterr().out


def test_label_maps_and_classes(tmp_path):
    folder = write_label_folder(tmp_path / "labels")
    paths = {"TRAIN": "labels", "TRAIN_IMAGES": "images", "TREE": folder / "tree.yaml"}
    drawn(tmp_path / "out", *keys(NAME="maps", FORMAT="semantic", ROOT=folder, **paths))
    metadata = MetadataCatalog.get("maps_train")
    record = {"file_name": str(folder / "images" / "001.png"), "sem_seg_file_name": str(folder / "labels" / "001.png")}
    (axis, *_), (legend,) = (figure := draw_records([record], metadata)).axes, figure.legends
    shown, labels = axis.images[0].get_array(), np.asarray(Image.open(record["sem_seg_file_name"]))
    image = np.asarray(Image.open(record["file_name"])) / 255
    np.testing.assert_allclose(shown[labels == 255], image[labels == 255])  # what is ignored stays as it is
    assert abs(shown[labels == 1] - image[labels == 1]).mean() > 0.05
    present = [metadata.stuff_classes[i] for i in np.unique(labels) if i != 255]
    assert [text.get_text() for text in legend.get_texts()] == present
    write_class_folders(tmp_path / "classes")
    pictures = drawn(tmp_path / "out2", *keys(FORMAT="folders", ROOT=tmp_path / "classes", TRAIN="train", TEST="test"))
    assert set(pictures) == {"custom_train", "custom_test"}


def test_what_is_not_registered_is_told(tmp_path):
    with pytest.raises(
        ValueError, match="coco_2017_vall, not registered. Did you mean coco_2017_val.*are registered: "
    ):
        main(["--dataset", "coco_2017_vall", "--output", str(tmp_path)])
