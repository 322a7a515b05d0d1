"""Colours that are easy to tell apart."""

import colorsys

import numpy as np

_COUNT = 72
# Drawing must not disturb the random numbers of an experiment.
_generator = np.random.default_rng(0)


def _palette() -> np.ndarray:
    """(72, 3) RGB in [0, 1]. Steps of the golden ratio in hue keep neighbours far apart; brightness varies with it."""
    colours = [
        colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.9, 0.65, 1.0)[index % 3], (1.0, 0.9, 0.75, 0.6)[index // 2 % 4])
        for index in range(_COUNT)
    ]
    return np.asarray(colours, dtype=np.float32)


_PALETTE = _palette()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """All colours.

    Args:
        rgb: False gives BGR.
        maximum: value of full brightness, 255 or 1.

    Returns:
        (N, 3) float32.

    Raises:
        ValueError: another ``maximum``.
    """
    if maximum not in (255, 1):
        raise ValueError(f"maximum has to be 255 or 1, not {maximum}")
    return (_PALETTE if rgb else _PALETTE[:, ::-1]) * np.float32(maximum)


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One of the colours, (3,); arguments as in ``colormap``."""
    return colormap(rgb, maximum)[_generator.integers(_COUNT)]
