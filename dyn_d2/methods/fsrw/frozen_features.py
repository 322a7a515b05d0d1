"""Features of images that a frozen backbone has seen before, from files: its part of a training step is then a look-up.

An image is known by its pixels, so nothing has to be known about data sets or augmentation: without flips an image has
one entry, with them two, and support images share those of the queries. Augmentation that never repeats a view finds
nothing here.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyn_d2.utils.atomic import atomic_write

logger = logging.getLogger(__name__)

Maps = dict[str, Tensor]


def is_frozen(module: nn.Module) -> bool:
    """Whether training leaves ``module`` as it is: no parameter learns and no statistics are gathered."""
    gathers = any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())
    return not gathers and not any(parameter.requires_grad for parameter in module.parameters())


class FrozenFeatures:
    """A folder with one file for each image, in 16 bits; processes may share it.

    Features are rounded to 16 bits also where they have just been computed, so that what is found here changes no
    number. Attributes: ``computed``, ``found``, how many images were one or the other.
    """

    def __init__(self, folder: str | Path, limit_gb: float, names: Sequence[str]) -> None:
        """
        Args:
            folder: made when needed. Other weights get a sub-folder of their own.
            limit_gb: nothing is written any more when the folder has so many gigabytes (10^9 bytes).
            names: of the feature maps.
        """
        self._root, self._limit, self._names = Path(folder), limit_gb * 1e9, tuple(names)
        self._folder: Path | None = None
        self._size = 0.0
        self._weights: tuple[int, ...] = ()
        self.computed = self.found = 0

    def __call__(
        self,
        backbone: nn.Module,
        images: Sequence[Tensor],
        view: str,
        shapes: Mapping[str, tuple[int, int, int]],
        compute: Callable[[Tensor], Maps],
    ) -> Maps:
        """
        Args:
            backbone: frozen.
            images: as they come from the data set.
            view: what else decides the features, such as the size and normalisation of images.
            shapes: name -> (C, H, W) of the features.
            compute: an image -> its features, with a batch dimension of 1.

        Returns:
            Name -> (B, C, H, W), float32.
        """
        folder = self._of_weights(backbone, view)
        paths = [folder / name[:2] / f"{name}.npy" for name in map(_name, images)]
        length = sum(int(np.prod(shapes[name])) for name in self._names)
        rows = [_read(path, length) for path in paths]
        missing = [number for number, row in enumerate(rows) if row is None]
        if missing:
            # Without mixed precision, whatever the training has: the entries are for all of them.
            # And one by one, which on a CPU takes half of the time, as its caches hold the maps of one image.
            with torch.no_grad(), torch.autocast(images[0].device.type, enabled=False):
                for number in missing:
                    maps = compute(images[number])
                    row = torch.cat([maps[name].flatten() for name in self._names]).to("cpu", torch.float16)
                    rows[number] = row
                    self._write(paths[number], row)
        self.computed += len(missing)
        self.found += len(rows) - len(missing)
        device = next(backbone.parameters()).device
        stacked = torch.stack([row.float() for row in rows if row is not None]).to(device)  # autocast takes no float16
        parts = stacked.split([int(np.prod(shapes[name])) for name in self._names], dim=1)
        return {name: part.unflatten(1, shapes[name]) for name, part in zip(self._names, parts, strict=True)}

    def _of_weights(self, backbone: nn.Module, view: str) -> Path:
        """The folder for these weights and views."""
        state = backbone.state_dict()
        changes = tuple(tensor._version for tensor in state.values())  # loading others changes these
        if self._folder is None or changes != self._weights:
            digest = hashlib.sha256(" ".join(self._names).encode())
            for name, tensor in sorted(state.items()):
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
            self._weights, self._folder = changes, self._root / digest.hexdigest()[:16]
            self._size = sum(path.stat().st_size for path in self._root.glob("*/*/*/*.npy"))
            logger.info(
                f"features of the frozen backbone are kept in {self._folder} ({self._size / 1e9:.2f} GB in all)"
            )
        return self._folder / hashlib.sha256(view.encode()).hexdigest()[:8]

    def _write(self, path: Path, row: Tensor) -> None:
        if self._size >= self._limit:
            return
        with atomic_write(path, "wb") as file:
            np.save(file, row.numpy())
        self._size += row.numel() * 2
        if self._size >= self._limit:
            logger.warning(
                f"{self._root} holds {self._limit / 1e9:g} GB of features, as much as MODEL.YOLO.CACHE_GB allows: "
                "those of other images are computed anew each time."
            )


def _name(image: Tensor) -> str:
    digest = hashlib.blake2b(f"{image.dtype} {tuple(image.shape)}".encode(), digest_size=16)
    digest.update(image.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _read(path: Path, length: int) -> Tensor | None:
    """The numbers in a file; None where there is none, or one that is damaged and will be written anew."""
    try:
        row = np.load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        row = None
    if row is None or row.dtype != np.float16 or row.shape != (length,):
        logger.warning(f"{path} is damaged: the features are computed anew.")
        return None
    return torch.from_numpy(row)
