"""Meta-architectures over a gated backbone: what the backbone recorded becomes losses, scalars and routes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dyn_d2.config.applied import NoticesKeys
from dyn_d2.gating import Trace, recording
from dyn_d2.gating.execution import without_gradient
from dyn_d2.gating.policies.base import Policy
from dyn_d2.modeling.meta_arch.retina_mask import RetinaMask

from detectron2.modeling import META_ARCH_REGISTRY, Backbone, GeneralizedRCNN, RetinaNet, SemanticSegmentor
from detectron2.utils.events import EventStorage, get_event_storage, has_event_storage

RATE, EXECUTED, ENTROPY = "gate_rate/", "gates/executed_share", "gates/entropy"  # names of the scalars


def gated_network(backbone: nn.Module | None) -> nn.Module | None:
    """What has a policy: a backbone, or the network below a feature pyramid; None where nothing is gated."""
    networks = (backbone, getattr(backbone, "bottom_up", None))
    return next((network for network in networks if isinstance(getattr(network, "policy", None), Policy)), None)


def find_policy(backbone: nn.Module | None) -> Policy | None:
    """The policy of ``gated_network``; None where nothing is gated."""
    return getattr(gated_network(backbone), "policy", None)


def with_routes(outputs: list[dict[str, Any]], trace: Trace) -> list[dict[str, Any]]:
    """The outputs of a batch, each with its :class:`~dyn_d2.gating.Route` under "route"."""
    return [{**output, "route": route} for output, route in zip(outputs, trace.routes(), strict=True)]


class DynamicModel(NoticesKeys, nn.Module):
    """Goes before the meta-architecture in the list of bases, and wraps its forward pass.

    In training the losses of the policy join those of the task, and the event storage gets the execution rate of each
    unit ("gate_rate/UNIT"), the executed multiply-adds as a share of the dense network's ("gates/executed_share") and
    the mean entropy of the gates in bits ("gates/entropy"). In evaluation each output has its
    :class:`~dyn_d2.gating.Route` under "route". With a backbone that has no policy it changes nothing.
    """

    backbone: Backbone
    if TYPE_CHECKING:  # the meta-architecture behind it has one

        @property
        def device(self) -> torch.device: ...

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Inputs and outputs are the parent's. The entry "label" of the inputs, where there is one, is the class of the
        image that some policies learn from."""
        policy = find_policy(self.backbone)
        if policy is None:
            return self.forward_task(batched_inputs)
        greedy = self._greedy(batched_inputs) if self.training and policy.wants_greedy else None
        trace, output = self._traced(batched_inputs)
        if not self.training:
            return with_routes(output, trace)
        trace.context.greedy = greedy
        task = output if policy.supervised else {name: loss.detach() for name, loss in output.items()}
        losses = {**task, **policy.training_losses(trace, output)}
        if has_event_storage():
            put_scalars(trace)
        return losses

    def forward_task(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """The forward pass of the task alone."""
        return super().forward(batched_inputs)

    def image_sizes(self, batched_inputs: list[dict[str, Any]]) -> list[tuple[int, int]]:
        """(height, width) of each image of a batch."""
        return [tuple(inputs["image"].shape[-2:]) for inputs in batched_inputs]

    def _traced(self, batched_inputs: list[dict[str, Any]]) -> tuple[Trace, Any]:
        with recording() as trace:
            trace.context.image_sizes = self.image_sizes(batched_inputs)
            if all("label" in inputs for inputs in batched_inputs):
                labels = [int(inputs["label"]) for inputs in batched_inputs]
                trace.context.labels = torch.tensor(labels, device=self.device)
            return trace, self.forward_task(batched_inputs)

    def _greedy(self, batched_inputs: list[dict[str, Any]]) -> Trace:
        """The trace of the batch under the most likely decisions, without gradient, and without a mark on batch
        statistics, running averages, random numbers or the event storage.

        Its ``image_losses`` are the task's; where the task has no loss per image, each image gets the batch's.
        """
        gpu = [self.device] if self.device.type == "cuda" else []
        with without_gradient(), self._unmarked(), EventStorage(), torch.random.fork_rng(gpu):
            trace, losses = self._traced(batched_inputs)
        if trace.context.image_losses is None:
            total = torch.stack([value.float() for value in losses.values()]).sum()
            trace.context.image_losses = total.expand(len(batched_inputs))
        return trace

    @contextmanager
    def _unmarked(self) -> Iterator[None]:
        norms = [module for module in self.modules() if isinstance(module, _NormBase)]
        modules = [module for module in {*self.backbone.modules(), *norms} if module.training]
        averages = {name: value for name, value in vars(self).items() if name == "loss_normalizer"}  # of RetinaNet
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module in modules:
                module.training = True
            vars(self).pop("loss_normalizer", None)
            vars(self).update(averages)


def put_scalars(trace: Trace) -> None:
    """Write the rates, the executed share and the entropy of one training step to the event storage."""
    with torch.no_grad():
        opened = [step.decision.open.float() for step in trace.steps]
        entropies = [_entropy(step.decision.prob, rate) for step, rate in zip(trace.steps, opened, strict=True)]
        columns = [values.mean() for values in [*opened, *entropies]] + [trace.executed().mean() / trace.dense()]
        numbers = torch.stack(columns).tolist()  # all at once: each transfer from a GPU waits for it
    names = [step.unit.name for step in trace.steps]
    storage = get_event_storage()
    for name, rate in zip(names, numbers, strict=False):
        storage.put_scalar(RATE + name, rate)
    storage.put_scalar(ENTROPY, sum(numbers[len(names) : -1]) / max(len(names), 1))
    storage.put_scalar(EXECUTED, numbers[-1])


def _entropy(prob: Tensor | None, opened: Tensor) -> Tensor:
    """In bits, of the probabilities that a gate is open; of its rate in this batch where it has none."""
    p = (opened.mean(0) if prob is None else prob.float()).clamp(1e-6, 1 - 1e-6)
    return -(p * p.log2() + (1 - p) * (1 - p).log2())


@META_ARCH_REGISTRY.register()
class DynamicRCNN(DynamicModel, GeneralizedRCNN):
    """GeneralizedRCNN for gated backbones."""


@META_ARCH_REGISTRY.register()
class DynamicRetinaNet(DynamicModel, RetinaNet):
    """RetinaNet for gated backbones."""


@META_ARCH_REGISTRY.register()
class DynamicRetinaMask(DynamicModel, RetinaMask):
    """RetinaMask for gated backbones."""


@META_ARCH_REGISTRY.register()
class DynamicSegmentor(DynamicModel, SemanticSegmentor):
    """SemanticSegmentor for gated backbones."""
