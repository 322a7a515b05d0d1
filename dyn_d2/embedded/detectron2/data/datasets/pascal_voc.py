"""Pascal VOC detection: one xml per image."""

import os
import xml.etree.ElementTree as ET
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
        ValueError: an xml is malformed or has an object of another class; the message names it.
    """
    image_list = require(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt"), "Pascal VOC image list")
    with PathManager.open(image_list) as file:
        ids = [line.split()[0] for line in file if line.strip()]
    folder = PathManager.get_local_path(os.path.join(dirname, "Annotations/"))
    class_index = {name: i for i, name in enumerate(class_names)}
    return [_read_xml(os.path.join(folder, f"{i}.xml"), i, dirname, class_index) for i in ids]


def _read_xml(path: str, image_id: str, dirname: str, class_index: dict[str, int]) -> dict:
    try:
        root = ET.parse(path).getroot()
        annotations = []
        for obj in root.iterfind("object"):
            x0, y0, x1, y1 = (float(obj.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax"))
            category = obj.find("name").text
            if category not in class_index:
                raise ValueError(f"the class '{category}' is none of {', '.join(class_index)}")
            annotations.append(
                {"category_id": class_index[category], "bbox": [x0 - 1, y0 - 1, x1, y1], "bbox_mode": BoxMode.XYXY_ABS}
            )
        return {
            "file_name": os.path.join(dirname, "JPEGImages", f"{image_id}.jpg"),
            "image_id": image_id,
            "height": int(root.find("size/height").text),
            "width": int(root.find("size/width").text),
            "annotations": annotations,
        }
    except FileNotFoundError:
        require(path, "Pascal VOC annotation file")
        raise
    except (ET.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid Pascal VOC annotation: {error}.") from error


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Register one split, see :func:`load_voc_instances`; ``year`` chooses the metric (2007: 11 points)."""
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
