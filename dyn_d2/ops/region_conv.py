"""Convolution and pooling on chosen pixels only: gather, multiply, scatter (Li et al., Not All
Pixels Are Equal, CVPR 2017, Sec. 3.2).

Shape shorthand: N maps of H x W, n chosen pixels of all of them, C channels, C' output channels, K taps of a kernel.
Values of chosen pixels are rows, (n, C), in the order of their places in the memory of an (N, H, W) map. A map in the
memory layout channels_last is a table of such rows for all pixels (``map_rows``), without a copy.

Neighbours are gathered some hundred pixels at a time, so that they are still in the cache when they are multiplied. On
a CPU oneDNN multiplies, with weights that it has laid out before: as fast as its dense convolutions, and about twice as
fast as ``torch.mm`` on the processor where both were measured.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from dyn_d2.ops.onednn import Limit, has_operators, limit_of, pointwise, rectify_

_CPU_VALUES = 2**19  # gathered at a time for each CPU thread, which leaves room in its cache
_PIXELS = 128, 256  # least and most that each CPU thread works on at a time
_MULTIPLE = 32  # rows of a product are a multiple: oneDNN prepares anew for each number of rows, in half a millisecond
_GPU_VALUES = 2**26  # gathered at a time on other devices


def _available() -> bool:
    return has_operators("_reorder_linear_weight", "_linear_pointwise")


class Region:
    """Chosen pixels of N maps. Tables of neighbours are kept, so that all layers of a stage share them.

    Attributes:
        index: (n,) int64, ascending: places of the pixels in a flat (N, H, W) map.
        size: N, H, W.
    """

    def __init__(self, index: Tensor, size: Sequence[int]) -> None:
        images, height, width = size
        self.index, self.size = index, (images, height, width)
        self._places: Tensor | None = None
        self._taps: dict[tuple, Taps] = {}

    @classmethod
    def of(cls, mask: Tensor) -> "Region":
        """The pixels where ``mask`` (N, H, W) is true."""
        return cls(mask.flatten().nonzero().squeeze(1), mask.shape)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def mask(self) -> Tensor:
        """(N, H, W) bool."""
        images, height, width = self.size
        mask = torch.zeros(images * height * width, dtype=torch.bool, device=self.index.device)
        mask[self.index] = True
        return mask.view(self.size)

    def counts(self) -> Tensor:
        """(N,) int64: how many pixels of each map are chosen."""
        images, height, width = self.size
        return torch.bincount(self.index // (height * width), minlength=images)

    def subset(self, keep: Tensor) -> "Region":
        """The pixels whose row of ``keep``, (n,) bool, is true."""
        return Region(self.index[keep], self.size)

    def places(self) -> Tensor:
        """(N * H * W,) int64: the row of each pixel, -1 where it is not chosen."""
        if self._places is None:
            images, height, width = self.size
            self._places = self.index.new_full((images * height * width,), -1)
            self._places[self.index] = torch.arange(len(self), device=self.index.device)
        return self._places

    def rows_in(self, outer: "Region") -> Tensor:
        """(n,) int64: the rows that these pixels have in ``outer``, which contains them."""
        return outer.places()[self.index]

    def taps(self, kernel: tuple[int, int], dilation: tuple[int, int], source: "Region | None" = None) -> "Taps":
        """The neighbours of each pixel under a kernel of odd sides.

        Args:
            source: of the rows that will be gathered: this region, another one, or None for all pixels of the maps.

        Raises:
            ValueError: a side of the kernel is even.
        """
        key = kernel, dilation, "own" if source is self else source  # no cycle of references
        if key not in self._taps:
            self._taps[key] = Taps(self._neighbours(kernel, dilation, source))
        return self._taps[key]

    def _neighbours(self, kernel: tuple[int, int], dilation: tuple[int, int], source: "Region | None") -> Tensor:
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise ValueError(f"region_conv: a kernel of {kernel[0]} x {kernel[1]} has no middle; use odd sides.")
        _, height, width = self.size
        steps = [
            (torch.arange(kernel[i], device=self.index.device) - kernel[i] // 2) * dilation[i] for i in (0, 1)
        ]  # from the pixel to its neighbours
        y = (self.index // width % height)[:, None, None] + steps[0][:, None]
        x = (self.index % width)[:, None, None] + steps[1]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        places = self.index[:, None, None] + steps[0][:, None] * width + steps[1]
        if source is not None:
            places = source.places()[places.clamp(0, len(source.places()) - 1)]
        return torch.where(inside, places, -1).flatten(1)


class Taps:
    """Which rows a convolution or pooling reads for each of n pixels.

    Attributes:
        index: (n, K) int64; -1 for a neighbour that is not there.
    """

    def __init__(self, index: Tensor) -> None:
        self.index = index
        self._pieces: dict[int, list[tuple[int, int, Tensor, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self.index)

    def pieces(self, rows: Tensor, fill: float = 0.0) -> Iterator[tuple[int, int, Tensor]]:
        """Gathered neighbours, piece by piece.

        Yields:
            first and last (exclusive) pixel, and the values (m, K, C) of their neighbours, ``fill`` where there is
            none, which stay until the next piece. There may be up to 31 more pixels than asked for at the end, whose
            values mean nothing.
        """
        taps, channels = self.index.shape[1], rows.shape[1]
        step, buffer = _step(rows, taps * channels), None
        if step not in self._pieces:
            self._pieces[step] = [self._piece(start, step) for start in range(0, len(self), step)]
        for start, end, index, empty in self._pieces[step]:
            if torch.is_grad_enabled() and rows.requires_grad:
                values = rows.index_select(0, index)
            else:  # one piece of memory for all
                buffer = rows.new_empty(len(index), channels) if buffer is None else buffer
                values = torch.index_select(rows, 0, index, out=buffer[: len(index)])
            yield start, end, values.index_fill_(0, empty, fill).view(-1, taps, channels)

    def _piece(self, start: int, step: int) -> tuple[int, int, Tensor, Tensor]:
        part = self.index[start : start + step]
        empty = (part.flatten() < 0).nonzero().squeeze(1)
        more = -len(part) % _MULTIPLE
        return start, start + len(part), F.pad(part, (0, 0, 0, more)).flatten().clamp_(min=0), empty


def _step(rows: Tensor, values: int) -> int:
    """How many pixels to work on at a time where each needs that many values."""
    values = max(values, 1)
    if rows.device.type != "cpu":
        return max(1024, _GPU_VALUES // values) // _MULTIPLE * _MULTIPLE
    least, most = _PIXELS
    return min(max(_CPU_VALUES // values // _MULTIPLE * _MULTIPLE, least), most) * torch.get_num_threads()


def map_rows(x: Tensor) -> Tensor:
    """The table (N * H * W, C) of all pixels of (N, C, H, W); a view where x is in the layout channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_map(rows: Tensor, region: Region, around: Tensor | None = None) -> Tensor:
    """(N, C, H, W) in the layout channels_last with the rows (n, C) in their places.

    Args:
        around: (N * H * W, C), what the other pixels are; None for 0.
    """
    images, height, width = region.size
    table = rows.new_zeros(images * height * width, rows.shape[1]) if around is None else around.to(rows.dtype)
    return table.index_copy(0, region.index, rows).view(images, height, width, -1).permute(0, 3, 1, 2)


