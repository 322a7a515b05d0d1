"""Weights of DarkNet-19 as DarkNet writes them (``darknet19_448.conv.23``, ``darknet19_448.weights``).

A header of three int32 (version: major, minor, revision) and the number of images seen (int64 from version 0.2 on,
int32 before), then float32 numbers. Of each convolution with batch norm: its biases, scales, running means, running
variances, weights (out, in, k, k). The input channels are red, green, blue.
"""

import os

import numpy as np
import torch
from torch import Tensor

from .darknet import STAGES

SUFFIXES = (".weights", ".conv.23")


def is_darknet(path: str) -> bool:
    """Whether the file's name is that of a DarkNet file."""
    return path.endswith(SUFFIXES)


def read_darknet(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors of the backbone DarkNet19, named as in a detector; what follows its 18 convolutions is left unread.

    Raises:
        ValueError: the file is too short, or no such file.
    """
    with open(path, "rb") as file:
        header = _numbers(file.read(12), "<i4")
        if len(header) < 3 or not (0 <= header[0] < 1000 and 0 <= header[1] < 1000):
            raise ValueError(f"{path} does not begin like a file of DarkNet.")
        file.read(8 if header[0] * 10 + header[1] >= 2 else 4)
        numbers = torch.from_numpy(_numbers(file.read(), "<f4").astype(np.float32))
    tensors: dict[str, Tensor] = {}
    at, in_channels, number = 0, 3, 0
    for widths in STAGES:
        for place, channels in enumerate(widths):
            number += 1
            name, kernel = f"backbone.conv{number}.", 1 if place % 2 else 3
            for part in ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "weight"):
                shape = (channels, in_channels, kernel, kernel) if part == "weight" else (channels,)
                size = int(np.prod(shape))
                if at + size > len(numbers):
                    raise ValueError(f"{path} ends within convolution {number}: it is no DarkNet-19, or cut off.")
                tensors[name + part] = numbers[at : at + size].reshape(shape).clone()
                at += size
            in_channels = channels
    return tensors


def _numbers(data: bytes, dtype: str) -> np.ndarray:
    """Those of four bytes that ``data`` holds whole."""
    return np.frombuffer(data[: len(data) // 4 * 4], dtype=dtype)
