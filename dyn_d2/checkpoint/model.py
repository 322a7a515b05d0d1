"""From a checkpoint to a model that is ready to be evaluated."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.config.ranges import check_ranges
from dyn_d2.config.read import merge_into_carried, read_cfg
from dyn_d2.data.custom import register_custom
from dyn_d2.method import methods
from dyn_d2.modeling.build import build_model

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from .checkpointer import METADATA, CheckpointError, DynCheckpointer, LoadReport, read_checkpoint
from .labels import restore_metadata


class LoadedModel(NamedTuple):
    """A model in evaluation mode with its frozen config and its file's "dyn_d2" entry (empty for files of others)."""

    cfg: CfgNode
    model: nn.Module
    described: dict[str, Any]


def load_model(weights: str, config_file: str = "", opts: Iterable[str] = ()) -> LoadedModel:
    """The model that a checkpoint holds, on the CPU where its device is not there.

    Args:
        weights: a checkpoint. One that dyn_d2 wrote brings its config and class names.
        config_file: for checkpoints of others; wins over the checkpoint's own config.
        opts: ``KEY VALUE ...`` that change the config. Modules of DATASETS.IMPORT are imported if they are named here
            or in the config file, not if only the checkpoint names them.

    Raises:
        FileNotFoundError: no such file.
        UserError: a module cannot be imported.
        CheckpointError: unreadable; without a config and none is given; or it does not hold the whole model.
        KeyError: ``opts`` or the config have keys that do not exist.
        ValueError: ``opts`` are no pairs, or a key has a value that cannot be used.
    """
    described = read_checkpoint(weights).get(METADATA) or {}
    if config_file:
        cfg = read_cfg(config_file, opts)
    elif "config" in described:
        cfg = own_config(weights, described)
        merge_into_carried(cfg, opts)
    else:
        raise CheckpointError(
            f"{weights} does not carry its config: give the yaml it was trained with (--config-file)."
        )
    cfg.MODEL.WEIGHTS = weights
    make_known(cfg, described)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    check_ranges(cfg)
    names = list(described.get("classes", ()))
    if config_file and names:  # a plain yaml counts COCO's classes
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(names)
    cfg.freeze()
    model, _ = model_of(cfg)
    return LoadedModel(cfg, model, described)


def make_known(cfg: CfgNode, described: dict[str, Any]) -> None:
    """Tell the catalogues what checkpoint and config say about data sets that are not registered here: a head may ask
    for their labels, in the order of its rows."""
    if cfg.DATASETS.CUSTOM.FORMAT and cfg.DATASETS.CUSTOM.CLASSES:
        register_custom(cfg, files=False)
    restore_metadata(described)
    # Only where nobody has registered it: a json brings its names with its first reading, and those count.
    name = next(iter([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]), None)  # as ``describe`` has it
    classes = list(described.get("classes") or ())
    if name and classes and name not in DatasetCatalog.list() and not MetadataCatalog.get(name).get("thing_classes"):
        MetadataCatalog.get(name).thing_classes = classes


def model_of(cfg: CfgNode, weights: str = "") -> tuple[nn.Module, LoadReport]:
    """The model of ``cfg``, in evaluation mode, and what its checkpoint gave to it.

    Args:
        weights: the checkpoint; "" for MODEL.WEIGHTS.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: unreadable, none is named, or it does not fill the whole model (unless
            TEST.ALLOW_PARTIAL_WEIGHTS).
    """
    model = build_model(cfg)
    checkpointer = DynCheckpointer(model)
    checkpointer.load(weights or cfg.MODEL.WEIGHTS, checkpointables=[], strict=not cfg.TEST.ALLOW_PARTIAL_WEIGHTS)
    return model.eval(), checkpointer.report


def own_config(weights: str, described: dict[str, Any]) -> CfgNode:
    """The config that a checkpoint carries, not frozen; what it refers to is made known.

    Args:
        weights: the file, for messages.
        described: its "dyn_d2" entry.

    Raises:
        CheckpointError: the config cannot be used here.
    """
    for method in methods():
        method.restore(described)
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(described["config"])))
    except (KeyError, ValueError, AttributeError, AssertionError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"the config that {weights} carries cannot be used here ({error}); it was written by dyn_d2 "
            f"{described.get('versions', {}).get('dyn_d2', '(unknown)')}. Give a yaml for it (--config-file)."
        ) from error
    return cfg
