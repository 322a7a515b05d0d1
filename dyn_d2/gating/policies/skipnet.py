"""SkipNet (Wang et al., ECCV 2018): which residual blocks run. Three gates, and training in stages.

Stage "sp" (supervised pre-training) rounds the gate and gives it the gradient of the probability (Eq. 2.7), or uses the
probability itself (RELAXATION "soft", Table 2.3). Stage "hrl" samples the gates and adds REINFORCE (Eq. 2.6). Stage
"fixed", which is ours, trains the network on the routes that evaluation takes. In evaluation a block runs where its
probability exceeds the threshold.

Numbers of equations, figures and tables: see the sources in ``policies/__init__.py``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Decision, Step, Trace, Unit
from dyn_d2.gating.cost import chain_cost, linear_cost, lstm_cost
from dyn_d2.gating.decisions import bernoulli, hard_threshold, noisy_threshold, soft
from dyn_d2.gating.exporting import is_exporting
from dyn_d2.gating.folding import kept
from dyn_d2.gating.losses import policy_gradient_loss, sampled_log_probs, skip_returns
from dyn_d2.utils.modules import ModuleListOf

from detectron2.config import CfgNode

from .base import FIXED, POLICY_REGISTRY, Policy
from .gate_layers import (
    GateNorm,
    ValidArea,
    apply_linear,
    check_choice,
    check_positive,
    check_threshold,
    pool_valid,
    valid_area,
    zero_padding,
)


@dataclass
class SkipNetState:
    """Of one forward pass: the area of each image, the LSTM's (h, c), each (N, 10), once there is one, and where there
    are some the RNN gate's weights as numpy has them, which h and c then are of too."""

    valid: ValidArea | None
    hidden: tuple[Any, Any] | None = None
    folded: "FoldedGates | None" = None


class SkipNet(Policy):
    """What the three gates share: relaxation, sampling and the losses. A subclass computes ``logit``."""

    KINDS = ("block",)
    STAGES = ("sp", "hrl", FIXED)
    FROZEN_STAGES = (FIXED,)
    MAY_BEGIN = ("hrl",)
    PROBABILITIES = True
    LATER_KEYS = tuple(
        f"MODEL.POLICY.SKIPNET.{key}"
        for key in ("ALPHA", "BETA", "WEIGHT", "BASELINE", "HRL_TEMPERATURE", "SUPERVISED")
    )

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        stage: str = "sp",
        relaxation: str = "hard",
        threshold: float = 0.5,
        temperature: float = 1.0,
        hrl_temperature: float = 1.0,
        init_bias: float = 0.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight: float = 1.0,
        baseline: str = "none",
        supervised: bool = True,
    ) -> None:
        """
        Args:
            units: blocks.
            stage: "sp", "hrl" or "fixed".
            relaxation: of stage "sp": "hard" (Eq. 2.7), "noisy" (the same after logistic noise) or "soft".
            threshold: a block runs where its probability is greater.
            temperature: of the sigmoid.
            hrl_temperature: the last layer of the gates is divided by it when stage "hrl" starts from the weights of
                stage "sp"; below 1 it makes the policy that is sampled from more certain.
            init_bias: logit of a new gate.
            alpha: Eq. 2.5, what skipping is worth.
            beta: weight of the loss in the return; 0: alpha / N, the relaxed reward; 1: as Eq. 2.5 has it.
            weight: of the REINFORCE term beside the task's loss.
            baseline: "none", or "self_critical": the return of the greedy path is subtracted.
            supervised: whether the task's loss trains the network in stage "hrl"; without, REINFORCE alone does.
        """
        super().__init__(units)
        self.stage = check_choice("STAGE", stage, self.STAGES)
        self.relaxation = check_choice("SKIPNET.RELAXATION", relaxation, ("hard", "noisy", "soft"))
        self.baseline = check_choice("SKIPNET.BASELINE", baseline, ("none", "self_critical"))
        self.threshold = check_threshold(threshold)
        self.temperature = check_positive("TEMPERATURE", temperature)
        self.hrl_temperature = check_positive("SKIPNET.HRL_TEMPERATURE", hrl_temperature)
        self.init_bias, self.alpha, self.beta, self.weight = init_bias, alpha, beta, weight
        self.supervised = supervised or stage != "hrl"

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        policy = cfg.MODEL.POLICY
        return {
            "stage": policy.STAGE or cls.STAGES[0],
            "relaxation": policy.SKIPNET.RELAXATION,
            "threshold": policy.THRESHOLD,
            "temperature": policy.TEMPERATURE,
            "hrl_temperature": policy.SKIPNET.HRL_TEMPERATURE,
            "init_bias": policy.SKIPNET.INIT_BIAS,
            "alpha": policy.SKIPNET.ALPHA,
            "beta": policy.SKIPNET.BETA,
            "weight": policy.SKIPNET.WEIGHT,
            "baseline": policy.SKIPNET.BASELINE,
            "supervised": policy.SKIPNET.SUPERVISED,
        }

    def last_layers(self) -> list[nn.Linear]:
        """The layers that compute the logits."""
        raise NotImplementedError

    def logit(self, index: int, features: Tensor, state: SkipNetState) -> Tensor:
        """(N,) logarithm of the odds that unit ``index`` runs."""
        raise NotImplementedError

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> SkipNetState:
        return SkipNetState(valid_area(images, image_sizes))

    def decide(self, index: int, features: Tensor, state: SkipNetState) -> Decision:
        logit = self.logit(index, features, state).float()
        prob = torch.sigmoid(logit / self.temperature)
        if self.training and self.stage == "hrl":
            return bernoulli(prob)
        if self.training and self.relaxation == "soft":
            return soft(prob)
        if self.training and self.relaxation == "noisy":
            return noisy_threshold(logit, self.threshold, self.temperature)
        return hard_threshold(prob, self.threshold)

    @property
    def adds_losses(self) -> bool:
        return self.stage == "hrl"

    @property
    def wants_greedy(self) -> bool:
        return self.training and self.stage == "hrl" and self.baseline == "self_critical"

    @torch.no_grad()
    def enter_stage(self) -> None:
        if self.stage == "hrl":
            for layer in self.last_layers():
                for parameter in layer.parameters():
                    parameter.div_(self.hrl_temperature)

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        """REINFORCE in stage "hrl"; nothing in "sp", which has no term for the cost.

        The loss of an image is ``image_losses`` of the trace's context; where the task has none (detection,
        segmentation), every image of the batch gets the sum of all task losses of the batch.
        """
        if self.stage != "hrl":
            return {}
        images = len(trace.steps[0].decision.gate)
        losses = trace.context.image_losses
        if losses is None:
            losses = torch.stack([value.detach().float() for value in task.values()]).sum()
        returns = self._returns(trace.steps, losses.expand(images))
        if self.wants_greedy:
            greedy = trace.context.greedy
            if greedy is None or greedy.context.image_losses is None:
                raise ValueError(
                    "MODEL.POLICY.SKIPNET.BASELINE self_critical needs the greedy pass of a Dynamic* meta-architecture "
                    "or of ImageClassifier."
                )
            returns = returns - self._returns(greedy.steps, greedy.context.image_losses)
        return {"loss_policy": self.weight * policy_gradient_loss(sampled_log_probs(trace.steps), returns)}

    def _returns(self, steps: Sequence[Step], losses: Tensor) -> Tensor:
        opened = torch.stack([step.decision.open for step in steps], 1)
        return skip_returns(opened, losses, self.alpha, self.beta or None)


