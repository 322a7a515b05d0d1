"""Features of images that a frozen backbone has seen before, from files: its part of a training step is then a look-up.

An image is known by its pixels, so nothing has to be known about data sets or augmentation: without flips an image has
one entry, with them two, and support images share those of the queries. Augmentation that never repeats a view finds
nothing here.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyn_d2.modeling.freeze import tensor_hash
from dyn_d2.utils.tensor_store import TensorStore, in_16_bits

logger = logging.getLogger(__name__)

Maps = dict[str, Tensor]


def is_frozen(module: nn.Module) -> bool:
    """Whether training leaves ``module`` as it is: no parameter learns and no statistics are gathered."""
    gathers = any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())
    return not gathers and not any(parameter.requires_grad for parameter in module.parameters())


class FrozenFeatures:
    """A folder with an entry for each image, in 16 bits; processes may share it.

    Features are rounded to 16 bits also where they have just been computed, so that what is found here changes no
    number.

    Attributes:
        computed, found: how many images were one or the other.
    """

    def __init__(self, folder: str | Path, limit_gb: float, names: Sequence[str]) -> None:
        """
        Args:
            folder: made when needed.
            limit_gb: how many gigabytes (10^9 bytes) it may take; beyond, what was not used for longest goes.
            names: of the feature maps.
        """
        self._store, self._names = TensorStore(folder, limit_gb, "MODEL.YOLO.CACHE_GB"), tuple(names)
        self._weights = ""
        self._changes: list[tuple[int, int]] = []
        self.computed = self.found = 0

    def __call__(
        self, backbone: nn.Module, images: Sequence[Tensor], view: str, compute: Callable[[Tensor], Maps]
    ) -> Maps:
        """
        Args:
            backbone: frozen.
            images: as they come from the data set.
            view: what else decides the features, such as the size and normalisation of images.
            compute: an image -> its features, with a batch dimension of 1.

        Returns:
            Name -> (B, C, H, W), float32.
        """
        begin = f"{self._of(backbone)}/{hashlib.sha256(view.encode()).hexdigest()[:8]}"
        rows = [
            self._features(f"{begin}/{name[:2]}/{name}", image, compute)
            for name, image in zip(map(_name, images), images, strict=True)
        ]
        device = next(backbone.parameters()).device
        # Widened before they are stacked: autocast on a CPU takes no float16.
        return {name: torch.stack([row[name].float() for row in rows]).to(device) for name in self._names}

    def _features(self, key: str, image: Tensor, compute: Callable[[Tensor], Maps]) -> Maps:
        """Those of one image, (C, H, W), see ``in_16_bits``."""
        found = self._store.read(key)
        if found is not None and found.keys() >= set(self._names):
            self.found += 1
            return found
        # Without mixed precision, whatever the training has: the entries are for all of them. And one by one, which on
        # a CPU takes half of the time, as its caches hold the maps of one image.
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            maps = compute(image)
        row = {name: in_16_bits(maps[name][0].cpu()) for name in self._names}
        self._store.write(key, row)
        self.computed += 1
        return row

    def _of(self, backbone: nn.Module) -> str:
        """A hash of the weights."""
        state = backbone.state_dict()
        # Loading others changes these.
        changes = [(tensor.data_ptr(), tensor._version) for tensor in state.values()]
        if changes != self._changes:
            digest = hashlib.sha256(" ".join(self._names).encode())
            for name, tensor in sorted(state.items()):
                digest.update(f"{name} {tensor_hash(tensor)} ".encode())
            self._changes, self._weights = changes, digest.hexdigest()[:16]
            logger.info(f"features of the frozen backbone are kept in {self._store.folder / self._weights}")
        return self._weights


def _name(image: Tensor) -> str:
    digest = hashlib.blake2b(f"{image.dtype} {tuple(image.shape)}".encode(), digest_size=16)
    digest.update(image.cpu().contiguous().numpy().data)
    return digest.hexdigest()
