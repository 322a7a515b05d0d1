"""Reading images, and carrying annotations through augmentations to what detectors are trained on."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from detectron2.left_out import left_out
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog
from .paths import require


class SizeMismatchError(ValueError):
    """An image has another size than its annotation says."""


_EXIF_ORIENTATION = 0x0112


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """An array (H, W, C) in ``format``: "BGR" or a PIL mode such as "RGB"; None keeps the mode."""
    if format is None:
        return np.asarray(image)
    mode = "RGB" if format == "BGR" else format
    if image.mode != mode:
        image = image.convert(mode)
    if format == "BGR":
        # PIL swaps the channels while it copies: contiguous, unlike a reversed view, which every later step pays for.
        return np.frombuffer(image.tobytes("raw", "BGR"), np.uint8).reshape(image.height, image.width, 3)
    array = np.asarray(image)
    return array[:, :, None] if format == "L" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """The reverse of :func:`convert_PIL_to_numpy`: (H, W, 3) in RGB with range [0, 255], uint8 or float."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    pixels = image.astype(np.uint8).tobytes()
    return np.asarray(Image.frombytes(format or "RGB", image.shape[1::-1], pixels).convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:  # PIL raises many types on a broken EXIF block, which says nothing about the pixels
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image file, turned upright as its EXIF orientation says.

    Args:
        file_name: path, or anything that PathManager opens.
        format: see :func:`convert_PIL_to_numpy`.

    Returns:
        (H, W, C), uint8 in [0, 255]; read-only.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file is no image, is damaged, or has more than 8 bits a channel; the message names it.
    """
    # Only here, because dyn_d2 is imported together with this package.
    from dyn_d2.data.validity.images import opening_error, require_eight_bits

    try:
        with PathManager.open(file_name, "rb") as file:
            image = Image.open(file)
            image.load()  # first: looking for EXIF reads a PNG too, and hides that it is damaged
            image = _upright(image)
    except FileNotFoundError:
        require(file_name, "Image")
        raise
    except Exception as error:  # PIL's decoders raise many types on damaged files
        why = opening_error(file_name, error)
        raise OSError(f"Cannot read image {file_name}: {why}. The file may be damaged or incomplete.") from error
    if format is not None:
        require_eight_bits(image, file_name)
    return convert_PIL_to_numpy(image, format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare "width" and "height" of the record with the image, or set them where they are absent.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    expected = dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height)
    if expected != (width, height):
        raise SizeMismatchError(
            f"Image {dataset_dict.get('file_name', '')} is {(width, height)} (width, height), but its annotation says "
            f"{expected}. Please check the width/height in your annotation."
        )


def get_bbox(annotation: dict) -> Any:
    """The box of an annotation as x0 y0 x1 y1 in pixels."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def transform_instance_annotations(
    annotation: dict,
    transforms: T.Transform | list[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict:
    """Transform the box and the mask of one instance.

    Args:
        annotation: with "bbox", "bbox_mode" and perhaps "segmentation" (polygons, or RLE as a dict). Changed in place,
            but not the lists and arrays in it.
        transforms: what was applied to the image.
        image_size: (h, w) of the transformed image, to which the box is clipped.
        keypoint_hflip_indices: unused; keypoints are not part of this engine.

    Returns:
        ``annotation``, with an x0 y0 x1 y1 box and polygons as flat arrays, or RLE decoded to a mask (H, W).
    """
    if isinstance(transforms, tuple | list):
        transforms = T.TransformList(transforms)
    if "keypoints" in annotation:
        raise left_out("'keypoints' of an annotation", "keypoints")
    height, width = image_size
    # Floats, because transforms write their results in place: integers would be cut.
    box = transforms.apply_box(np.array([get_bbox(annotation)], dtype=np.float64))[0]
    annotation["bbox"] = np.minimum(box.clip(min=0), [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS

    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    return annotation


def _transform_segmentation(segmentation: Any, transforms: T.Transform, image_size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        # Copied, because transforms work in place.
        points = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(points)]
    if not isinstance(segmentation, dict):
        raise ValueError(
            f"A segmentation is a list of polygons or an RLE dict, but an annotation has {type(segmentation)}."
        )
    mask = transforms.apply_segmentation(_decode(segmentation))
    if tuple(mask.shape[:2]) != tuple(image_size):
        raise ValueError(f"An RLE mask became {mask.shape[:2]} (height, width) although its image is {image_size}.")
    return mask


def _decode(segmentation: dict) -> np.ndarray:
    """(H, W) uint8 of a run-length encoding, damaged ones refused: pycocotools' decoder may not return from these.

    Raises:
        ValueError: it is damaged.
    """
    from dyn_d2.data.validity import rle

    height, width = segmentation["size"] if len(segmentation.get("size", ())) == 2 else (0, 0)
    return np.ascontiguousarray(rle.decode(rle.run_lengths(segmentation), int(height), int(width)), dtype=np.uint8)


def annotations_to_instances(annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon") -> Instances:
    """Training targets of one image.

    Args:
        annos: annotations, as :func:`transform_instance_annotations` returns them.
        image_size: (h, w).
        mask_format: "polygon" gives PolygonMasks, "bitmask" BitMasks.

    Returns:
        Instances with ``gt_boxes``, ``gt_classes`` (int64), and ``gt_masks`` if the annotations have segmentations.

    Raises:
        ValueError: only some of them have one, or it does not fit ``mask_format``.
    """
    boxes = np.stack([get_bbox(anno) for anno in annos]) if annos else np.zeros((0, 4))
    target = Instances(image_size)
    target.gt_boxes = Boxes(boxes)
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    segmentations = [anno["segmentation"] for anno in annos if "segmentation" in anno]
    if not segmentations:
        return target
    if len(segmentations) < len(annos):
        raise ValueError(
            f"{len(segmentations)} of {len(annos)} annotations of one image have a segmentation: a mask head needs all "
            "of them. Complete the annotations, set MODEL.MASK_ON to False, or use PartialMaskMapper of "
            "dyn_d2.data.partial_masks, for which some objects may have none."
        )
    if mask_format == "polygon":
        try:
            target.gt_masks = PolygonMasks(segmentations)
        except ValueError as error:
            raise ValueError(
                f"The segmentations cannot be used as polygons: {error} For RLE set INPUT.MASK_FORMAT to 'bitmask'."
            ) from error
    elif mask_format == "bitmask":
        masks = np.empty((len(segmentations), *image_size), dtype=bool)
        for mask, segmentation in zip(masks, segmentations, strict=True):
            mask[:] = _to_mask(segmentation, image_size)
        target.gt_masks = BitMasks(torch.from_numpy(masks))
    else:
        raise ValueError(f"INPUT.MASK_FORMAT is 'polygon' or 'bitmask', not {mask_format!r}.")
    return target


def _to_mask(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    mask = _decode(segmentation).astype(bool) if isinstance(segmentation, dict) else segmentation
    if getattr(mask, "shape", None) != tuple(image_size):
        raise ValueError(
            f"A segmentation is a list of polygons, or a mask (RLE or array) of its image's size {tuple(image_size)}, "
            f"but an annotation has {type(segmentation)} of shape {getattr(mask, 'shape', None)}."
        )
    return mask


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Leave out instances whose box has an edge of at most ``box_threshold`` pixels, or whose mask is empty.

    Returns:
        The others, and with ``return_mask`` a bool tensor (N,) that says which they are.
    """
    if not (by_box or by_mask):
        raise ValueError("filter_empty_instances needs by_box or by_mask.")
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep = instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep = keep & instances.gt_masks.nonempty()
    kept = instances if keep.all() else instances[keep]  # copying all masks costs as much as drawing them
    return (kept, keep) if return_mask else kept


def check_metadata_consistency(key: str, dataset_names: list[str]) -> None:
    """Check that data sets used together agree in one metadata attribute.

    Raises:
        AttributeError: one of them does not have it.
        ValueError: they differ.
    """
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"Datasets have different metadata '{key}': '{dataset_names[0]}' has {values[0]}, '{name}' has {value}."
            )


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """Resizing by the shortest edge and, in training, flipping, as the INPUT keys say."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    inputs = cfg.INPUT
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if inputs.RANDOM_FLIP != "none":
        if inputs.RANDOM_FLIP not in ("horizontal", "vertical"):
            raise ValueError(f"INPUT.RANDOM_FLIP is 'horizontal', 'vertical' or 'none', not {inputs.RANDOM_FLIP!r}.")
        horizontal = inputs.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    return augmentations
