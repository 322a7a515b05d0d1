"""Which frozen network has made the features of a file, so that another image can be seen in the same way."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from dyn_d2.modeling.freeze import tensor_hash


@dataclass(frozen=True)
class FeatureSource:
    """A network of timm without its classifier, and how it sees an image.

    Attributes:
        model, weights: as MODEL.TIMM.NAME and MODEL.TIMM.WEIGHTS.
        size: pixels of both sides that an image is resized to.
        fingerprint: of the weights.
    """

    model: str
    weights: str
    size: int
    fingerprint: str

    @classmethod
    def of(cls, model: str, weights: str, size: int, module: nn.Module) -> "FeatureSource":
        """The source whose network is ``module``."""
        return cls(model, weights, size, fingerprint(module))

    @classmethod
    def read(cls, values: Any) -> "FeatureSource":
        """Of what ``as_dict`` gave.

        Raises:
            ValueError: it is something else.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        if not isinstance(values, Mapping) or any(type(values.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError(f"a source of features has {', '.join(kinds)}, not {str(values)[:80]!r}")
        if not 1 <= values["size"] <= 10_000:
            raise ValueError(f"its images have {values['size']} pixels a side")
        return cls(**{name: values[name] for name in kinds})

    @classmethod
    def read_text(cls, text: str) -> "FeatureSource":
        """Of what ``as_text`` gave; errors as of ``read``."""
        try:
            return cls.read(json.loads(text))
        except RecursionError:
            raise ValueError("a source of features is nested too deeply") from None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        return f"{self.model} ({self.weights or 'random weights'}, {self.size} pixels)"


def fingerprint(module: nn.Module) -> str:
    """Hash of the names and values of all weights."""
    hashes = {name: tensor_hash(tensor) for name, tensor in module.state_dict().items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:20]
