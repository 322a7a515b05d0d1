"""Message passing between the pixels of small maps, compiled for CPU and GPU (Zhou, Wang, Jiao, Darrell and Yu,
"Learning saliency propagation for semi-supervised instance segmentation", CVPR 2020).

One step replaces each pixel by a weighted sum over the r x r window around it, with weights of its own. All steps are
one operator, and its backward pass computes the states in between again instead of storing them.

Shape shorthand: N instances, C channels, r window, H x W pixels. Taps are in the order of ``F.unfold``: row by row.
"""

import functools
import itertools
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from dyn_d2.ops.build import load_kernel

NORMALIZATIONS = ("random_walk", "symmetric", "none")
_FOLDER = Path(__file__).parent
_CPU_SOURCES = tuple(_FOLDER / f"message_passing{end}" for end in (".cpp", ".h"))
_CUDA_SOURCES = tuple(_FOLDER / f"message_passing{end}" for end in (".cu", ".h", "_kernels.cuh"))


def message_passing(
    x: Tensor, weights: Tensor, steps: int | None = None, normalize: str = "random_walk", eps: float = 1e-5
) -> Tensor:
    """``steps`` times ``x[u, v] <- sum over the window at (u, v) of K[u, v][p, q] x[p, q]``; x is 0 outside of the map.

    float16 and bfloat16 are summed, and kept between steps, in float32. If the dtypes differ (as under autocast), both
    are promoted to the wider one. There are no second derivatives.

    Args:
        x: (N, C, H, W).
        weights: (N, C, r * r, H, W), or (N, 1, r * r, H, W) for all channels, r odd. Not negative, unless
            ``normalize`` is "none"; this is not checked.
        steps: T of the paper; default max(H, W), after which every pixel has heard from every other one if r is 3.
        normalize: what K is. With d[u, v] = eps + the sum of the weights of pixel (u, v), of all r * r, outside of the
            map too:
            "random_walk": weights / d[u, v]. So borders lose what they would pass to the outside, as in the published
            code.
            "symmetric": weights / sqrt(d[u, v] d[p, q]).
            "none": the weights themselves, which the caller has normalised.
        eps: keeps d above 0.

    Returns:
        (N, C, H, W) in the dtype of the inputs.

    Raises:
        ValueError: shapes do not fit, the window is even, or an argument is out of range.
    """
    steps = _check(x, weights, steps, normalize, eps)
    dtype = torch.promote_types(x.dtype, weights.dtype)
    x, weights = x.to(dtype), weights.to(dtype)
    if not _runs_compiled(x, weights.shape[2], steps):
        return message_passing_reference(x, weights, steps, normalize, eps)
    if normalize != "symmetric":
        return torch.ops.dyn_d2.message_passing(x, weights, steps, normalize == "random_walk", eps)
    # With D the diagonal matrix of d: (D^-1/2 W D^-1/2)^T = D^1/2 (D^-1 W)^T D^-1/2.
    wide = _summed_in(dtype)
    root = (weights.sum(2, dtype=wide) + eps).sqrt()
    return (root * torch.ops.dyn_d2.message_passing(x / root, weights.to(wide), steps, True, eps)).to(dtype)


def message_passing_reference(
    x: Tensor, weights: Tensor, steps: int | None = None, normalize: str = "random_walk", eps: float = 1e-5
) -> Tensor:
    """The same step by step and tap by tap in torch, with all states kept for the backward pass."""
    steps = _check(x, weights, steps, normalize, eps)
    dtype = torch.promote_types(x.dtype, weights.dtype)
    state, kernels = x.to(_summed_in(dtype)), weights.to(_summed_in(dtype))
    window = _odd_root(weights.shape[2])
    degree = kernels.sum(2) + eps
    if normalize == "random_walk":
        kernels = kernels / degree[:, :, None]
    elif normalize == "symmetric":
        # Beyond the border, where there is nothing to pass, anything but 0 will do.
        degrees = torch.stack(_neighbours(degree, window, 1.0), 2)
        kernels = kernels / (degree[:, :, None] * degrees).sqrt()
    for _ in range(steps):
        around = _neighbours(state, window, 0.0)
        passed = (kernel * values for kernel, values in zip(kernels.unbind(2), around, strict=True))
        state = sum(passed, torch.zeros_like(state))
    return state.to(dtype, copy=True)