class FeedForwardGate(nn.Module):
    """FFGate-I and -II: convolutions, global average pooling, and soft-max over (skip, run).

    The soft-max over two is the sigmoid of their difference, which ``forward`` returns.
    """

    def __init__(self, channels: int, strides: Sequence[int], pool: bool, bias: float) -> None:
        """
        Args:
            channels: of the feature map, and of the gate's own layers.
            strides: of each 3x3 convolution.
            pool: halve the map by 2x2 max pooling first.
            bias: first value of the difference.
        """
        super().__init__()
        self.pool = pool
        self.convs = ModuleListOf(nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False) for stride in strides)
        self.norms = ModuleListOf(GateNorm(channels) for _ in strides)
        self.scores = nn.Linear(channels, 2)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        with torch.no_grad():
            self.scores.bias.copy_(torch.tensor([0.0, bias]))

    def forward(self, features: Tensor, valid: ValidArea | None) -> Tensor:
        x = zero_padding(features, valid)
        x = F.max_pool2d(x, 2) if self.pool else x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = zero_padding(F.relu(norm(conv(x))), valid)
        scores = apply_linear(self.scores, pool_valid(x, valid))
        return scores[:, 1] - scores[:, 0]

    def cost(self, height: int, width: int) -> float:
        """Multiply-adds on a map of that size."""
        if self.pool:
            height, width = height // 2, width // 2
        return chain_cost(self.convs, height, width)[0] + linear_cost(self.scores)


