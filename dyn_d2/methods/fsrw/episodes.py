"""Episodes for feature re-weighting (Wang 2020, 6.2): batches of query images with one support object of each class.

Queries are the batches of resumable.py. The support objects of a batch are drawn anew for each, by seed and position of
its first query, from the annotated objects of the same training set: in base training from all of them, in fine-tuning
from the K shots. Each process draws its own.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyn_d2.utils.seeds import derive_seed

from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode

from .jitter import jitters, squashing

Record = dict[str, Any]


class SupportPool:
    """The objects that may serve as support: every one that is neither crowd nor difficult and has a box.

    Attributes:
        classes: names.
        places: for each class (position of the record, position of the annotation).
    """

    def __init__(self, records: Sequence[Record], classes: Sequence[str], needed: Sequence[str] | None = None) -> None:
        """
        Args:
            records: data set dicts with annotations; ``category_id`` counts in ``classes``.
            classes: all class names.
            needed: those of them that need a support; None for all.

        Raises:
            ValueError: an object has no box, or a needed class no object.
        """
        self.classes = list(classes)
        self.places: list[list[tuple[int, int]]] = [[] for _ in classes]
        for number, record in enumerate(records):
            for position, annotation in enumerate(record.get("annotations", ())):
                if annotation.get("iscrowd", 0) or annotation.get("difficult", 0):
                    continue
                if support_box(record, annotation, self.classes) is not None:
                    self.places[annotation["category_id"]].append((number, position))
        needed = self.classes if needed is None else needed
        empty = [name for name in needed if not self.places[self.classes.index(name)]]
        if empty:
            raise ValueError(
                f"no support image of {', '.join(empty)}: the training set shows no object of it with a box, and "
                "every class needs one; leave the class out, or add an image."
            )

    def draw(self, *seed: int | str) -> list[tuple[int, int]]:
        """One object of each class, in the order of the classes."""
        return [
            places[derive_seed(*seed, name) % len(places)]
            for name, places in zip(self.classes, self.places, strict=True)
        ]

    def some(self, name: str, limit: int, seed: int) -> list[tuple[int, int]]:
        """At most ``limit`` objects of a class: all, or a choice that depends on seed and name only."""
        places = self.places[self.classes.index(name)]
        if len(places) <= limit:
            return places
        return sorted(places, key=lambda place: derive_seed(seed, "vectors", name, *place))[:limit]


def support_box(record: Record, annotation: Record, classes: Sequence[str]) -> list[float] | None:
    """The box of a support object, x0, y0, x1, y1 in pixels; None where it has no area.

    Raises:
        ValueError: it has no box at all.
    """
    if not annotation.get("bbox"):
        name = classes[annotation["category_id"]]
        raise ValueError(
            f"the object of class {name} in {record.get('file_name', 'an image')} has no box: a support image "
            "needs one, since its mask tells the re-weighting module what to look at."
        )
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return box if box[2] > box[0] and box[3] > box[1] else None


class SupportMapper:
    """Reads a support image, squashes it to a square and draws the mask of its object as fourth channel."""

    def __init__(self, cfg: CfgNode, classes: Sequence[str], is_train: bool) -> None:
        """
        Args:
            classes: names, for messages.
            is_train: change colour, place and side as INPUT.JITTER and INPUT.RANDOM_FLIP say.
        """
        self.size, self.format, self.classes = cfg.MODEL.REWEIGHTING.SUPPORT_SIZE, cfg.INPUT.FORMAT, list(classes)
        self.augmentations: list[T.Augmentation] = [*(jitters(cfg) if is_train else ()), *squashing(cfg)]
        if is_train and cfg.INPUT.RANDOM_FLIP != "none":
            vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
            self.augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))

    def __call__(self, record: Record, position: int) -> tuple[Tensor, Tensor]:
        """
        Args:
            record: a data set dict.
            position: of the annotation of the support object.

        Returns:
            (4, S, S) uint8: the image, and 1 inside of the object's box, 0 outside; (4,) the box in its pixels.

        Raises:
            ValueError: the object has no box.
        """
        box = support_box(record, record["annotations"][position], self.classes)
        if box is None:
            raise ValueError(f"the box of the support object in {record.get('file_name', 'an image')} has no area.")
        original = utils.read_image(record["file_name"], self.format)
        utils.check_image_size(record, original)
        image, moved = self._augment(original, box)
        if moved is None:  # the crop has lost the object
            image, moved = original, np.array(box)
        height, width = image.shape[:2]
        squash = T.ResizeTransform(height, width, self.size, self.size)
        pixels = torch.from_numpy(np.ascontiguousarray(squash.apply_image(image).transpose(2, 0, 1)))
        scaled = torch.as_tensor(moved, dtype=torch.float32) * torch.tensor([self.size / width, self.size / height] * 2)
        return torch.cat([pixels, box_mask(scaled, self.size).to(pixels.dtype)]), scaled

    def _augment(self, image: np.ndarray, box: Sequence[float]) -> tuple[np.ndarray, np.ndarray | None]:
        inputs = T.AugInput(image)
        transforms = T.AugmentationList(self.augmentations)(inputs)
        height, width = inputs.image.shape[:2]
        low_x, low_y, high_x, high_y = transforms.apply_box(np.array([box]))[0]
        moved = np.array([max(low_x, 0), max(low_y, 0), min(high_x, width), min(high_y, height)])
        return inputs.image, moved if moved[2] - moved[0] >= 1 and moved[3] - moved[1] >= 1 else None


def box_mask(box: Tensor, size: int) -> Tensor:
    """(1, S, S) mask of a box: 1 at pixels whose centre lies inside; at least one pixel is."""
    x0, y0, x1, y1 = box.tolist()
    centres = torch.arange(size) + 0.5
    columns, rows = (centres >= x0) & (centres < x1), (centres >= y0) & (centres < y1)
    columns[min(max(int((x0 + x1) / 2), 0), size - 1)] = True
    rows[min(max(int((y0 + y1) / 2), 0), size - 1)] = True
    return (rows[:, None] & columns).to(torch.uint8)[None]


def stack(supports: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """What the detector gets as "support": "image", (N, 4, S, S), and "boxes", (N, 4)."""
    images, boxes = zip(*supports, strict=True)
    return {"image": torch.stack(images), "boxes": torch.stack(boxes)}


class Episodes:
    """Adds a support set to a batch of queries."""

    def __init__(self, records: Sequence[Record], pool: SupportPool, mapper: SupportMapper, seed: int) -> None:
        self._records, self._pool, self._mapper, self._seed = records, pool, mapper, seed

    def add(self, batch: list[Any], position: int, read: Callable[[Callable[[Record], Any], Record], Any]) -> list[Any]:
        """Put the support set of ``position`` into the first query of ``batch``.

        Args:
            batch: mapped queries.
            position: of the first of them; with the seed it decides what is drawn.
            read: calls a function for a record, and returns what takes its place where the image cannot be read.

        Returns:
            The batch; an image that cannot be read is appended to it as it is.
        """
        random.seed(derive_seed(self._seed, "support", position))
        np.random.seed(derive_seed(self._seed, "support", position) % 2**32)
        found = []
        for number, place in self._pool.draw(self._seed, "support", position):
            support = read(partial(self._mapper, position=place), self._records[number])
            if not isinstance(support, tuple):
                return [*batch, support]
            found.append(support)
        if isinstance(batch[0], dict):
            batch[0]["support"] = stack(found)
        return batch


def is_episodic(cfg: CfgNode) -> bool:
    """Whether the detector of ``cfg`` is trained in episodes."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and getattr(META_ARCH_REGISTRY.get(name), "episodic", False)
