"""Drawing: what was asked for is visible, and only where it should be."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.colormap import colormap, random_color
from detectron2.utils.visualizer import ColorMode, GenericMask, Visualizer

H, W = 60, 80


@pytest.fixture
def metadata():
    return Metadata(
        name="h1",
        thing_classes=["a", "b"],
        thing_colors=[(255, 0, 0), (0, 0, 255)],
        stuff_classes=["sky", "sea"],
        stuff_colors=[(0, 255, 0), (255, 0, 0)],
    )


def grey_image():
    return np.full((H, W, 3), 128, np.uint8)


def changed(image):
    return (np.abs(image.astype(int) - 128) > 3).any(axis=2)


def ring():
    y, x = np.mgrid[:H, :W]
    distance = (y - 30) ** 2 + (x - 30) ** 2
    return (distance < 20**2) & (distance > 8**2)


def predictions(masks=None, boxes=((10, 10, 50, 50),), classes=(0,)):
    result = Instances((H, W))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    result.scores = torch.full((len(classes),), 0.9)
    if masks is not None:
        result.pred_masks = masks
    return result


def test_nothing_drawn_is_the_image_itself():
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    assert np.array_equal(Visualizer(image).get_output().get_image(), image)
    assert Visualizer(image, scale=2.0).get_output().get_image().shape == (2 * H, 2 * W, 3)


def test_a_box_changes_its_outline_only():
    drawn = changed(Visualizer(grey_image()).draw_box((20, 15, 60, 45)).get_image())
    assert drawn[15, 25:55].all() and drawn[20:40, 60].all()
    assert not drawn[20:40, 26:54].any() and not drawn[:10].any()


def test_holes_of_a_mask_stay_clear():
    drawn = changed(Visualizer(grey_image()).draw_binary_mask(ring(), color="r", alpha=0.5).get_image())
    assert drawn[30, 15:20].all() and not drawn[27:33, 27:33].any() and not drawn[:, 55:].any()
    dot = np.zeros((H, W), bool)
    dot[20:24, 20:24] = True
    assert changed(Visualizer(grey_image()).draw_binary_mask(dot, area_threshold=5).get_image()).any()
    assert not changed(Visualizer(grey_image()).draw_binary_mask(dot, area_threshold=50).get_image()).any()


@pytest.mark.parametrize("mode", list(ColorMode))
def test_predictions_in_all_modes(metadata, mode):
    masks = torch.from_numpy(ring())[None]
    image = Visualizer(grey_image(), metadata, instance_mode=mode).draw_instance_predictions(predictions(masks))
    assert changed(image.get_image())[40:45, 30].any()
    empty = predictions(masks[:0], boxes=(), classes=())
    assert not changed(
        Visualizer(grey_image(), metadata, instance_mode=mode).draw_instance_predictions(empty).get_image()
    ).any()


def test_predictions_may_lack_fields(metadata):
    only_boxes = Instances((H, W))
    only_boxes.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 30.0, 30.0]]))
    assert changed(Visualizer(grey_image(), metadata).draw_instance_predictions(only_boxes).get_image()).any()


def test_semantic_map_skips_unknown_labels(metadata):
    labels = np.full((H, W), 255)
    labels[:30] = 0
    drawn = Visualizer(grey_image(), metadata).draw_sem_seg(labels, draw_text=False, alpha=0.8).get_image()
    assert (drawn[10, 10] == [26, 230, 26]).all() or drawn[10, 10, 1] > 200
    assert not changed(drawn)[40:].any()


def test_dataset_dict_with_every_kind_of_mask(metadata, tmp_path):
    rle = mask_util.encode(np.asfortranarray(ring().astype(np.uint8)))
    for segmentation in ([[10, 10, 50, 10, 50, 50]], rle):
        record = {
            "annotations": [
                {
                    "bbox": [10, 10, 40, 40],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 1,
                    "iscrowd": 1,
                    "segmentation": segmentation,
                }
            ]
        }
        assert changed(Visualizer(grey_image(), metadata).draw_dataset_dict(record).get_image()).any()
    assert not changed(Visualizer(grey_image(), metadata).draw_dataset_dict({"annotations": []}).get_image()).any()


def test_overlay_takes_all_mask_structures():
    polygon = [np.array([10.0, 10, 50, 10, 50, 50])]
    for masks in (PolygonMasks([polygon]), BitMasks(torch.from_numpy(ring())[None]), [polygon], [ring()]):
        assert changed(Visualizer(grey_image()).overlay_instances(masks=masks, labels=["x"]).get_image()).any()
    with pytest.raises((ValueError, AssertionError)):
        Visualizer(grey_image()).overlay_instances(boxes=np.zeros((2, 4)), labels=["x"])


def test_generic_mask_forms_agree():
    square = np.zeros((H, W), np.uint8)
    square[10:30, 20:50] = 1
    by_array, by_polygon = GenericMask(square, H, W), GenericMask([[20, 10, 50, 10, 50, 30, 20, 30]], H, W)
    assert np.array_equal(by_array.mask, by_polygon.mask) and by_array.area() == by_polygon.area() == 600
    assert np.allclose(by_array.bbox(), [20, 10, 50, 30], atol=1.5)
    assert len(GenericMask(ring(), H, W).polygons) == 2
    assert GenericMask(np.zeros((H, W), np.uint8), H, W).polygons == []
    with pytest.raises((ValueError, AssertionError)):
        GenericMask(np.zeros((3, 4), np.uint8), H, W)


def test_drawing_does_not_touch_the_global_randomness_of_torch_and_saves(tmp_path):
    state = torch.random.get_rng_state()
    image = Visualizer(grey_image()).draw_instance_predictions(predictions())
    image.save(str(tmp_path / "x.png"))
    image.save(str(tmp_path / "x.jpg"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.jpg", "x.png"]


def test_primitives():
    visualizer = Visualizer(grey_image())
    visualizer.draw_text("hello", (60, 20), color="w")
    drawn = changed(visualizer.get_output().get_image())
    assert drawn[20:30, 60:].any()


def test_colours():
    colors = colormap(rgb=True, maximum=1)
    assert colors.shape[1] == 3 and len(np.unique(colors, axis=0)) > 50
    assert 0 <= colors.min() <= colors.max() <= 1
    assert np.allclose(colormap(rgb=False, maximum=255), colors[:, ::-1] * 255)
    assert random_color(rgb=True, maximum=1).shape == (3,)
