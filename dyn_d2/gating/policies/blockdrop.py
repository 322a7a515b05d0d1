"""BlockDrop (Wu et al., BlockDrop: Dynamic Inference Paths in Residual Networks, CVPR 2018): which residual blocks run,
decided for all of them at once by a small network that sees the image before the first block.

Stage "pretrain" trains the plain network; stage "joint" trains the policy by self-critical policy gradient, and the
network with it, at first by a curriculum: only the last blocks are decided about, and one block more at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Decision, Step, Trace, Unit
from dyn_d2.gating.cost import chain_cost, linear_cost
from dyn_d2.gating.decisions import bernoulli, bounded, hard_threshold
from dyn_d2.gating.exporting import is_exporting
from dyn_d2.gating.losses import drop_reward, policy_gradient_loss, sampled_log_probs
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.modules import ModuleListOf

from detectron2.config import CfgNode

from .base import FIXED, POLICY_REGISTRY, Policy
from .gate_layers import GateNorm, ValidArea, apply_linear, check_threshold, pool_valid, valid_area, zero_padding

WIDTHS = (16, 32, 64)  # of the three stages


class PolicyBlock(nn.Module):
    """A residual block of two 3x3 convolutions; padding of the batch stays zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        sizes = ((in_channels, out_channels, 3, stride), (out_channels, out_channels, 3, 1))
        self.convs = ModuleListOf(nn.Conv2d(*size, padding=1, bias=False) for size in sizes)
        self.norms = ModuleListOf(GateNorm(out_channels) for _ in sizes)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor, valid: ValidArea | None) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        x = zero_padding(F.relu(self.norms[0](self.convs[0](x))), valid)
        return zero_padding(F.relu(self.norms[1](self.convs[1](x)) + skip), valid)

    def cost(self, height: int, width: int) -> tuple[float, int, int]:
        """Multiply-adds on a map of that size, and the size of the output."""
        aside = chain_cost([self.shortcut], height, width)[0]
        cost, height, width = chain_cost(self.convs, height, width)
        return cost + aside, height, width


