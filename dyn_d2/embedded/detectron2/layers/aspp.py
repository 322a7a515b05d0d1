"""Atrous spatial pyramid pooling (DeepLab)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import get_norm
from .blocks import DepthwiseSeparableConv2d
from .wrappers import Conv2d


class ASPP(nn.Module):
    """Five parallel views of a feature map (1 x 1, three dilated 3 x 3, image pooling), concatenated and projected.

    Args:
        dilations: the three rates of the 3 x 3 convolutions.
        norm: name or callable for all convolutions but the one after pooling, whose input may be a single cell.
        pool_kernel_size: (kh, kw) of the pooling window, which has to divide the feature map; None pools all of it.
        dropout: rate on the output.
        use_depthwise_separable_conv: separable 3 x 3 convolutions, as in DeepLabV3+.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        norm: str | Callable,
        activation: Callable,
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ):
        super().__init__()
        if len(dilations) != 3:
            raise ValueError(f"ASPP takes 3 dilations, got {list(dilations)}.")
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def conv(channels: int, kernel_size: int, dilation: int = 1) -> nn.Module:
            layer = Conv2d(
                channels,
                out_channels,
                kernel_size,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
                activation=deepcopy(activation),
            )
            c2_xavier_fill(layer)
            return layer

        def separable(dilation: int) -> nn.Module:
            first = {"norm1": norm, "activation1": deepcopy(activation)}
            second = {"norm2": norm, "activation2": deepcopy(activation)}
            return DepthwiseSeparableConv2d(in_channels, out_channels, 3, dilation, dilation, **first, **second)

        dilated = separable if use_depthwise_separable_conv else partial(conv, in_channels, 3)
        self.convs = nn.ModuleList([conv(in_channels, 1), *(dilated(rate) for rate in dilations)])
        pool = nn.AdaptiveAvgPool2d(1) if pool_kernel_size is None else nn.AvgPool2d(pool_kernel_size, stride=1)
        pooled = Conv2d(in_channels, out_channels, 1, activation=deepcopy(activation))
        c2_xavier_fill(pooled)
        self.convs.append(nn.Sequential(pool, pooled))
        self.project = conv(5 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        if self.pool_kernel_size and any(n % k for n, k in zip(size, self.pool_kernel_size, strict=True)):
            raise ValueError(
                f"pool_kernel_size {tuple(self.pool_kernel_size)} of ASPP must divide its input of size {tuple(size)}."
            )
        views = [branch(x) for branch in self.convs]
        views[-1] = F.interpolate(views[-1], size=size, mode="bilinear", align_corners=False)
        return F.dropout(self.project(torch.cat(views, dim=1)), self.dropout, self.training)
