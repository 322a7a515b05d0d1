import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


def annotation(**changes) -> dict:
    return {"bbox": [2.0, 2.0, 6.0, 6.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1} | changes


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.RandomState(1).randint(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return str(path), pixels


def test_formats(picture) -> None:
    path, pixels = picture
    assert np.array_equal(utils.read_image(path), pixels)
    assert np.array_equal(utils.read_image(path, "RGB"), pixels)
    assert np.array_equal(utils.read_image(path, "BGR"), pixels[:, :, ::-1])
    grey = utils.read_image(path, "L")
    assert grey.shape == (6, 9, 1) and np.array_equal(grey[:, :, 0], np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("mode", ["RGB", "BGR"])
def test_back_to_rgb(picture, mode: str) -> None:
    path, pixels = picture
    assert np.abs(utils.convert_image_to_rgb(utils.read_image(path, mode), mode) - pixels.astype(float)).max() < 0.01
    tensor = torch.as_tensor(utils.read_image(path, "BGR").copy())
    assert np.array_equal(utils.convert_image_to_rgb(tensor, "BGR"), pixels)


def test_grey_to_rgb() -> None:
    grey = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    assert np.array_equal(utils.convert_image_to_rgb(grey, "L"), np.repeat(grey, 3, axis=2).astype(np.uint8))


@pytest.mark.parametrize("source", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_become_bgr(tmp_path, picture, source: str) -> None:
    image = Image.fromarray(picture[1]).convert(source)
    path = tmp_path / "other.tif"
    image.save(path)
    assert np.array_equal(utils.read_image(str(path), "BGR"), np.asarray(image.convert("RGB"))[:, :, ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation: int) -> None:
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0, 0], pixels[0, 2] = 255, 100  # top left and top right differ
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels, 1),
    }[orientation]
    assert np.array_equal(utils.read_image(str(tmp_path / "turned.png"), "L")[:, :, 0], upright)


@pytest.mark.embedded
def test_unreadable_images_are_named(tmp_path, picture) -> None:
    with pytest.raises(FileNotFoundError, match="Image not found: .*absent.jpg"):
        utils.read_image(str(tmp_path / "absent.jpg"))
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    with pytest.raises(OSError, match="Cannot read image .*text.jpg"):
        utils.read_image(str(text))
    cut = tmp_path / "cut.png"
    cut.write_bytes(open(picture[0], "rb").read()[:60])
    with pytest.raises(OSError, match="Cannot read image .*cut.png"):
        utils.read_image(str(cut), "BGR")


def test_image_size_is_checked_or_filled_in() -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    record = {"file_name": "x.jpg"}
    utils.check_image_size(record, image)
    assert (record["width"], record["height"]) == (9, 6)
    with pytest.raises(utils.SizeMismatchError, match=r"x.jpg.*\(9, 6\).*\(6, 9\)"):
        utils.check_image_size({"file_name": "x.jpg", "width": 6, "height": 9}, image)


def test_boxes_are_transformed_and_clipped() -> None:
    transforms = T.TransformList([T.ResizeTransform(10, 10, 20, 40), T.CropTransform(10, 0, 20, 12)])
    result = utils.transform_instance_annotations(annotation(), transforms, (12, 20))
    assert result["bbox"].tolist() == [0, 4, 20, 12] and result["bbox_mode"] == BoxMode.XYXY_ABS
    as_list = utils.transform_instance_annotations(annotation(), transforms.transforms, (12, 20))
    assert as_list["bbox"].tolist() == result["bbox"].tolist()


def test_polygons_are_transformed_and_the_source_stays() -> None:
    source = annotation(segmentation=[list(SQUARE[0])])
    result = utils.transform_instance_annotations(dict(source), T.TransformList([T.HFlipTransform(10)]), (10, 10))
    assert result["segmentation"][0].tolist() == [8, 2, 2, 2, 2, 8, 8, 8]
    assert source["segmentation"] == SQUARE


@pytest.mark.embedded
def test_arrays_in_annotations_are_not_written_to() -> None:
    polygon = np.array(SQUARE[0])
    for _ in range(2):
        utils.transform_instance_annotations(
            annotation(segmentation=[polygon]), T.TransformList([T.HFlipTransform(10)]), (10, 10)
        )
    assert polygon.tolist() == SQUARE[0]


def test_rle_becomes_a_mask() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 1:4] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    result = utils.transform_instance_annotations(
        annotation(segmentation=rle), T.TransformList([T.HFlipTransform(12)]), (10, 12)
    )
    assert np.array_equal(result["segmentation"], mask[:, ::-1])
    with pytest.raises(ValueError):
        utils.transform_instance_annotations(annotation(segmentation="x"), T.TransformList([]), (10, 12))


@pytest.mark.embedded
def test_keypoints_are_refused_in_one_sentence() -> None:
    with pytest.raises(NotImplementedError, match="leaves out keypoints"):
        utils.transform_instance_annotations(annotation(keypoints=[1, 1, 2]), T.TransformList([]), (10, 10))


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_instances(mask_format: str) -> None:
    polygons = [np.array(SQUARE[0])]
    annos = [annotation(segmentation=polygons), annotation(category_id=0, segmentation=polygons)]
    instances = utils.annotations_to_instances(annos, (10, 12), mask_format)
    assert instances.image_size == (10, 12) and len(instances) == 2
    assert instances.gt_boxes.tensor.tolist() == [[2, 2, 8, 8]] * 2
    assert instances.gt_classes.tolist() == [1, 0] and instances.gt_classes.dtype == torch.int64
    assert isinstance(instances.gt_masks, PolygonMasks if mask_format == "polygon" else BitMasks)
    if mask_format == "bitmask":
        assert instances.gt_masks.tensor.shape == (2, 10, 12) and instances.gt_masks.tensor[0].sum() == 36


def test_no_annotations_give_empty_instances() -> None:
    instances = utils.annotations_to_instances([], (10, 12))
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4) and not instances.has("gt_masks")
    assert len(utils.filter_empty_instances(instances)) == 0


