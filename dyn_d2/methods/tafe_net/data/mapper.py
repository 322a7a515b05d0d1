"""From a record with a feature to the input of TAFE-Net."""

import random
from typing import Any

import numpy as np
import torch

from .sets import described_set


class DescribedMapper:
    """Turns arrays into tensors. Where classes are described by n of their images, each training image comes with the
    mean of n others of its class, so that training sees descriptions like those of novel classes. With ``balance`` a
    training record only says that an image is due: its class is drawn with equal chance, then one of its images.

    Draws from Python's generator.
    """

    def __init__(self, dataset_name: str, is_train: bool, balance: bool = False) -> None:
        described = described_set(dataset_name)
        self._shots = described.shots if is_train else 0
        self._part = described.parts["train"]
        self._of_class: dict[int, np.ndarray] = {}
        self._balance = balance and is_train
        if self._shots or self._balance:
            order = np.argsort(self._part.labels, kind="stable")
            ends = np.searchsorted(self._part.labels[order], described.seen, side="right")
            self._of_class = dict(zip(described.seen.tolist(), np.split(order, ends[:-1]), strict=True))

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """
        Returns:
            "feature", a float32 tensor; "label", "image_id" and "dataset" as in the record; with n > 0 "task", (D,).
        """
        if self._balance:
            label = random.choice(list(self._of_class))
            chosen = int(random.choice(self._of_class[label]))
            record = {**record, "feature": self._part.features[chosen], "label": label, "image_id": chosen}
        mapped: dict[str, Any] = {key: record[key] for key in ("label", "image_id", "dataset") if key in record}
        mapped["feature"] = torch.tensor(record["feature"], dtype=torch.float32)
        if self._shots:
            own = self._of_class[record["label"]]
            others = own[own != record["image_id"]] if len(own) > 1 else own
            drawn = [others[random.randrange(len(others))] for _ in range(self._shots)]
            mapped["task"] = torch.from_numpy(self._part.features[drawn].mean(0))
        return mapped
