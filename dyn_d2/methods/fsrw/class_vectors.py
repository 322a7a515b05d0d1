"""Class vectors before an evaluation: from files, or from the support images of the training set (Wang 2020, 6.2)."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dyn_d2.data.sound_dicts import sound_dicts

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from .episodes import SupportMapper, SupportPool, stack
from .reweighting import FILE, ClassVectors, ReweightedByClass, is_reweighted

BATCH = 16  # support images at a time


@torch.no_grad()
def compute_vectors(
    cfg: CfgNode, model: ReweightedByClass, classes: Sequence[str] = (), limit: int | None = None
) -> ClassVectors:
    """The mean vector of each class over its support images, which are the objects of DATASETS.TRAIN.

    They are not augmented. In few-shot fine-tuning these are the K shots. Where there are more than
    MODEL.REWEIGHTING.SUPPORTS, that many are chosen by SEED.

    Args:
        model: with its re-weighting module.
        classes: names; () for all of the training set.
        limit: in place of MODEL.REWEIGHTING.SUPPORTS.

    Raises:
        ValueError: a class has no support image, or the training set does not know it.
    """
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f"{cfg.DATASETS.TRAIN[0]} has no class {', '.join(unknown)}, only {', '.join(names)}.")
    records = sound_dicts(list(cfg.DATASETS.TRAIN), filter_empty=True)
    pool = SupportPool(records, names, classes or names)
    mapper = SupportMapper(cfg, names, is_train=False)
    training = model.training
    model.eval()
    samples, supports = {}, []
    for name in classes or names:
        places = pool.some(name, cfg.MODEL.REWEIGHTING.SUPPORTS if limit is None else limit, max(cfg.SEED, 0))
        batches = [places[i : i + BATCH] for i in range(0, len(places), BATCH)]
        found = [model.embed(stack([mapper(records[r], p) for r, p in batch])).float().cpu() for batch in batches]
        samples[name] = torch.cat(found)
        supports.append([object_name(records[r], p) for r, p in places])
    model.train(training)
    return ClassVectors.mean_of(samples, model.fingerprint(), supports)


def object_name(record: dict[str, Any], position: int) -> str:
    """The numbers of image and annotation, the latter's place in the image where it has none."""
    return f"{record.get('image_id')}/{record['annotations'][position].get('id', position)}"


def prepare_for_evaluation(cfg: CfgNode, model: nn.Module, limit: int | None = None) -> None:
    """Give a detector that re-weights its features the vectors of the classes of DATASETS.TEST; leave others alone.

    Args:
        limit: see ``compute_vectors``; with one, nothing is written.

    Raises:
        FileNotFoundError, ValueError: from ``compute_vectors`` and ``ReweightedByClass.read_vectors``; a class has no
            vector; they are of another width.
    """
    if not is_reweighted(model) or not cfg.DATASETS.TEST:
        return
    given = bool(cfg.MODEL.REWEIGHTING.VECTORS)
    vectors = model.read_vectors(cfg.MODEL.REWEIGHTING.VECTORS) if given else compute_vectors(cfg, model, limit=limit)
    model.use_vectors(vectors.select(MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes))
    if not given and limit is None and comm.is_main_process():
        vectors.save(os.path.join(cfg.OUTPUT_DIR, FILE))
