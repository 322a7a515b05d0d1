"""Layer Cascade the slow way: later stages computed for the whole map and multiplied by the mask after every layer."""

import torch
from torch.nn import functional as F

from dyn_d2.methods.layer_cascade.inception_resnet import InceptionBlock, Reduction
from dyn_d2.methods.layer_cascade.mobile import MobileBlock


def masked_stage(parts, x, mask):
    """The modules of a later stage in evaluation, layer by layer.

    Args:
        x: (N, C, H, W), what the stage before knows: kernels of the first layer and of Reduction-B see all of it.
        mask: (N, 1, H, W), 1 where pixels remain.
    """
    for part in parts:
        if isinstance(part, InceptionBlock):
            up = part.conv2d(_branches(part, x, mask)) * mask
            x = (x + up).relu() * mask + x * (1 - mask) if part.relu else x + up
        elif isinstance(part, Reduction):
            wide = F.pad(x, (part.dilation,) * 4, value=float("-inf"))
            pooled = F.max_pool2d(wide, 3, 1, 0, part.dilation) * mask
            x = _cat([_branches(part, x, mask), pooled])
        elif isinstance(part, MobileBlock):
            x = _inverted(part, x, mask)
        else:
            x = _residual(part, x, mask)
    return x * mask


def _branches(part, x, mask):
    found = []
    for number in range(part.count):
        out = x
        for layer in getattr(part, f"branch{number}"):
            out = layer(out).relu() * mask
        found.append(out)
    return _cat(found)


def _residual(block, x, mask):
    out = x
    layers = [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
    for layer in layers[:-1]:
        out = layer(out).relu() * mask
    skip = x if block.shortcut is None else block.shortcut(x)
    return (layers[-1](out) + skip).relu() * mask


def _inverted(block, x, mask):
    out = x
    for layer in block.layers:
        out = layer.conv(out)
        out = (out if layer.relu is False else out.clamp(0, 6)) * mask
    return out + x * mask if block.skip else out


def _cat(parts):
    return torch.cat(parts, 1)