def test_bitmasks_from_all_kinds_of_segmentation() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:8, 2:8] = 1
    kinds = [[np.array(SQUARE[0])], mask_util.encode(np.asfortranarray(mask)), mask]
    instances = utils.annotations_to_instances([annotation(segmentation=s) for s in kinds], (10, 12), "bitmask")
    assert all(np.array_equal(m.numpy(), mask.astype(bool)) for m in instances.gt_masks.tensor)
    with pytest.raises(ValueError):
        utils.annotations_to_instances([annotation(segmentation=3.0)], (10, 12), "bitmask")


@pytest.mark.embedded
def test_mask_problems_name_the_remedy() -> None:
    rle = mask_util.encode(np.zeros((10, 12), np.uint8, order="F"))
    with pytest.raises(ValueError, match="INPUT.MASK_FORMAT to 'bitmask'"):
        utils.annotations_to_instances([annotation(segmentation=rle)], (10, 12))
    for annos in ([annotation(segmentation=SQUARE), annotation()], [annotation(), annotation(segmentation=SQUARE)]):
        with pytest.raises(ValueError, match="1 of 2 annotations.*MODEL.MASK_ON"):
            utils.annotations_to_instances(annos, (10, 12))
    with pytest.raises(ValueError, match="'polygon' or 'bitmask'"):
        utils.annotations_to_instances([annotation(segmentation=SQUARE)], (10, 12), "rle")
    with pytest.raises(ValueError, match=r"size \(9, 12\)"):
        utils.annotations_to_instances([annotation(segmentation=rle)], (9, 12), "bitmask")


def test_empty_instances_are_left_out() -> None:
    instances = Instances((10, 10))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9], [1, 1, 2, 2]]))
    masks = torch.ones(3, 10, 10, dtype=torch.bool)
    masks[2] = False
    instances.gt_masks = BitMasks(masks)
    kept, which = utils.filter_empty_instances(instances, return_mask=True)
    assert which.tolist() == [True, False, False] and len(kept) == 1
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_mask=False, box_threshold=4)) == 1
    with pytest.raises((ValueError, AssertionError)):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


def test_metadata_have_to_agree() -> None:
    MetadataCatalog.get("toy_one").thing_classes = ["a"]
    MetadataCatalog.get("toy_two").thing_classes = ["b"]
    utils.check_metadata_consistency("thing_classes", ["toy_one", "toy_one"])
    utils.check_metadata_consistency("thing_classes", [])
    with pytest.raises(ValueError, match="thing_classes"):
        utils.check_metadata_consistency("thing_classes", ["toy_one", "toy_two"])
    with pytest.raises(AttributeError):
        utils.check_metadata_consistency("stuff_classes", ["toy_one"])


def test_augmentations_of_the_config(cfg) -> None:
    assert [type(a) for a in utils.build_augmentation(cfg, True)] == [T.ResizeShortestEdge, T.RandomFlip]
    assert [type(a) for a in utils.build_augmentation(cfg, False)] == [T.ResizeShortestEdge]
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert utils.build_augmentation(cfg, True)[1].vertical
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_augmentation(cfg, True)) == 1
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ValueError):
        utils.build_augmentation(cfg, True)
