"""Pascal VOC detection: one xml per image."""

import os
from collections.abc import Sequence

from ..catalog import DatasetCatalog, MetadataCatalog
from ..paths import require

CLASS_NAMES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)

_KEYS = ("category_id", "bbox", "bbox_mode")  # of an annotation; dyn_d2's own reader gives more


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
    from dyn_d2.data.annotation_files import voc_record
    from dyn_d2.data.validity.voc import image_ids

    image_list = require(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt"), "Pascal VOC image list")
    records = []
    for image_id in image_ids(image_list):
        require(os.path.join(dirname, "Annotations", f"{image_id}.xml"), "Pascal VOC annotation file")
        record = voc_record(dirname, image_id, tuple(class_names))
        record["annotations"] = [{key: annotation[key] for key in _KEYS} for annotation in record["annotations"]]
        records.append(record)
    return records


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Register one split, see :func:`load_voc_instances`; ``year`` chooses the metric (2007: 11 points)."""
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