def _neighbours(maps: Tensor, window: int, outside: float) -> list[Tensor]:
    """r * r tensors in the shape of ``maps``: for every pixel its neighbour of that tap."""
    height, width = maps.shape[2:]
    padded = F.pad(maps, (window // 2,) * 4, value=outside)
    return [padded[:, :, y : y + height, x : x + width] for y, x in itertools.product(range(window), repeat=2)]


def _odd_root(number: int) -> int:
    """The smallest odd integer whose square is not smaller. (torch.compile cannot follow math.isqrt.)"""
    root = 1
    while root**2 < number:
        root += 2
    return root


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check(x: Tensor, weights: Tensor, steps: int | None, normalize: str, eps: float) -> int:
    """Refuses what does not fit together; returns the number of steps."""
    if x.dim() != 4 or weights.dim() != 5:
        raise ValueError(
            "message_passing takes x (N, C, H, W) and weights (N, C or 1, r * r, H, W), "
            f"not {tuple(x.shape)} and {tuple(weights.shape)}"
        )
    instances, channels, height, width = x.shape
    taps = weights.shape[2]
    if _odd_root(taps) ** 2 != taps:
        raise ValueError(f"dimension 2 of weights has to be r * r with an odd window r (1, 9, 25, ...), not {taps}")
    wanted = (instances, weights.shape[1], taps, height, width)
    if tuple(weights.shape) != wanted or weights.shape[1] not in (1, channels):
        raise ValueError(
            f"weights {tuple(weights.shape)} do not fit x {tuple(x.shape)}: they have to be "
            f"({instances}, {channels} or 1, {taps}, {height}, {width})"
        )
    if not (x.is_floating_point() and weights.is_floating_point()) or x.device != weights.device:
        raise ValueError(
            "x and weights have to be floating point numbers on one device, "
            f"not {x.dtype} on {x.device} and {weights.dtype} on {weights.device}"
        )
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize has to be one of {NORMALIZATIONS}, not {normalize!r}")
    if eps < 0:
        raise ValueError(f"eps has to be 0 or more, not {eps}")
    if steps is None:
        return max(height, width)
    if steps < 0:
        raise ValueError(f"steps has to be 0 or more, not {steps}")
    return steps


def _runs_compiled(x: Tensor, taps: int, steps: int) -> bool:
    device = x.device.type
    if device not in ("cpu", "cuda") or not load(device):
        return False
    if device == "cpu":
        return True
    size = torch.finfo(_summed_in(x.dtype)).bits // 8
    height, width = x.shape[2:]
    return _bytes_on_chip(height, width, taps, steps, size) <= _largest_block_memory()


@torch.compiler.assume_constant_result
def load(device: str = "cpu") -> bool:
    """Whether the compiled operator can be used on "cpu" or "cuda"; the first call may compile it."""
    if not load_kernel("message_passing", _CPU_SOURCES):
        return False
    _register()
    return device == "cpu" or load_kernel("message_passing_cuda", _CUDA_SOURCES)


@torch.compiler.assume_constant_result
def _largest_block_memory() -> int:
    """Bytes of shared memory that one block of threads can have on every GPU of this machine."""
    devices = range(torch.cuda.device_count())
    properties = (torch.cuda.get_device_properties(device) for device in devices)
    return min(each.shared_memory_per_block_optin for each in properties)  # type: ignore[attr-defined]


def _bytes_on_chip(height: int, width: int, taps: int, steps: int, size: int) -> int:
    """Shared memory of the GPU's backward kernel (the forward kernel needs less); see message_passing.cu.

    Args:
        size: bytes of a number in which sums are kept.
    """
    border = _odd_root(taps) - 1
    plane = (height + border) * (width + border)
    segment = 1
    while segment**2 < steps:
        segment += 1
    planes = segment + max(-(-steps // segment), 1) + 2
    kernels = 0 if taps == 9 and height * width <= 1024 else 2 * taps * height * width
    return size * (plane * planes + kernels)


@functools.cache
def _register() -> None:
    """What torch has to know beside the kernels: shapes without computing, derivatives, and costs."""
    kernels = torch.ops.dyn_d2
    torch.library.register_fake("dyn_d2::message_passing", _forward_shape)
    torch.library.register_fake("dyn_d2::message_passing_backward", _backward_shape)
    torch.library.register_autograd("dyn_d2::message_passing", _backward, setup_context=_save)
    torch.library.register_autograd("dyn_d2::message_passing_backward", _refuse_second_derivative)
    register_flop_formula(kernels.message_passing)(_flops)
    register_flop_formula(kernels.message_passing_backward)(_backward_flops)


def _refuse_second_derivative(ctx, *grads) -> None:
    # Without this, torch would take them to be 0.
    raise NotImplementedError("message_passing has no second derivatives; message_passing_reference has them.")


def _flops(x_shape, weights_shape, steps, normalize, eps, **_) -> int:
    """Twice the multiply-adds of all steps, as torch.utils.flop_counter has it."""
    return 2 * math.prod(x_shape) * weights_shape[2] * steps


def _backward_flops(grad_shape, *arguments, **_) -> int:
    """States once more, then their gradients and those of the kernels."""
    return 3 * _flops(*arguments)


def _forward_shape(x, weights, steps, normalize, eps) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward_shape(grad, x, weights, steps, normalize, eps) -> tuple[Tensor, Tensor]:
    grad_x, grad_weights = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, weights))
    return grad_x, grad_weights


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[2:]


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.dyn_d2.message_passing_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *grads, None, None, None