class FeedForwardSkipNet(SkipNet):
    """A gate of its own for each block."""

    STRIDES: tuple[int, ...] = ()
    POOL = False

    def __init__(self, units: Sequence[Unit], **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.gates = ModuleListOf(
            FeedForwardGate(unit.channels, self.STRIDES, self.POOL, self.init_bias) for unit in self.units
        )

    def last_layers(self) -> list[nn.Linear]:
        return [gate.scores for gate in self.gates]

    def logit(self, index: int, features: Tensor, state: SkipNetState) -> Tensor:
        height, width = features.shape[-2:]
        if self.POOL and min(height, width) < 2:
            raise ValueError(
                f"The gate of {self.units[index].name} pools 2x2, but its feature map is {height}x{width}: use larger "
                "images, or MODEL.POLICY.NAME skipnet_ffgate2 or skipnet_rnn."
            )
        return self.gates[index](features, state.valid)

    def decision_cost(self, index: int, height: int, width: int) -> float:
        return self.gates[index].cost(height, width)


@POLICY_REGISTRY.register_as("skipnet_ffgate1")
class SkipNetFFGate1(FeedForwardSkipNet):
    """FFGate-I (Fig. 2.3a): 2x2 max pooling and two 3x3 convolutions.

    Said to cost about 19 % of a block. Its layers as printed, which are these, cost 15.6 %: a quarter and a sixteenth
    of one of the two convolutions of a basic block.
    """

    STRIDES, POOL = (1, 2), True


@POLICY_REGISTRY.register_as("skipnet_ffgate2")
class SkipNetFFGate2(FeedForwardSkipNet):
    """FFGate-II (Fig. 2.3b): one 3x3 convolution of stride 2; 12.5 % of a basic block, as printed."""

    STRIDES, POOL = (2,), False


class FoldedGates:
    """The RNN gates without gradients, in numpy: matrices are so small here that calling torch's operators, of which an
    LSTM cell and two linear layers take a dozen, costs far more than the arithmetic, and as much as a convolution of a
    CIFAR network. The projection of each block is folded into the LSTM's input weights."""

    def __init__(self, policy: "SkipNetRNN") -> None:
        lstm, score = policy.lstm, policy.score
        with torch.no_grad():
            bias = lstm.bias_ih + lstm.bias_hh
            self.inputs = [(lstm.weight_ih @ p.weight).T.contiguous().numpy() for p in policy.projections]
            self.biases = [(lstm.weight_ih @ p.bias + bias).numpy() for p in policy.projections]
            self.recurrent = lstm.weight_hh.detach().T.contiguous().numpy()
            self.score, self.score_bias = score.weight[0].detach().numpy(), float(score.bias)
        # sigmoid(x) is (1 + tanh(x / 2)) / 2: one call for the four parts i, f, g, o of which g alone is a tanh.
        self.width = lstm.hidden_size
        self.scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), self.width)

    def __call__(self, index: int, pooled: Tensor, state: SkipNetState) -> Tensor:
        """(N,) logits of unit ``index`` for pooled features (N, C); ``state`` gets the new h and c."""
        gates = pooled.numpy() @ self.inputs[index] + self.biases[index]
        if state.hidden is not None:
            gates += state.hidden[0] @ self.recurrent
        gates *= self.scale
        np.tanh(gates, out=gates)
        i, f, g, o = (gates[:, k * self.width : (k + 1) * self.width] for k in range(4))
        cell = 0.5 * (1 + i) * g
        if state.hidden is not None:
            cell += 0.5 * (1 + f) * state.hidden[1]
        hidden = 0.5 * (1 + o) * np.tanh(cell)
        state.hidden = hidden, cell
        return torch.from_numpy(hidden @ self.score + self.score_bias)


@POLICY_REGISTRY.register_as("skipnet_rnn")
class SkipNetRNN(SkipNet):
    """RNNGate (Fig. 2.3c): pooled features, projected for each block, go into one LSTM that runs over the blocks.

    It costs 0.02 to 0.03 % of a basic block for CIFAR; about 0.04 % as printed.
    """

    WIDTH = 10

    def __init__(self, units: Sequence[Unit], **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.projections = ModuleListOf(nn.Linear(unit.channels, self.WIDTH) for unit in self.units)
        self.lstm = nn.LSTMCell(self.WIDTH, self.WIDTH)
        self.score = nn.Linear(self.WIDTH, 1)
        for name, parameter in [*self.lstm.named_parameters(), *self.score.named_parameters()]:
            (nn.init.zeros_ if "bias" in name else nn.init.xavier_uniform_)(parameter)
        # N(0, 2 / 10) as published. The default of a linear layer leaves first logits nearly the same for all images.
        for projection in self.projections:
            nn.init.normal_(projection.weight, std=math.sqrt(2 / self.WIDTH))
            nn.init.zeros_(projection.bias)
        nn.init.constant_(self.score.bias, self.init_bias)

    def last_layers(self) -> list[nn.Linear]:
        return [self.score]

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> SkipNetState:
        state = super().begin(images, image_sizes)
        plain = images.device.type == "cpu" and self.score.weight.dtype == torch.float32 and not is_exporting()
        if plain and not self.training and not torch.is_grad_enabled():
            state.folded = kept(self, [*self.projections, self.lstm, self.score], lambda: FoldedGates(self))
        return state

    def logit(self, index: int, features: Tensor, state: SkipNetState) -> Tensor:
        if state.folded is not None:
            return state.folded(index, pool_valid(features, state.valid), state)
        x = apply_linear(self.projections[index], pool_valid(features, state.valid))
        with torch.autocast(x.device.type, enabled=False):
            state.hidden = self.lstm(x.to(self.score.weight.dtype), state.hidden)
        return apply_linear(self.score, state.hidden[0])[:, 0]

    def decision_cost(self, index: int, height: int, width: int) -> float:
        return linear_cost(self.projections[index], self.score) + lstm_cost(self.lstm)