class RegionMatrix:
    """The weights of a convolution as they are now, ready to be multiplied with gathered neighbours; for inference.

    In float32 on a CPU oneDNN multiplies, with weights in the layout that it likes; else ``torch.addmm``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """
        Args:
            weight: (C', C, kh, kw), as ``conv2d`` takes it; with groups there is ``GroupedRegionMatrix``.
            bias: (C',) or None for 0.
        """
        self.kernel, self.outputs = tuple(weight.shape[2:]), len(weight)
        matrix = weight.detach().permute(0, 2, 3, 1).reshape(self.outputs, -1).contiguous()  # taps, then channels
        self._bias = matrix.new_zeros(self.outputs) if bias is None else bias.detach()
        self._packed = matrix.device.type == "cpu" and matrix.dtype == torch.float32 and _available()
        self._matrix = torch.ops.mkldnn._reorder_linear_weight(matrix, _PIXELS[1]) if self._packed else matrix.t()

    def times(self, values: Tensor, relu: Limit = False) -> Tensor:
        """(m, K * C) -> (m, C')."""
        limit = limit_of(relu)
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(values, self._matrix, self._bias, *pointwise(limit), "")
        return rectify_(torch.addmm(self._bias.to(values.dtype), values, self._matrix.to(values.dtype)), limit)

    def __call__(self, rows: Tensor, taps: Taps | None, total: Tensor | None = None, *, relu: Limit = False) -> Tensor:
        """activation(convolution + bias [+ a sum]) of the chosen pixels.

        Args:
            rows: what is gathered from; (n, C) of the chosen pixels themselves for a kernel of 1 x 1 without ``taps``.
            total: (n, C'), to which the result is added before the activation, in place.
            relu: the activation: False for none, True for ReLU, 6.0 for ReLU6.

        Returns:
            (n, C'); ``total`` itself if that is given.
        """
        out = total
        for start, end, values in _pieces(rows, taps):
            part = self.times(values, relu if total is None else False)[: end - start]
            if total is not None:
                rectify_(total[start:end].add_(part), limit_of(relu))
            elif start == 0 and end == (len(rows) if taps is None else len(taps)):
                return part
            else:
                out = rows.new_empty(len(rows) if taps is None else len(taps), self.outputs) if out is None else out
                out[start:end] = part
        return rows.new_empty(0, self.outputs) if out is None else out


def _pieces(rows: Tensor, taps: Taps | None) -> Iterator[tuple[int, int, Tensor]]:
    """Values to multiply, (m, K * C), with the pixels that they are for."""
    if taps is not None:
        for start, end, values in taps.pieces(rows):
            yield start, end, values.flatten(1)
        return
    step = _step(rows, rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        more = -len(part) % _MULTIPLE
        yield start, start + len(part), F.pad(part, (0, 0, 0, more)) if more else part


class _RegionConv(torch.autograd.Function):
    """Keeps rows, not the K times as many values that are gathered from them; these are gathered again backward."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, taps: Taps | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.taps = taps
        return RegionMatrix(weight.to(rows.dtype))(rows, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (rows, weight), taps = ctx.saved_tensors, ctx.taps
        grad = grad.to(rows.dtype)
        matrix = weight.to(rows.dtype).permute(0, 2, 3, 1).reshape(len(weight), -1)
        transposed = RegionMatrix(matrix.t().reshape(-1, len(weight), 1, 1)) if ctx.needs_input_grad[0] else None
        grad_rows = torch.zeros_like(rows, memory_format=torch.contiguous_format) if transposed else None
        grad_weight = torch.zeros_like(matrix) if ctx.needs_input_grad[1] else None
        for start, end, values in _pieces(rows, taps):
            part = grad[start:end].contiguous()
            if grad_weight is not None:
                grad_weight.addmm_(part.t(), values[: end - start])
            if transposed is not None and grad_rows is not None:
                _spread(grad_rows, transposed(part, None), start, end, taps)
        if grad_weight is not None:
            outputs, channels, *kernel = weight.shape
            grad_weight = grad_weight.view(outputs, *kernel, channels).permute(0, 3, 1, 2).to(weight.dtype)
        return grad_rows, grad_weight, None


def _spread(grad_rows: Tensor, values: Tensor, start: int, end: int, taps: Taps | None) -> None:
    """Add gradients (m, K * C) of gathered values to the rows that they were gathered from."""
    if taps is None:
        grad_rows[start:end] = values
        return
    index = taps.index[start:end].flatten()
    values = values.view(len(index), -1).index_fill_(0, (index < 0).nonzero().squeeze(1), 0.0)
    grad_rows.index_add_(0, index.clamp(min=0), values)


def region_conv(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, taps: Taps | None = None, groups: int = 1
) -> Tensor:
    """Convolution of stride 1 on chosen pixels, with gradients for rows, weight and bias.

    Args:
        rows: (m, C), what is gathered from: the values of a region, or of all pixels (``map_rows``).
        weight: (C', C / groups, kh, kw).
        bias: (C',).
        taps: of the chosen pixels among ``rows``; None for a kernel of 1 x 1 on the pixels that ``rows`` are of.
        groups: of channels, as in ``conv2d``.

    Returns:
        (n, C'): what the dense convolution gives at the chosen pixels, if rows that are not there are 0.

    Raises:
        ValueError: weight, rows and taps do not fit each other.
    """
    kernel = weight.shape[2] * weight.shape[3]
    fits = rows.shape[1] == weight.shape[1] * groups and len(weight) % groups == 0
    if not fits or kernel != (1 if taps is None else taps.index.shape[1]):
        raise ValueError(
            f"region_conv: a weight of {tuple(weight.shape)} in {groups} groups does not fit rows of {rows.shape[1]} "
            f"channels and {1 if taps is None else taps.index.shape[1]} taps."
        )
    if groups > 1:
        from .grouped_region import grouped_region_conv

        out = grouped_region_conv(rows, weight, groups, taps)
    else:
        out = _RegionConv.apply(rows, weight, taps)
    return out if bias is None else out + bias.to(out.dtype)


def region_max_pool(rows: Tensor, taps: Taps) -> Tensor:
    """(n, C): the largest value among the neighbours of each chosen pixel, channel by channel; arguments as above."""
    parts = [values[: end - start].amax(1) for start, end, values in taps.pieces(rows, float("-inf"))]
    return torch.cat(parts) if parts else rows[:0]


if _available():  # so that torch's FlopCounterMode sees it; packed weights do not tell their shape

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(values: list[int], *_, out_shape: list[int], **__) -> int:
        return 2 * values[0] * values[1] * out_shape[-1]
