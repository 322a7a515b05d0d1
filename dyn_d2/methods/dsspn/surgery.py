"""Checkpoint surgery for DSSPN: fit a checkpoint to another concept tree, by concept names (Liang et al. 2018, sec.
3.4).

All parameters of the head are named after concepts, so what both trees have keeps its values bit by bit. A new child of
a neuron gets a random classifier, a new neuron random layers, and a concept that is put between a neuron and its
ancestors enters that neuron with weights of 0: what the old neurons compute does not change. (With BLOCK "sum" it does:
the weights of the sum are shared by all ancestors.)
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dyn_d2.checkpoint.checkpointer import METADATA, CheckpointError
from dyn_d2.utils.seeds import derive_seed

from .head import DSSPNHead

HEAD = "sem_seg_head."


@dataclass
class ConceptChanges:
    """What ``fit_concepts`` did. Children are written "NEURON > CHILD".

    Attributes:
        kept, added, removed: children of neurons.
        new_neurons, gone_neurons: concepts.
    """

    kept: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    new_neurons: list[str] = field(default_factory=list)
    gone_neurons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.kept)} children kept, {len(self.added)} added, {len(self.removed)} removed"]
        for title in ("added", "removed", "new_neurons", "gone_neurons"):
            names = getattr(self, title)
            if names:
                lines.append(f"  {title.replace('_', ' ')}: {', '.join(names)}")
        return "\n".join(lines)


def backbone_alone(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A checkpoint with the backbone of a model alone, and how many tensors that has.

    Raises:
        CheckpointError: there is none.
    """
    model = {
        name.removeprefix("module."): value
        for name, value in checkpoint["model"].items()
        if name.removeprefix("module.").startswith("backbone.")
    }
    if not model:
        raise CheckpointError("the checkpoint holds no backbone: there are no parameters named backbone.*.")
    return {"model": model}, len(model)


def fit_concepts(checkpoint: dict[str, Any], head: DSSPNHead, seed: int = 0) -> tuple[dict[str, Any], ConceptChanges]:
    """A checkpoint for a model with ``head``.

    Args:
        checkpoint: of a model with a DSSPN head of the same widths, from ``read_checkpoint``; not changed.
        head: over the new tree; its own weights are not used.
        seed: of random tensors; each depends on the seed and its own name only.

    Returns:
        A checkpoint without optimizer, scheduler and iteration, and what was changed.

    Raises:
        CheckpointError: the checkpoint has no DSSPN, or one of other widths or another block.
    """
    old = {name.removeprefix("module."): torch.as_tensor(value) for name, value in checkpoint["model"].items()}
    mine = {name: value for name, value in old.items() if name.startswith(HEAD)}
    if not any(name.startswith(HEAD + "neurons.") for name in mine):
        raise CheckpointError("the checkpoint holds no DSSPN: there are no parameters named sem_seg_head.neurons.*.")
    model = {name: value for name, value in old.items() if name not in mine}
    for name, wanted in head.state_dict().items():
        found = mine.get(HEAD + name)
        if found is None:
            found = _new(head, name, wanted, mine, seed)
        elif found.shape != wanted.shape:
            raise CheckpointError(
                f"{HEAD}{name} is {tuple(found.shape)} in the checkpoint and {tuple(wanted.shape)} in the model: the "
                "widths (MODEL.DSSPN) and the backbone have to be the same."
            )
        model[HEAD + name] = found
    changes = _compare(mine, {HEAD + name for name in head.state_dict()})
    metadata = {
        **(checkpoint.get(METADATA) or {}),
        "stage": "surgery",
        "surgery": {"tree": head.tree.name, "seed": seed},
    }
    return {"model": model, METADATA: metadata}, changes


def _new(head: DSSPNHead, name: str, wanted: Tensor, old: dict[str, Tensor], seed: int) -> Tensor:
    """The start value of a tensor that the checkpoint lacks."""
    neurons: Any = head.neurons
    part, _, rest = name.partition(".")
    key, _, layer = rest.partition(".")
    neuron_is_old = any(other.startswith(f"{HEAD}neurons.{key}.") for other in old)
    if part != "neurons" or (neuron_is_old and not layer.startswith(("reduce.<", "classify."))):
        raise CheckpointError(f"{HEAD}{name} is not in the checkpoint: MODEL.DSSPN.BLOCK has to be the same.")
    if neuron_is_old and layer.startswith("reduce."):
        if not any(f"{HEAD}neurons.{key}.reduce.{source}.weight" in old for source in neurons[key].reduce):
            raise CheckpointError(
                f"in the new tree the neuron of {key[1:-1]!r} reads none of the features that it was trained on: with "
                "MODEL.DSSPN.BLOCK parent no concept can be put directly above a neuron, or taken away there."
            )
        return torch.zeros_like(wanted)
    std = neurons[key].initial_std(layer)
    generator = torch.Generator().manual_seed(derive_seed(seed, "concepts", name))
    return (torch.randn(wanted.shape, generator=generator) * std).to(wanted.dtype)


def _compare(old: dict[str, Tensor], new: set[str]) -> ConceptChanges:
    before, after = _children(old), _children(new)
    return ConceptChanges(
        kept=[child for child in after if child in before],
        added=[child for child in after if child not in before],
        removed=[child for child in before if child not in after],
        new_neurons=sorted({c.split(" > ")[0] for c in after} - {c.split(" > ")[0] for c in before}),
        gone_neurons=sorted({c.split(" > ")[0] for c in before} - {c.split(" > ")[0] for c in after}),
    )


def _children(names) -> list[str]:
    """ "NEURON > CHILD" for each classifier among the parameter names, sorted."""
    found = set()
    for name in names:
        if ".classify.<" in name:
            neuron, _, child = name.removeprefix(HEAD + "neurons.").partition(".classify.")
            found.add(f"{neuron[1:-1]} > {child.rpartition('.')[0][1:-1]}")
    return sorted(found)
