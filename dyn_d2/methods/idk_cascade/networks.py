"""Networks of this package as members of an IDK cascade, straight from their checkpoints."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.checkpoint.model import load_model
from dyn_d2.data.few_shot.benchmarks import get_benchmark
from dyn_d2.data.resumable import build_mapper
from dyn_d2.engine.predictor import predictor_of
from dyn_d2.evaluation.results import weights_hash
from dyn_d2.gating.reports.routes import rest_cost

from detectron2.config import CfgNode

from .detection import image_losses
from .execution import IDKCascadeModel
from .sizes import at_size, parsed, split_checkpoint

CLASSIFIERS = ("ImageClassifier", "MultiPathClassifier")


class NetworkModel(IDKCascadeModel):
    """A classifier or detector of dyn_d2. Its images are records of a data set, which its own mapper decodes, so that
    the models of an IDK cascade may differ in size and order of channels.

    Costs are multiply-adds: those of the route where the network is gated, else counted once for each input size.
    """

    def __init__(
        self,
        name: str,
        cfg: CfgNode,
        model: nn.Module,
        dataset: str,
        classes: Sequence[str] = (),
        mapper: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        """
        Args:
            cfg: the config of ``model``.
            dataset: of the records; says which mapper decodes them.
            classes: names in the order of the model's outputs; empty where nobody knows.
            mapper: decodes records in place of the data set's.
        """
        self.name, self.cfg, self.model, self.classes = name, cfg, model.eval(), list(classes)
        self.classifies = cfg.MODEL.META_ARCHITECTURE in CLASSIFIERS
        self.weights = cfg.MODEL.WEIGHTS
        self.trained_on, self.tested_on = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
        if cfg.FEW_SHOT.BENCHMARK:  # whose sets are cut from these
            benchmark = get_benchmark(cfg)
            self.trained_on += benchmark.train_sets
            self.tested_on += benchmark.test_sets
        self.dtype = next(model.parameters()).dtype
        self.device = "cuda" if cfg.MODEL.DEVICE.startswith("cuda") else "cpu"
        self._mapper: Callable[[dict[str, Any]], Any] = mapper or build_mapper(cfg, dataset, is_train=False)
        self._counted: dict[tuple[int, ...], float] = {}
        self._routes: list[float] | None = None

    @classmethod
    def load(cls, weights: str, dataset: str, name: str = "", opts: Sequence[str] = ()) -> "NetworkModel":
        """From a checkpoint that dyn_d2 wrote.

        Args:
            weights: "FILE.pth", or "FILE.pth@PIXELS,KEY=VALUE,..." to test at another size (``sizes.at_size``) or with
                other keys.
            dataset: of the records; "" for records that hold an image (H, W, 3) uint8, RGB, under "image".
            opts: ``KEY VALUE ...`` that change the config.

        Raises:
            FileNotFoundError, CheckpointError: no such checkpoint, or it does not carry its config.
            ValueError: no such size, or a model that resizes images itself.
        """
        path, how = split_checkpoint(weights)
        pixels, keys = parsed(how, weights)
        loaded = load_model(path, opts=[*opts, *keys])
        own_size = getattr(type(loaded.model), "OWN_SIZE", "")
        if pixels and own_size:
            raise ValueError(f"{weights}: this model resizes all images itself ({own_size}): an @ would save nothing.")
        if pixels:
            classifies = loaded.cfg.MODEL.META_ARCHITECTURE in CLASSIFIERS
            loaded = loaded._replace(cfg=at_size(loaded.cfg, pixels, classifies))
        cfg, model, described = loaded
        mapper = None if dataset else partial(_of_image, predictor_of(loaded))
        made = cls(name or default_name(weights), cfg, model, dataset, described.get("classes", ()), mapper)
        made.weights = weights
        made.trained_data = (described.get("inputs") or {}).get("data", {})
        return made

    def fit_classes(self, dataset: str, names: Sequence[str]) -> None:
        """
        Raises:
            ValueError: it was trained for others, or in another order: its own evaluator could not judge it.
        """
        if self.classes and names and self.classes != list(names):
            raise ValueError(
                f"{self.name} knows {len(self.classes)} classes ({', '.join(self.classes[:5])}, ...), {dataset} "
                f"has {len(names)} ({', '.join(names[:5])}, ...): they have to be the same in the same order."
            )

    def weights_hash(self) -> str:
        return weights_hash(self.model)

    def prepare(self, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._mapper(dict(record)) for record in images]

    @torch.no_grad()
    def answer(self, inputs: list[dict[str, Any]]) -> list[Any]:
        """(K,) probabilities of each image; of a detector, dicts with "instances" on the CPU."""
        outputs = self.model(inputs)
        self._routes = [output["route"].executed for output in outputs] if "route" in outputs[0] else None
        if self.classifies:
            return list(torch.stack([output["scores"] for output in outputs]).float().cpu().numpy())
        return [{"instances": output["instances"].to("cpu")} for output in outputs]

    def costs(self, inputs: list[dict[str, Any]], answers: Sequence[Any]) -> np.ndarray:
        if self._routes is None:
            return np.array([self._by_size(entry, self._count) for entry in inputs])
        if self.classifies:
            return np.array(self._routes)
        # The route of a gated detector is that of its backbone; the heads' cost is taken to depend on the size only.
        rest = [self._by_size(entry, lambda e: rest_cost(self.model, [e])) for entry in inputs]
        return np.array(self._routes) + np.array(rest)

    def _by_size(self, entry: dict[str, Any], count: Callable[[dict[str, Any]], float]) -> float:
        size = tuple(entry["image"].shape)
        if size not in self._counted:
            self._counted[size] = count(entry)
        return self._counted[size]

    @torch.no_grad()
    def _count(self, entry: dict[str, Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            self.model([entry])
        return counter.get_total_flops() / 2  # it counts multiplications and additions apart

    def losses(self, records: Sequence[dict[str, Any]], answers: Sequence[Any]) -> np.ndarray:
        """(n,) zero-one losses; of a detector one minus the average precision in each image."""
        if not self.classifies:
            return image_losses([answer["instances"] for answer in answers], records)
        return super().losses(records, answers)


def _of_image(predictor: Any, record: dict[str, Any]) -> dict[str, Any]:
    return predictor.input_of(record["image"])


def default_name(weights: str) -> str:
    """The folder of a checkpoint, which says more than "model_final", and how it is asked, keys by their last words."""
    file, how = split_checkpoint(weights)
    path = Path(file)
    words = [f"{key.rpartition('.')[2]}{equals}{value}" for key, equals, value in _partitioned(how)]
    return (path.parent.name or path.stem) + (f"@{','.join(words)}" if how else "")


def _partitioned(how: str) -> list[tuple[str, str, str]]:
    return [part.partition("=") for part in how.split(",")]
