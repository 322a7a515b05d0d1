"""dyn-d2 shapes: four panels an image, from a checkpoint alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detection import CLASSES, tiny_opts, write_boxes

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.config.derive import build_cfg
from dyn_d2.methods.shapeprop.cli import shapes
from dyn_d2.methods.shapeprop.figures import PANELS, draw_shapes

from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

SHAPE_PROP = {
    "MODEL__MASK_ON": True,
    "MODEL__ROI_HEADS__NAME": "ShapePropROIHeads",
    "MODEL__ROI_MASK_HEAD__NAME": "PartialMaskHead",
    "MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": True,
    "MODEL__ROI_MASK_HEAD__NUM_CONV": 1,
    "MODEL__ROI_MASK_HEAD__CONV_DIM": 8,
    "MODEL__SHAPE_PROP__NUM_CONV": 1,
    "MODEL__SHAPE_PROP__CONV_DIM": 8,
    "MODEL__SHAPE_PROP__LATENT_CHANNELS": 2,
    "INPUT__PARTIAL_MASKS__CLASSES": ["red"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """model_final.pth of a small ShapeProp that has not learnt anything, plain.pth of one without, and images."""
    folder = tmp_path_factory.mktemp("shapes")
    data = write_boxes(folder / "data", 3)
    for name, more in (("model_final", SHAPE_PROP), ("plain", {})):
        cfg = build_cfg("", tiny_opts(data, folder, FEW_SHOT__STAGE="joint", **more))
        torch.manual_seed(0)
        model = build_model(cfg)
        DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save(name)
    register_coco_instances("shapes_to_draw", {}, str(data), str(folder / "data" / "images"))
    return folder


def test_pictures_of_files_and_of_a_data_set(folder, capsys) -> None:
    main = shapes.main
    arguments = [
        "--weights",
        str(folder / "model_final.pth"),
        "--output",
        str(folder / "pictures"),
        "--threshold",
        "0.9999",
    ]
    assert main([*arguments, str(folder / "data" / "images" / "002.png"), "--top", "2"]) == 0
    assert main([*arguments, "--dataset", "shapes_to_draw", "--count", "2"]) == 0
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["001.png", "002.png", "003.png"]
    assert "001.png: nothing reaches 0.9999; the best 3 are shown" in capsys.readouterr().out
    with Image.open(folder / "pictures" / "001.png") as picture:  # of 64 x 48
        assert picture.width > 4 * picture.height


def test_panels_show_what_they_say() -> None:
    """One box with bright saliency on its left and a shape on its right half; the image is black."""
    found = Instances((40, 40), pred_boxes=Boxes(torch.tensor([[10.0, 10.0, 30.0, 30.0]])), scores=torch.tensor([0.9]))
    found.pred_classes = torch.tensor([1])
    found.pred_saliency, found.pred_shape = torch.zeros(2, 1, 1, 14, 14)
    found.pred_saliency[..., :7], found.pred_shape[..., :7], found.pred_shape[..., 7:] = 3.0, -20.0, 20.0
    found.pred_masks = torch.ones(1, 40, 40, dtype=torch.bool)
    figure = draw_shapes(np.zeros((40, 40, 3), np.uint8), found, CLASSES, without_masks=["green"])
    assert [axis.get_title() for axis in figure.axes[1:]] == list(PANELS[1:])
    assert "class without masks" in figure.axes[0].get_title() and figure.axes[0].texts[0].get_text() == "green* 0.90"
    saliency, shape = (np.asarray(axis.images[1].get_array()) for axis in figure.axes[1:3])
    assert saliency[20, 14] > 250 and saliency[20, 26] < 10 and shape[20, 14] < 10 and shape[20, 26] > 250
    assert not saliency[:, :9].any() and figure.axes[3].images[0].get_array().any()


def test_nothing_found_gives_a_picture() -> None:
    nothing = Instances((30, 40), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    nothing.pred_classes = torch.zeros(0, dtype=torch.long)
    nothing.pred_saliency = nothing.pred_shape = torch.zeros(0, 1, 14, 14)
    nothing.pred_masks = torch.zeros(0, 30, 40, dtype=torch.bool)
    assert len(draw_shapes(np.zeros((30, 40, 3), np.uint8), nothing, CLASSES).axes) == 4


def test_wrong_use_is_told(folder, capsys) -> None:
    main = shapes.main
    image = str(folder / "data" / "images" / "001.png")
    with pytest.raises(ValueError, match="no pred_masks and pred_saliency and pred_shape: a model with ShapeProp"):
        main(["--weights", str(folder / "plain.pth"), image])
    for arguments in ([], [image, "--dataset", "shapes_to_draw"]):
        with pytest.raises(SystemExit):
            main(["--weights", "x.pth", *arguments])
    assert "either image files or --dataset" in capsys.readouterr().err
