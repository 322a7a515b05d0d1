"""Views of images: where augmentation is a choice among finitely many sizes and flips, the one that a position of the
training order gets is known without reading the image.

Shape shorthand: M objects of an image.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from .partial_masks import PartialMaskMapper

OBJECTS = "image_objects"  # of a record: (bbox, bbox_mode) of all annotated objects of its image
_MAPPERS = (DatasetMapper, PartialMaskMapper)
_FINITE = (T.ResizeShortestEdge, T.RandomFlip)
_REMEMBERED = 20_000  # inputs; a few-shot set has hundreds of records and a few views of each


@dataclass(frozen=True)
class View:
    """An image as the network gets it.

    Attributes:
        name: its size and flips; the same for all views of an image that are the same.
        size: (height, width) of the view.
        file_name, file_size, image_format: the image, its (height, width), and the order of its channels.
        transforms: what makes the view of the image.
    """

    name: str
    size: tuple[int, int]
    file_name: str
    file_size: tuple[int, int]
    image_format: str
    transforms: T.TransformList

    def read(self) -> Tensor:
        """The (C, H, W) pixels.

        Raises:
            OSError: the image cannot be read.
            SizeMismatchError: it has another size than its record says.
        """
        image = utils.read_image(self.file_name, format=self.image_format)
        height, width = self.file_size
        utils.check_image_size({"file_name": self.file_name, "height": height, "width": width}, image)
        image = self.transforms.apply_image(image)
        return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


class ViewInput(dict):
    """Model input whose "image" is read when somebody asks for it, unless it is there already."""

    def __missing__(self, key: str) -> Any:
        if key != "image":
            raise KeyError(key)
        self["image"] = self["view"].read()
        return self["image"]


def views_problem(mapper: Any, records: Sequence[dict[str, Any]]) -> str:
    """Why the views of these records are not known beforehand; "" where they are."""
    if type(mapper) not in _MAPPERS:
        return f"images are mapped by {type(mapper).__name__}"
    other = [type(aug).__name__ for aug in mapper.augmentations.augs if type(aug) not in _FINITE]
    if other:
        return f"the augmentation {', '.join(other)} has no finite number of views"
    if any("width" not in record or "height" not in record for record in records):
        return "the data set does not say how large its images are"
    return ""


def count_views(mapper: DatasetMapper) -> int:
    """How many views of an image there may be, where there is no ``views_problem``."""
    count = 1
    for augmentation in mapper.augmentations.augs:
        values = vars(augmentation)
        if "prob" in values:  # a flip
            count *= 2 if 0 < values["prob"] < 1 else 1
        else:
            lengths = values["short_edge_length"]
            count *= lengths[1] - lengths[0] + 1 if values["is_range"] else len(set(lengths))
    return count


def _draw(augmentations: Sequence[T.Augmentation], record: dict[str, Any], image_format: str) -> View:
    """The view that the augmentations choose, with the random numbers that they draw of an image."""
    source = size = record["height"], record["width"]
    transforms, names = [], []
    for augmentation in augmentations:
        transform = augmentation.get_transform(np.broadcast_to(np.uint8(0), (*size, 3)))  # they look at its shape
        if isinstance(transform, T.ResizeTransform):
            size = transform.new_h, transform.new_w
        elif not isinstance(transform, T.NoOpTransform):
            names.append(type(transform).__name__.removesuffix("Transform"))
        transforms.append(transform)
    name = "_".join([f"{size[0]}x{size[1]}", *names])
    return View(name, size, record["file_name"], source, image_format, T.TransformList(transforms))


class ViewMapper:
    """Makes model input of records as Detectron2's mapper does, but for views that are ``known`` without the image.

    In training inputs also have "sampling_seed", which depends on (SEED, position) alone, "objects", the (M, 4) boxes
    of all annotated objects of the image, whatever the record is for, and "identity", the same for equal inputs.
    """

    def __init__(self, mapper: DatasetMapper, known: Callable[[View], bool]) -> None:
        """
        Args:
            mapper: one without ``views_problem``.
            known: whether the image of a view is not needed.
        """
        self._mapper, self._known = mapper, known
        self._made: dict[tuple, dict[str, Any]] = {}

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        if not self._mapper.is_train and not {"width", "height"} <= record.keys():
            return self._mapper(record)
        view = _draw(self._mapper.augmentations.augs, record, self._mapper.image_format)
        made = self._with_truth(record, view) if self._mapper.is_train else {**record, "view": view}
        found = ViewInput(made)
        if self._mapper.is_train:
            found["sampling_seed"] = random.getrandbits(62)
        else:
            found.pop("annotations", None)
        if not self._known(view):
            found["image"] = view.read()
        return found

    def _with_truth(self, record: dict[str, Any], view: View) -> dict[str, Any]:
        """The input but for what differs from one position to another; nobody may change it."""
        annotations = record["annotations"]
        objects = ((a["category_id"], "segmentation" in a, *map(float, a["bbox"])) for a in annotations)
        identity = (view.file_name, view.name, *objects)
        if identity not in self._made:
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            # Detectron2's mapper changes what it gets.
            made = {**record, "view": view, "identity": identity, "annotations": copy.deepcopy(annotations)}
            every = made.pop(OBJECTS, [])
            self._mapper._transform_annotations(made, view.transforms, view.size)
            made["objects"] = _boxes(every, view)
            self._made[identity] = made
        return self._made[identity]


def _boxes(objects: Sequence[tuple[Any, Any]], view: View) -> Tensor:
    """(M, 4) boxes in the view, computed as the mapper computes those of its annotations."""
    moved = [
        utils.transform_instance_annotations({"bbox": box, "bbox_mode": mode}, view.transforms, view.size)["bbox"]
        for box, mode in objects
    ]
    return torch.as_tensor(np.array(moved, dtype=np.float64).reshape(-1, 4)).float()


class Known(Protocol):
    """Tells loaders of test sets which images they may leave out."""

    def fits(self, images: int) -> bool:
        """Whether a test set of so many images may come by views at all."""
        ...

    def has(self, view: View) -> bool:
        """Whether the image of a view is not needed."""
        ...


_known_in_evaluation: ContextVar[Known | None] = ContextVar("known_in_evaluation", default=None)


@contextmanager
def known_in_evaluation(known: Known) -> Iterator[None]:
    """Loaders of test sets that are made inside the block leave out the images of known views."""
    token = _known_in_evaluation.set(known)
    try:
        yield
    finally:
        _known_in_evaluation.reset(token)


def evaluation_mapper(mapper: Any, images: int) -> Any:
    """``mapper`` of a test set of so many images, or inside of ``known_in_evaluation`` one that leaves out those of
    known views."""
    known = _known_in_evaluation.get()
    if known is None or views_problem(mapper, ()) or not known.fits(images):
        return mapper
    return ViewMapper(mapper, known.has)
