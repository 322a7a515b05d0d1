"""What the gates of DeepMoE know of the class: images of one class, run with the embeddings of other images (Fig. 3.4
of Wang, X., thesis, 2020)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dyn_d2.evaluation.figures import save_figure
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.seeds import derive_seed


@contextmanager
def given_embeddings(policy: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Inside the block the policy takes these (N, D) in place of what it would make of the N images."""
    with _begins_with(policy, lambda images, sizes: embeddings.to(images.device)):
        yield


@contextmanager
def _begins_with(policy: nn.Module, begin: Callable[[Tensor, Any], Tensor]) -> Iterator[None]:
    policy.begin = begin  # type: ignore[assignment]
    try:
        yield
    finally:
        del policy.begin  # the class has its own


def policy_of(model: nn.Module) -> nn.Module:
    """The policy of a classifier that embeds images.

    Raises:
        UserError: the model has none, or one that makes no embedding of the whole image.
    """
    policy = getattr(getattr(model, "backbone", None), "policy", None)
    if policy is None or not hasattr(policy, "embedding") or not getattr(model, "classifies_images", False):
        raise UserError("only classifiers whose policy embeds the image can be asked this: MODEL.POLICY.NAME deepmoe.")
    return policy


@torch.no_grad()
def embeddings_of(model: Any, inputs: Sequence[dict[str, Any]], batch: int = 100) -> Tensor:
    """(N, D) of model inputs, on the CPU."""
    policy = policy_of(model)
    own: Callable[[Tensor, Any], Tensor] = policy.begin  # type: ignore[assignment]
    found: list[Tensor] = []

    def noted(images: Tensor, sizes: Any) -> Tensor:
        found.append(own(images, sizes))
        return found[-1]

    with _begins_with(policy, noted):
        for start in range(0, len(inputs), batch):
            model(list(inputs[start : start + batch]))
    return torch.cat(found).cpu()


@torch.no_grad()
def accuracy_with(model: Any, inputs: Sequence[dict[str, Any]], embeddings: Tensor, batch: int = 100) -> float:
    """Share of the inputs that are answered rightly when each is run with its row of ``embeddings`` (N, D)."""
    right = 0
    for start in range(0, len(inputs), batch):
        part = list(inputs[start : start + batch])
        with given_embeddings(policy_of(model), embeddings[start : start + batch]):
            outputs = model(part)
        right += sum(int(output["scores"].argmax()) == int(e["label"]) for output, e in zip(outputs, part, strict=True))
    return right / max(len(inputs), 1)


def shuffled_accuracies(
    model: Any, inputs: Mapping[int, Sequence[dict[str, Any]]], label: int, others: Sequence[int], repeats: int = 20
) -> dict[int, float]:
    """Class -> accuracy on the images of ``label`` with embeddings of images of that class, drawn at random, mean over
    ``repeats`` draws; ``label`` itself stands for embeddings of other images of the same class.

    Args:
        inputs: class -> its model inputs.
    """
    found = {}
    for other in [label, *others]:
        pool = embeddings_of(model, inputs[other])
        generator = np.random.default_rng(derive_seed("embedding shuffle", label, other))
        draws = [generator.integers(0, len(pool), len(inputs[label])) for _ in range(repeats)]
        found[other] = float(np.mean([accuracy_with(model, inputs[label], pool[rows]) for rows in draws]))
    return found


def draw_shuffle(own: float, groups: Mapping[str, Mapping[str, float]], title: str, path: str | Path) -> Path:
    """Fig. 3.4: a bar for each class that embeddings came from, a colour a group, and the accuracy without shuffling.

    Args:
        own: accuracy with each image's own embedding.
        groups: "in group", "out of group" -> class -> accuracy.
    """
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axis = figure.subplots()
    names: list[str] = []
    for colour, (group, values) in zip(("#cc3311", "#4477aa"), groups.items(), strict=False):
        places = range(len(names), len(names) + len(values))
        axis.bar(places, [100 * value for value in values.values()], color=colour, label=group)
        names += list(values)
    axis.axhline(100 * own, color="black", linewidth=1, linestyle="--", label="own embedding")
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axis.set(ylabel="accuracy (%)", title=title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8)
    return save_figure(figure, path)
