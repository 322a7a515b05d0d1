"""Training sets divided in two: one part to train on, and one held out for what has to be set on unseen images.

Thresholds on a network's confidence belong to the second kind: on images that it was trained on it is far too sure of
itself (Wang et al., UAI 2018, "Robustness analysis"), and the test split is for the report.
"""

import logging
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from dyn_d2.utils.seeds import derive_seed

from detectron2.data import DatasetCatalog, MetadataCatalog

from .fingerprint import Fingerprint, data_fingerprint, differences
from .registered import registered_records
from .validity.coco import is_masked

logger = logging.getLogger(__name__)

FIT, HELD_OUT, TRAIN, TEST = "fit", "held_out", "train", "test"
# What belongs to all images of a set: a part with boxes is evaluated by its own records, which COCO's evaluator can do.
_OF_THE_WHOLE = {"name", "json_file", "split", "dirname", "year"}
_EVALUATORS = {"pascal_voc": "coco"}
_REMEDY = (
    f"Train on a part of the training set and calibrate on the rest, as NAME_{FIT} and NAME_{HELD_OUT} divide it "
    "(dyn_d2.data.parts.register_parts)."
)


def register_parts(name: str, share: float = 0.1, masks: bool = False) -> tuple[str, str]:
    """Register ``NAME_fit`` and ``NAME_held_out``, which divide the images of ``name`` at random but always alike.

    Nothing is read before a part is used. Its metadata is that of the whole, with ``split`` ("fit" or "held_out"),
    ``part_of``, the name of the whole, and ``division``, a text. Parts of VOC sets are scored by COCO's rules (101
    points of recall, one AP over overlaps from 0.5 to 0.95 beside AP50), because VOC's evaluator reads whole lists of
    images.

    Args:
        name: a registered data set.
        share: of the images that are held out, in (0, 1).
        masks: the held-out part is for the evaluation of masks, which needs one of each object: where some lack theirs,
            it is drawn from the images whose objects all have them, if these are enough.

    Returns:
        The two names.

    Raises:
        ValueError: another ``share``.
    """
    if not 0 < share < 1:
        raise ValueError(f"{share} of {name} cannot be held out: the share has to lie between 0 and 1.")
    parts = f"{name}_{FIT}", f"{name}_{HELD_OUT}"
    whole = MetadataCatalog.get(name).as_dict()
    division = f"{share:g} of the images" + (" whose objects all have masks, if some lack them" if masks else "")
    for part, split in zip(parts, (FIT, HELD_OUT), strict=True):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if part in catalog.list():
                catalog.remove(part)
        DatasetCatalog.register(part, partial(_divide, name, share, masks, split == HELD_OUT))
        metadata = {key: value for key, value in whole.items() if key not in _OF_THE_WHOLE}
        if kind := metadata.get("evaluator_type"):
            metadata["evaluator_type"] = _EVALUATORS.get(kind, kind)
        MetadataCatalog.get(part).set(**metadata, split=split, part_of=name, division=division)
    return parts


def _divide(name: str, share: float, masks: bool, held_out: bool) -> list[dict]:
    records = registered_records(name)
    order = np.random.default_rng(derive_seed("parts", name)).permutation(len(records))
    count = max(1, round(share * len(records)))
    if count >= len(records):
        raise ValueError(f"{share} of the {len(records)} images of {name} held out leaves none to train on.")
    chosen = set(order[:count])
    if masks and (whole := _wholly_masked(records)) is not None and len(whole) >= count:
        chosen = set([i for i in order if i in whole][:count])
        if held_out:
            logger.info(f"{name}: {count} images are held out, of the {len(whole)} whose objects all have masks")
    return [record for i, record in enumerate(records) if (i in chosen) == held_out]


def _wholly_masked(records: list[dict]) -> set[int] | None:
    """Positions of the images that have objects, all of them with a mask; None where no object lacks one."""
    objects = [[a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)] for record in records]
    masked = [all(map(is_masked, of_image)) for of_image in objects]
    return None if all(masked) else {i for i, of_image in enumerate(objects) if of_image and masked[i]}


def held_out_problem(
    name: str,
    trained_on: Iterable[str],
    tested_on: Iterable[str],
    kept: Mapping[str, Fingerprint] | None = None,
) -> str:
    """Why ``name`` cannot be used to set a threshold; "" where it can.

    Args:
        trained_on: data sets that a model has seen in training.
        tested_on: data sets that configs report on.
        kept: what the checkpoint keeps of those that it was trained on.
    """
    whole, tested = MetadataCatalog.get(name).get("part_of", None), set(tested_on)

    def is_test(dataset: str) -> bool:
        split = MetadataCatalog.get(dataset).get("split", None)
        return split == TEST or (split is None and dataset in tested)

    if whole and is_test(whole):
        return (
            f"{name} is a part of {whole}, a test split: results there would no longer be of unseen images. {_REMEDY}"
        )
    if is_test(name):
        return f"{name} is a test split: thresholds that were chosen there say nothing about other images. {_REMEDY}"
    return trained_problem(name, trained_on, kept)


def trained_problem(name: str, trained_on: Iterable[str], kept: Mapping[str, Fingerprint] | None = None) -> str:
    """Why ``name`` has images that a model has seen in training; "" where it has none, as far as is known.

    Args:
        trained_on, kept: as of ``held_out_problem``.
    """
    whole = MetadataCatalog.get(name).get("part_of", None)
    trained = {other: MetadataCatalog.get(other).get("part_of", None) for other in trained_on}
    if name in trained or whole in trained or name in trained.values():
        return (
            f"a model was trained on images of {name} ({', '.join(sorted(trained))}) and is too sure there. {_REMEDY}"
        )
    for other in sorted(other for other, its_whole in trained.items() if whole and its_whole == whole):
        if lines := differences((kept or {}).get(other, {}), data_fingerprint(other)):
            return (
                f"{name} may have images that a model was trained on: since {other} was trained on, {whole} or its "
                f"division has changed ({'; '.join(lines)}). Take the data as they were and divide them as then "
                "(DATASETS.CUSTOM.HOLD_OUT, MODEL.MASK_ON, register_parts), or train anew."
            )
    return ""
