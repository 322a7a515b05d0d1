"""Bad masks end dyn-d2 train with one message that names image and annotation; so does an even window."""

import json

import pytest
from tiny_detection import tiny_opts, write_boxes
from tool_runs import train_net_here

KEYS = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_HEADS.NAME": "ShapePropROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME": "PartialMaskHead",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    "MODEL.SHAPE_PROP.CONV_DIM": 8,
    "FEW_SHOT.STAGE": "joint",
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"segmentation": {"counts": [10, 10, 80], "size": [10, 10]}}, r"of size \[10, 10\] in an image of 64 x 48"),
        ({"segmentation": [[1, 1, 300, 1, 300, 30]]}, r"to \(300, 30\), outside the image of 64 x 48"),
        ({"segmentation": None, "has_mask": True}, "it says has_mask but has no segmentation"),
    ],
    ids=["other size", "outside", "flag without mask"],
)
def test_wrong_mask(tmp_path, monkeypatch, wrong, message) -> None:
    path = write_boxes(tmp_path / "data")
    content = json.loads(path.read_text())
    content["annotations"][1].update(wrong)
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as caught:
        train_net_here(monkeypatch, *tiny_opts(path, tmp_path / "out", **KEYS))
    (line,) = str(caught.value.code).splitlines()
    assert line.startswith("train_net.py: ")
    assert caught.match(rf"001\.png, annotation 2: .*{message}")


def test_even_window(tmp_path, monkeypatch) -> None:
    keys = {**KEYS, "MODEL.SHAPE_PROP.WINDOW": 4}
    with pytest.raises(SystemExit, match="MODEL.SHAPE_PROP.WINDOW is 4: use 1, 3, 5"):
        train_net_here(monkeypatch, *tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", **keys))


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"MODEL.ROI_MASK_HEAD.NAME": "WeightTransferMaskHead", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False},
        {"INPUT.PARTIAL_MASKS.PSEUDO": "grabcut"},
    ],
    ids=["mask_x", "grabcut"],
)
def test_baselines_train(tmp_path, monkeypatch, keys) -> None:
    keys = {**KEYS, "MODEL.ROI_HEADS.NAME": "DynROIHeads", "INPUT.PARTIAL_MASKS.CLASSES": ["red", "blue"], **keys}
    keys |= {"INPUT.PARTIAL_MASKS.CACHE": tmp_path / "cache", "SOLVER.MAX_ITER": 1, "SOLVER.STEPS": "()"}
    train_net_here(monkeypatch, *tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", **keys))
    (row,) = map(json.loads, (tmp_path / "out" / "metrics.json").read_text().splitlines()[:1])
    assert 0 < row["loss_mask"] < 10
