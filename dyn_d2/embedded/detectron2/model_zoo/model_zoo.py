"""Config files, configs, weights and models by the names under which Detectron2 published them."""

import difflib
import functools
import os
import tempfile
from pathlib import Path

import torch
import yaml
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import Detectron2Handler, atomic_open

from .published import checkpoint, derive, names

_BASE_FILES = Path(__file__).parent / "configs"


def _known(config_path: str) -> str:
    """The name without .yaml.

    Raises:
        RuntimeError: it is not in the zoo.
    """
    name = config_path.removesuffix(".yaml")
    if name in names():
        return name
    nearest = difflib.get_close_matches(name, names(), n=3, cutoff=0)
    raise RuntimeError(
        f"'{config_path}' is not in the model zoo of dyn_d2's embedded engine (yaml configs of Faster and Mask R-CNN, "
        f"RPN, RetinaNet, SemanticFPN). The nearest names are: {', '.join(nearest)}"
    )


def get_checkpoint_url(config_path: str) -> str:
    """The address of the weights that were trained with a config, e.g. "COCO-Detection/rpn_R_50_C4_1x.yaml".

    Raises:
        RuntimeError: no such config, or no weights of it were published.
    """
    name = _known(config_path)
    published = checkpoint(name)
    if published is None:
        raise RuntimeError(f"No weights were published for '{config_path}'.")
    number, digest = published.split("/")
    return f"{Detectron2Handler.S3_DETECTRON2_PREFIX}{name}/{number}/model_final_{digest}.pkl"


def _content(name: str) -> str:
    """A derived config as yaml that needs no other file."""
    base, keys = derive(name)
    tree = CfgNode.load_yaml_with_base(str(_BASE_FILES / f"{base}.yaml"))
    for key, value in keys.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return yaml.safe_dump(tree, default_flow_style=None)


@functools.lru_cache(maxsize=1)
def _fallback_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="dyn_d2_model_zoo_"))


def get_config_file(config_path: str) -> str:
    """The path of a config as a yaml file.

    Base files ("Base-RCNN-FPN.yaml") are part of the package. All others are derived from their name and written to
    ``$XDG_CACHE_HOME/dyn_d2/model_zoo`` (``~/.cache``), or to a temporary folder where that cannot be written.

    Raises:
        RuntimeError: no such config.
    """
    if (_BASE_FILES / config_path).is_file():
        return str(_BASE_FILES / config_path)
    name = _known(config_path)
    content = _content(name).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dyn_d2" / "model_zoo"
    try:
        return _write(cache / f"{name}.yaml", content)
    except OSError:
        return _write(_fallback_folder() / f"{name}.yaml", content)


def _write(file: Path, content: bytes) -> str:
    if not file.is_file() or file.read_bytes() != content:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(file) as stream:
            stream.write(content)
    return str(file)


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """All keys of a published model, e.g. "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml".

    Args:
        trained: let MODEL.WEIGHTS be the published detector; otherwise it is what its training started from.

    Raises:
        RuntimeError: no such config, or no weights of it were published.
    """
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build a published model in training mode and load its weights (see ``get_config``).

    Args:
        device: overrides MODEL.DEVICE; without CUDA the default is "cpu".
    """
    # Only here: configs and addresses are wanted without the models as well.
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    cfg = get_config(config_path, trained)
    if device is not None or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = device or "cpu"
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