class PolicyNetwork(nn.Module):
    """The smallest ResNet for small images, one block a stage, with an output for each block of the other network."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = GateNorm(WIDTHS[0])
        channels = [WIDTHS[0], *WIDTHS]
        self.blocks = ModuleListOf(
            PolicyBlock(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(channels, channels[1:], strict=False))
        )
        self.score = nn.Linear(WIDTHS[-1], outputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, valid: ValidArea | None) -> Tensor:
        """(N, 3, H, W) -> float32 (N, outputs), logarithms of the odds."""
        x = zero_padding(F.relu(self.norm(self.stem(zero_padding(images, valid)))), valid)
        for block in self.blocks:
            x = block(x, valid)
        return apply_linear(self.score, pool_valid(x, valid))

    def cost(self, height: int, width: int) -> float:
        """Multiply-adds on an image of that size."""
        total, height, width = chain_cost([self.stem], height, width)
        for block in self.blocks:
            cost, height, width = block.cost(height, width)
            total += cost
        return total + linear_cost(self.score)


@POLICY_REGISTRY.register_as("blockdrop")
class BlockDrop(Policy):
    """A policy network before the backbone, its sampling, curriculum and reward."""

    KINDS = ("block",)
    STAGES = ("pretrain", "joint", FIXED)
    FROZEN_STAGES = (FIXED,)
    PROBABILITIES = True
    LATER_KEYS = (
        "MODEL.POLICY.THRESHOLD",
        *(f"MODEL.POLICY.BLOCKDROP.{key}" for key in ("ALPHA", "PENALTY", "WEIGHT", "INIT_BIAS", "CURRICULUM")),
    )

    steps: Tensor

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        stage: str = "pretrain",
        threshold: float = 0.5,
        alpha: float = 0.8,
        penalty: float = 5.0,
        weight: float = 1.0,
        init_bias: float = 0.0,
        curriculum: Any = None,
    ) -> None:
        """
        Args:
            units: blocks.
            stage: "pretrain", "joint" or "fixed".
            threshold: a block runs where its probability is greater.
            alpha: bounds the probabilities in sampling.
            penalty: gamma, the negative reward of a wrong answer.
            weight: of the policy gradient beside the task's loss.
            init_bias: first logit of all blocks.
            curriculum: with ITERS, how many steps it takes (0: none), and PENALTY and ENTROPY, gamma and the weight of
                the entropy during these steps.
        """
        super().__init__(units)
        self.stage, self.threshold = stage, check_threshold(threshold)
        self.alpha, self.penalty, self.weight = alpha, penalty, weight
        self.curriculum_iters: int = curriculum.ITERS if curriculum else 0
        self.curriculum_penalty: float = curriculum.PENALTY if curriculum else penalty
        self.entropy_weight: float = curriculum.ENTROPY if curriculum else 0.0
        if not 0.5 < alpha <= 1 or min(penalty, self.curriculum_penalty, self.curriculum_iters) < 0:
            raise ValueError(
                "MODEL.POLICY.BLOCKDROP: ALPHA lies in (0.5, 1], PENALTY and CURRICULUM.{PENALTY,ITERS} from 0 on."
            )
        self.network = PolicyNetwork(len(self.units))
        nn.init.constant_(self.network.score.bias, init_bias)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of stage "joint"

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        policy, drop = cfg.MODEL.POLICY, cfg.MODEL.POLICY.BLOCKDROP
        return {
            "stage": policy.STAGE or cls.STAGES[0],
            "threshold": policy.THRESHOLD,
            "alpha": drop.ALPHA,
            "penalty": drop.PENALTY,
            "weight": drop.WEIGHT,
            "init_bias": drop.INIT_BIAS,
            "curriculum": drop.CURRICULUM,
        }

    @property
    def adds_losses(self) -> bool:
        return self.stage == "joint"

    @property
    def wants_greedy(self) -> bool:
        return self.training and self.stage == "joint"

    def enter_stage(self) -> None:
        if self.stage == "joint":
            self.steps.zero_()

    @property
    def decided(self) -> int:
        """How many blocks, from the end, are decided about at this step of the curriculum; the others run."""
        if is_exporting():  # whose graph has the whole policy
            return len(self.units)
        count, step = len(self.units), int(self.steps)
        if step >= self.curriculum_iters:
            return count
        return min(1 + step * count // self.curriculum_iters, count)

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> Tensor | None:
        """(N, T), the probability that each block runs; None in stage "pretrain"."""
        if self.stage == "pretrain":
            return None
        return torch.sigmoid(self.network(images, valid_area(images, image_sizes)))

    def begin_cost(self, height: int, width: int) -> float:
        return 0.0 if self.stage == "pretrain" else self.network.cost(height, width)

    def decide(self, index: int, features: Tensor, state: Tensor | None) -> Decision:
        if state is None or index < len(self.units) - self.decided:
            return Decision(torch.ones(features.shape[:1], device=features.device))
        prob = state[:, index]
        if self.training:
            return bernoulli(bounded(prob, self.alpha))
        return Decision(hard_threshold(prob.detach(), self.threshold).gate, prob)

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        """Policy gradient with the greedy choice as baseline, and, during the curriculum, the entropy of the choices.

        Raises:
            UserError: the model does not say how right its predictions are.
        """
        if self.stage != "joint":
            return {}
        greedy = trace.context.greedy
        own, other = trace.context.accuracies, None if greedy is None else greedy.context.accuracies
        if own is None or greedy is None or other is None:
            raise UserError(
                "MODEL.POLICY.NAME blockdrop is rewarded for right answers, which this model does not tell: use "
                "MODEL.META_ARCHITECTURE ImageClassifier."
            )
        learning = self.steps < self.curriculum_iters
        penalty = self.curriculum_penalty if learning else self.penalty
        advantage = drop_reward(_opened(trace.steps), own, penalty) - drop_reward(_opened(greedy.steps), other, penalty)
        loss = self.weight * policy_gradient_loss(sampled_log_probs(trace.steps), advantage[:, None])
        if learning and self.entropy_weight > 0:
            decided = [step.decision.prob for step in trace.steps if step.decision.prob is not None]
            probs = torch.stack(decided, 1).clamp(1e-6, 1 - 1e-6)
            entropy = -(probs * probs.log() + (1 - probs) * (1 - probs).log()).sum(1)
            loss = loss - self.entropy_weight * entropy.mean()
        if self.training:
            self.steps += 1
        return {"loss_policy": loss}


def _opened(steps: Sequence[Step]) -> Tensor:
    """bool (N, T)."""
    return torch.stack([step.decision.open for step in steps], 1)
