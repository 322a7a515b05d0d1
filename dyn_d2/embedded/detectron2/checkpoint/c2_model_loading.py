"""Finding the parameters of a model in checkpoints that use other names: Caffe2's, torchvision's, or other prefixes."""

import logging
import os
import re
from collections.abc import Iterable, Mapping

import torch

logger = logging.getLogger(__name__)

_Rules = tuple[tuple[str, str], ...]

# Pattern -> replacement, applied one after the other.
_C2_BASIC: _Rules = (
    (r"^pred_([bw])$", r"linear_\1"),
    (r"_", r"."),
    (r"\.b$", r".bias"),
    (r"\.w$", r".weight"),
    # Batch norm (affine or with statistics) and group norm share the name "norm".
    (r"bn\.(s|gamma)$", r"norm.weight"),
    (r"bn\.(bias|beta)$", r"norm.bias"),
    (r"bn\.(rm|running\.mean)$", r"norm.running_mean"),
    (r"bn\.(riv|running\.var)$", r"norm.running_var"),
    (r"gn\.s$", r"norm.weight"),
    (r"gn\.bias$", r"norm.bias"),
    # With "stem." in front, conv1 is not taken for the conv1 of a head.
    (r"^(res\.conv1\.norm|conv1)\.", r"stem.\1."),
    (r"^stem\.res\.", r"stem."),
    (r"\.branch1\.", r".shortcut."),
    (r"\.branch2a\.", r".conv1."),
    (r"\.branch2b\.", r".conv2."),
    (r"\.branch2c\.", r".conv3."),
)

_C2_DETECTOR: _Rules = (
    # The RPN head is shared by all levels of an FPN; Caffe2 names it after the first, fpn2.
    (r"conv\.rpn(\.fpn2)?", r"proposal_generator.rpn_head.conv"),
    (r"rpn\.bbox\.pred(\.fpn2)?", r"proposal_generator.rpn_head.anchor_deltas"),
    (r"rpn\.cls\.logits(\.fpn2)?", r"proposal_generator.rpn_head.objectness_logits"),
    (r"^bbox\.pred", r"bbox_pred"),
    (r"^cls\.score", r"cls_score"),
    (r"^fc6\.", r"box_head.fc1."),
    (r"^fc7\.", r"box_head.fc2."),
    (r"^head\.conv", r"box_head.conv"),
    # e.g. fpn.inner.res2.2.sum.lateral.weight and fpn.res2.2.sum.weight
    (r"^fpn\.inner\.res(\d)\..*?(\.norm)?\.(\w+)$", r"fpn_lateral\1\2.\3"),
    (r"^fpn\.res(\d)\..*?(\.norm)?\.(\w+)$", r"fpn_output\1\2.\3"),
    (r"\.(\[mask\]|mask)\.fcn(?=\d)", r"mask_head.mask_fcn"),
    (r"mask\.fcn\.logits", r"mask_head.predictor"),
    (r"conv5\.mask", r"mask_head.deconv"),
)

_TORCHVISION: _Rules = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer1\.", r"res2."),
    (r"^layer2\.", r"res3."),
    (r"^layer3\.", r"res4."),
    (r"^layer4\.", r"res5."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"\.downsample\.0\.", r".shortcut."),
    (r"\.downsample\.1\.", r".shortcut.norm."),
)


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_basic_c2_names(original_keys: Iterable[str]) -> list[str]:
    """Caffe2's names of a backbone's parameters -> ours, in the same order."""
    return [_rename(key, _C2_BASIC) for key in original_keys]


def _background_last(name: str, value: torch.Tensor) -> torch.Tensor:
    """Caffe2 has the background as class 0, we have it as the last one, and only where it is classified."""
    if name.startswith("cls_score."):
        return value.roll(-1, dims=0)
    if name.startswith("bbox_pred."):
        return value[4:]
    if name.startswith("mask_head.predictor."):
        return value[1:]
    return value


def convert_c2_detectron_names(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Caffe2's names of a detector's parameters -> ours, with the background class moved to its place.

    Returns:
        our name -> tensor; our name -> Caffe2's name.

    Raises:
        ValueError: two parameters would get one name.
    """
    original = {}
    for key, name in zip(weights, convert_basic_c2_names(weights), strict=True):
        name = _rename(name, _C2_DETECTOR)
        if name in original:
            raise ValueError(f"The Caffe2 weights '{key}' and '{original[name]}' would both be named '{name}'.")
        original[name] = key
    return {name: _background_last(name, weights[key]) for name, key in original.items()}, original


def convert_torchvision_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of torchvision's ResNets (``layer1.0.bn1.weight``) -> ours (``res2.0.conv1.norm.weight``)."""
    return {
        _rename(name, _TORCHVISION): value
        for name, value in weights.items()
        if not name.endswith(".num_batches_tracked")
    }


def _longest_suffix(name: str, known: Mapping[str, object]) -> str | None:
    """The longest of ``name``, and ``name`` without its first parts, that is known."""
    while name not in known:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return name


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, torch.Tensor],
    ckpt_state_dict: Mapping[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, torch.Tensor]:
    """Give the weights of a checkpoint the names that the model has for them.

    A model's parameter takes the weight whose name is its longest suffix of whole parts:
    ``backbone.bottom_up.res2.0.conv1.weight`` takes ``res2.0.conv1.weight`` rather than ``conv1.weight``.
    Weights that nothing takes keep their names; those of another shape as well, with a warning.

    Args:
        c2_conversion: the checkpoint has Caffe2's names; translate them first.

    Raises:
        ValueError: one weight fits two parameters.
    """
    if c2_conversion:
        ckpt_state_dict, _ = convert_c2_detectron_names(ckpt_state_dict)
    taken: dict[str, str] = {}
    for name, parameter in model_state_dict.items():
        key = _longest_suffix(name, ckpt_state_dict)
        if key is None:
            continue
        if parameter.shape != ckpt_state_dict[key].shape:
            logger.warning(
                f"'{key}' is not loaded: its shape is {tuple(ckpt_state_dict[key].shape)} in the checkpoint, "
                f"but {tuple(parameter.shape)} in the model ('{name}')."
            )
        elif key in taken:
            raise ValueError(f"'{key}' in the checkpoint fits two parameters: '{taken[key]}' and '{name}'.")
        else:
            taken[key] = name
    if not taken:
        logger.warning("No weight of the checkpoint has the name of a parameter of the model.")
        return dict(ckpt_state_dict)
    where = os.path.commonprefix(list(taken.values())).rpartition(".")[0] or "model"
    logger.info(f"{len(taken)} of {len(ckpt_state_dict)} weights matched with submodule {where}")
    return {taken.get(key, key): value for key, value in ckpt_state_dict.items()}
