"""DeepMoE (Wang et al., UAI 2019): which channels of each layer run, and with what weight.

A shallow network embeds the image before the backbone starts; a bias-free linear head with ReLU for each gated layer
turns the embedding into gates (Eq. 3.6). Stage "joint" adds sparsity and embedding losses (Eq. 3.7), stage "finetune"
sets both to 0 and keeps embedding and gates as they are. With ``target_rate`` lambda is a price that is asked only
while more channels run than wanted.

Numbers of equations: see the sources in ``policies/__init__.py``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Decision, Trace, Unit
from dyn_d2.gating.cost import chain_cost, linear_cost
from dyn_d2.gating.decisions import relu_gates
from dyn_d2.gating.losses import gate_sparsity
from dyn_d2.utils.modules import ModuleListOf

from detectron2.config import CfgNode

from .base import POLICY_REGISTRY, Policy
from .gate_layers import GateNorm, ValidArea, apply_linear, check_choice, pool_valid, valid_area, zero_padding

_MARGIN = 0.1  # of the share of channels, over which the price rises to lambda


class EmbeddingNet(nn.Module):
    """3x3 convolutions of stride 2 with batch norm and ReLU, then global average pooling.

    The number of layers and their cost (about 2 % of the base network) are published, not their widths; here they grow
    linearly to ``width``.
    """

    def __init__(self, layers: int, width: int, in_channels: int = 3) -> None:
        super().__init__()
        widths = [in_channels, *(math.ceil(width * (i + 1) / layers) for i in range(layers))]
        self.convs = ModuleListOf(
            nn.Conv2d(a, b, 3, 2, padding=1, bias=False) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = ModuleListOf(GateNorm(b) for b in widths[1:])
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, valid: ValidArea | None) -> Tensor:
        """(N, 3, H, W) -> float32 (N, width)."""
        x = zero_padding(images, valid)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = zero_padding(F.relu(norm(conv(x))), valid)
        return pool_valid(x, valid)

    def cost(self, height: int, width: int) -> float:
        """Multiply-adds on an image of that size."""
        return chain_cost(self.convs, height, width)[0]


@POLICY_REGISTRY.register_as("deepmoe")
class DeepMoE(Policy):
    """Embedding network and multi-headed sparse gates."""

    KINDS = ("channel",)
    STAGES = ("joint", "finetune")
    FROZEN_STAGES = ("finetune",)

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        stage: str = "joint",
        layers: int = 4,
        width: int = 128,
        sparsity_weight: float = 0.001,
        embedding_weight: float = 0.0,
        threshold: float = 0.0,
        softmax: bool = False,
        target_rate: float = 0.0,
        num_classes: int = 0,
    ) -> None:
        """
        Args:
            units: channels of layers.
            stage: "joint" or "finetune".
            layers: of the embedding network: 4 for CIFAR and 5 for ImageNet in the paper.
            width: of the embedding.
            sparsity_weight: lambda of Eq. 3.7.
            embedding_weight: mu of Eq. 3.7; with 0 there is no embedding classifier.
            threshold: in evaluation, gates that are not greater are closed as well.
            softmax: whether the embedding goes through a soft-max, "latent mixture weights" (Sec. 3.1).
            target_rate: share of the channels that is to run, mean over images and channels: the price of a gate falls
                from lambda, where a tenth more runs, to nothing, where this many run. 0: lambda all the time.
            num_classes: of the embedding classifier.
        """
        super().__init__(units)
        self.stage = check_choice("STAGE", stage, self.STAGES)
        if layers < 1 or width < layers:
            raise ValueError(
                f"MODEL.POLICY.DEEPMOE.LAYERS {layers} and WIDTH {width}: at least one layer, and as many channels as "
                "layers."
            )
        if min(sparsity_weight, embedding_weight, threshold) < 0:
            raise ValueError("MODEL.POLICY.DEEPMOE.LAMBDA, MU and THRESHOLD cannot be negative.")
        self.sparsity_weight, self.embedding_weight = sparsity_weight, embedding_weight
        self.threshold, self.softmax, self.target_rate = threshold, softmax, target_rate
        self.embedding = EmbeddingNet(layers, width)
        self.heads = ModuleListOf(nn.Linear(width, unit.size, bias=False) for unit in self.units)
        # A normalised embedding is about 1 / sqrt(2 pi) in each dimension after ReLU and pooling. These weights make
        # new gates about 1 with a spread of 0.1. Symmetric weights, as usual for a linear layer, would close half of
        # the channels at the start, and a channel that is closed for every image never gets a gradient again.
        # Of a soft-max the dimensions sum to 1.
        mean = 1.0 if softmax else math.sqrt(2 * math.pi) / width
        for head in self.heads:
            nn.init.normal_(head.weight, mean, 0.1 * math.sqrt(width) if softmax else mean)
        self.classifier = nn.Linear(width, num_classes) if embedding_weight > 0 and num_classes > 0 else None

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        policy = cfg.MODEL.POLICY
        return {
            "stage": policy.STAGE or cls.STAGES[0],
            "layers": policy.DEEPMOE.LAYERS,
            "width": policy.DEEPMOE.WIDTH,
            "sparsity_weight": policy.DEEPMOE.LAMBDA,
            "embedding_weight": policy.DEEPMOE.MU,
            "threshold": policy.DEEPMOE.THRESHOLD,
            "softmax": policy.DEEPMOE.SOFTMAX,
            "target_rate": policy.DEEPMOE.TARGET_RATE,
            "num_classes": cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES,
        }

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> Tensor:
        """(N, width), the embedding."""
        found = self.embedding(images, valid_area(images, image_sizes))
        return found.float().softmax(1) if self.softmax else found

    def begin_cost(self, height: int, width: int) -> float:
        return self.embedding.cost(height, width)

    def decide(self, index: int, features: Tensor, state: Tensor) -> Decision:
        scores = apply_linear(self.heads[index], state)
        if not self.training and self.threshold > 0:
            scores = torch.where(scores > self.threshold, scores, 0.0)
        return relu_gates(scores)

    def decision_cost(self, index: int, height: int, width: int) -> float:
        return linear_cost(self.heads[index])

    def price(self, gates: Sequence[Tensor]) -> Tensor | float:
        """lambda, or what is asked of it at the share of the channels that run in this batch. A function of the batch
        alone, so that a resumed training goes on as it would have."""
        if not self.target_rate:
            return self.sparsity_weight
        running = sum((gate.detach() > 0).float().sum() for gate in gates) / max(sum(gate.numel() for gate in gates), 1)
        return self.sparsity_weight * torch.as_tensor((running - self.target_rate) / _MARGIN).clamp(0, 1)

    @property
    def adds_losses(self) -> bool:
        return self.stage == "joint"

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        """lambda L_g and mu L_e of Eq. 3.7 in stage "joint"; L_e only where images have labels."""
        if self.stage == "finetune":
            return {}
        gates = [step.decision.gate for step in trace.steps]
        losses = {"loss_gates": self.price(gates) * gate_sparsity(gates)}
        if self.classifier is not None and trace.context.labels is not None:
            scores = apply_linear(self.classifier, trace.context.state)
            losses["loss_embedding"] = self.embedding_weight * F.cross_entropy(scores, trace.context.labels)
        return losses
