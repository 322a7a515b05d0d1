"""The journeys of docs/own_data.md: each section's yaml is written and its commands run as they stand, on a folder as a
labelling tool leaves it; options that shrink the model are appended."""

import re
import shlex
from pathlib import Path

import pytest
from own_folders import (
    write_class_folders,
    write_json_folder,
    write_label_folder,
    write_labelme_folder,
    write_voc_folder,
    write_yolo_folder,
)
from PIL import Image
from tool_runs import ROOT, environment
from warm_processes import run_warm

PAGE = (ROOT / "docs" / "own_data.md").read_text()
FEW = ["SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
FEW += ["SOLVER.REFERENCE_BATCH", "2"]
DETECTOR = [*FEW, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.FPN.OUT_CHANNELS", "16"]
DETECTOR += ["MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
JOURNEYS = {  # section -> (folder, what makes it, options of trainings, what is left)
    "Boxes: a few-shot detector": ("my_json", write_json_folder, DETECTOR, "pictures/photo.png"),
    "A VOC folder: a detector": ("my_voc", write_voc_folder, DETECTOR, "output/voc_again/results.json"),
    "A YOLO folder: a detector": ("my_yolo", write_yolo_folder, DETECTOR, "pictures/photo.png"),
    "Label maps with a concept tree": (
        "my_labels", write_label_folder, [*FEW, "INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", "64"],
        "pictures/photo.png",
    ),
    "One folder a class": (
        "my_images", write_class_folders, [*FEW, "TEST.EVAL_PERIOD", "2", "INPUT.CLASSIFICATION.RECIPE", "''"],
        "output/images_again/results.json",
    ),
    "Other formats": ("my_labelme", write_labelme_folder, [], "my_labelme_test.json"),
}  # fmt: skip


def section(title: str) -> str:
    return next(part for part in PAGE.split("\n## ") if part.startswith(f"{title}\n"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def test_every_section_with_commands_is_a_journey():
    titles = {part.partition("\n")[0] for part in PAGE.split("\n## ") if blocks(part, "bash")}
    assert titles == set(JOURNEYS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("title", JOURNEYS)
def test_journey(title: str, tmp_path: Path) -> None:
    name, write, options, left = JOURNEYS[title]
    write(tmp_path / name)
    Image.effect_noise((90, 60), 90).convert("RGB").save(tmp_path / "photo.jpg")
    for text in blocks(section(title), "yaml"):
        (tmp_path / re.match(r"# (\S+\.yaml)\n", text)[1]).write_text(text)
    env = {**environment(), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for command in "".join(blocks(section(title), "bash")).splitlines():
        words = shlex.split(command)
        assert words[0] == "dyn-d2"
        small = options if words[1] in ("train", "few-shot") else []
        if words[1] == "few-shot":
            small = [*small, "FEW_SHOT.NOVEL.MAX_ITER", "2", "FEW_SHOT.FINETUNE.MAX_ITER", "2"]
        run = run_warm(["-m", "dyn_d2", *words[1:], *small], tmp_path, env, 590)
        assert run.returncode == 0, f"{command}\n{run.stdout[-1500:]}\n{run.stderr[-1500:]}"
    assert (tmp_path / left).stat().st_size > 100
