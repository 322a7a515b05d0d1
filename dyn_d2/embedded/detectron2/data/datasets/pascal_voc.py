"""Pascal VOC detection: one xml per image."""

import os
from collections.abc import Sequence

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog
from ..paths import require

CLASS_NAMES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)


def load_voc_instances(dirname: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """Read the annotations of one split.

    Args:
        dirname: folder with Annotations/, ImageSets/Main/ and JPEGImages/.
        split: name of a list in ImageSets/Main, e.g. "trainval".
        class_names: in the order of their class index.

    Returns:
        Records in the order of the list. VOC counts pixels from 1 and includes the last one, so 1 is taken from xmin
        and ymin: x0 y0 x1 y1 then lie in [0, width] and [0, height]. Objects marked as difficult are included.

    Raises:
        FileNotFoundError: the list or an xml is missing.
        ValueError: the list has an image twice, or an xml is malformed or has an object of another class; the message
            names the file.
    """
    # Only here, because dyn_d2 is imported together with this package.
    from dyn_d2.data.validity.voc import image_ids

    image_list = require(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt"), "Pascal VOC image list")
    ids = image_ids(PathManager.get_local_path(image_list))
    folder = PathManager.get_local_path(os.path.join(dirname, "Annotations/"))
    class_index = {name: i for i, name in enumerate(class_names)}
    return [_record(os.path.join(folder, f"{i}.xml"), i, dirname, class_index) for i in ids]


def _record(path: str, image_id: str, dirname: str, class_index: dict[str, int]) -> dict:
    from dyn_d2.data.validity.voc import read_xml

    image = read_xml(require(path, "Pascal VOC annotation file"))
    annotations = []
    for item in image.objects:
        if item.name not in class_index:
            raise ValueError(
                f"{path} is not a valid Pascal VOC annotation: the class {item.name!r} is none of "
                f"{', '.join(class_index)}."
            )
        x0, y0, x1, y1 = item.box
        bbox = [x0 - 1, y0 - 1, x1, y1]
        annotations.append({"category_id": class_index[item.name], "bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS})
    return {
        "file_name": os.path.join(dirname, "JPEGImages", f"{image_id}.jpg"),
        "image_id": image_id,
        "height": image.height,
        "width": image.width,
        "annotations": annotations,
    }


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Register one split, see :func:`load_voc_instances`; ``year`` chooses the metric (2007: 11 points)."""
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
