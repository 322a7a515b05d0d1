"""Normalisation layers: frozen, synchronised and channel-wise, and ``get_norm`` that builds them by name."""

from collections.abc import Callable

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.utils import comm


def _per_channel(vector: Tensor) -> Tensor:
    return vector.reshape(1, -1, 1, 1)


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm2d with statistics and affine parameters that never change; all four are buffers.

    A new layer is the identity. Caffe2 backbones come with ``weight`` and ``bias`` only, into which the statistics are
    folded already; loading such a file leaves the identity statistics as they are.
    """

    # 1: no statistics in the file; 2 and 3: all four buffers.
    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        ones, zeros = torch.ones(num_features), torch.zeros(num_features)
        identity = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones - eps}
        for name, value in identity.items():
            self.register_buffer(name, value.clone())
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # The backward pass of the fused operator would also compute gradients for weight and bias; an explicit
        # affine map does not.
        scale, shift = self.affine_map()
        return x * _per_channel(scale).to(x.dtype) + _per_channel(shift).to(x.dtype)

    def affine_map(self) -> tuple[Tensor, Tensor]:
        """The layer as ``x * scale + shift``, two vectors of length ``num_features``."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        if (local_metadata.get("version") or 1) < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Turn every BatchNorm2d and SyncBatchNorm of ``module`` into this class, in place below the root.

        Returns:
            ``module`` itself, or its replacement where it is a normalisation layer.
        """
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            for name, child in module.named_children():
                setattr(module, name, cls.convert_frozen_batchnorm(child))
            return module
        frozen = cls(module.num_features, module.eps).to(module.running_mean.device)
        if module.affine:
            frozen.weight, frozen.bias = module.weight.detach().clone(), module.bias.detach().clone()
        frozen.running_mean, frozen.running_var = module.running_mean, module.running_var
        frozen.num_batches_tracked = module.num_batches_tracked
        return frozen.train(module.training)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over all processes by plain all-reduce, for workers with unequal batches.

    Args:
        stats_mode: "": every worker's mean and mean square count the same; "N": weighted by its batch size, so that a
            worker may have an empty batch. Both are exact where all workers have the same (N, H, W), "N" where they
            have the same (H, W).
    """

    def __init__(self, *args, stats_mode: str = "", **kwargs):
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise ValueError(f"stats_mode of NaiveSyncBatchNorm is '' or 'N', not {stats_mode!r}.")
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        if self._stats_mode == "" and len(input) == 0:
            raise ValueError("naiveSyncBN cannot train on an empty batch; use norm 'naiveSyncBN_N'.")
        x = input.float() if input.dtype == torch.float16 else input  # half precision cannot hold mean squares
        mean, mean_square, momentum = self._reduced_moments(x)
        var = mean_square - mean * mean
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        with torch.no_grad():
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (var - self.running_var)
        return (x * _per_channel(scale) + _per_channel(shift)).to(input.dtype)

    def _reduced_moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Mean and mean square per channel over all workers, and the momentum of this step."""
        batch, channels = x.shape[:2]
        if batch > 0:
            moments = torch.cat([x.mean(dim=(0, 2, 3)), (x * x).mean(dim=(0, 2, 3)), x.new_ones(1)])
        else:
            moments = x.new_zeros(2 * channels + 1) + x.sum()  # zero, but part of the graph as on other workers
        weight = 1 if self._stats_mode == "" else batch
        total = differentiable_all_reduce(moments * weight)
        count = total[-1].detach()
        mean, mean_square = (total[:-1] / count.clamp(min=1)).split(channels)
        return mean, mean_square, self.momentum * count.clamp(max=1)  # no sample anywhere: no update


class CycleBatchNormList(nn.ModuleList):
    """One set of statistics per input domain, used in turn, with one shared affine map.

    "Rethinking 'Batch' in BatchNorm", Sec. 5.2. The caller always runs it a multiple of ``length`` times.
    """

    def __init__(self, length: int, bn_class: type[nn.Module] = nn.BatchNorm2d, **kwargs):
        self._affine = kwargs.pop("affine", True)
        super().__init__([bn_class(**kwargs, affine=False) for _ in range(length)])
        if self._affine:
            self.weight = nn.Parameter(torch.ones(self[0].num_features))
            self.bias = nn.Parameter(torch.zeros(self[0].num_features))
        self._pos = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        return x * _per_channel(self.weight) + _per_channel(self.bias) if self._affine else x

    def extra_repr(self) -> str:
        return f"affine={self._affine}"


class LayerNorm(nn.LayerNorm):
    """Normalises an (N, C, H, W) input over its channels, at each position by itself."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6):
        super().__init__(normalized_shape, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build a normalisation layer.

    Args:
        norm: a name ("" for none), or a callable that takes the number of channels.

    Raises:
        ValueError: unknown name.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise ValueError(f"Unknown normalisation {norm!r}: use '' or one of {', '.join(_NORMS)}.")
        norm = _NORMS[norm]
    return norm(out_channels)
