"""Decisions and their relaxations: from scores of a gate to what runs, with a gradient where training needs one.

Numbers of equations: see the sources in ``policies/__init__.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Decision:
    """What was decided for one unit, for each image of the batch.

    Shapes are (N,) for a block, (N, G) for the groups of a block and (N, C) for channels.

    Attributes:
        gate: float32; what the output of the unit is multiplied by. Exactly 0 where it is closed. In training it may
            carry a gradient to the policy.
        prob: probability of being open, with gradient; None for a policy without one (ReLU gates, fixed choices).
        log_prob: logarithm of the probability of the action that was sampled; None where nothing was sampled.
    """

    gate: Tensor
    prob: Tensor | None = None
    log_prob: Tensor | None = None

    @property
    def open(self) -> Tensor:
        """bool, the shape of ``gate``: what runs."""
        return self.gate.detach() != 0

    def detached(self) -> "Decision":
        """The same without gradients: closed units then need not run in training either."""
        prob, log_prob = (None if value is None else value.detach() for value in (self.prob, self.log_prob))
        return Decision(self.gate.detach(), prob, log_prob)

    @property
    def relaxed(self) -> bool:
        """Whether a gradient flows through the gate, so that training needs the output of closed units too."""
        return self.gate.requires_grad


def hard_threshold(prob: Tensor, threshold: float = 0.5) -> Decision:
    """1 where ``prob`` exceeds ``threshold``, else 0; the gradient is that of ``prob`` (SkipNet, Eq. 2.7)."""
    hard = (prob.detach() > threshold).to(prob.dtype)
    if not prob.requires_grad:
        return Decision(hard, prob)
    # The difference in brackets is exactly 0, so that closed gates are.
    return Decision(hard + (prob - prob.detach()), prob)


def noisy_threshold(logit: Tensor, threshold: float = 0.5, temperature: float = 1.0) -> Decision:
    """``hard_threshold`` of the probability after logistic noise on ``logit``, straight through (the binary case of
    Gumbel noise): a gate far from the threshold is tried the other way now and then, and learns what that is worth.

    Args:
        logit: logarithm of the odds, (N,).
        threshold: of the noisy probability.
        temperature: of the sigmoid.
    """
    uniform = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
    noisy = torch.sigmoid((logit + torch.logit(uniform)) / temperature)
    return Decision(hard_threshold(noisy, threshold).gate, torch.sigmoid(logit / temperature))


def soft(prob: Tensor) -> Decision:
    """The probability itself: everything runs, weighted (the "soft" rows of SkipNet's Table 2.3)."""
    return Decision(prob, prob)


def bernoulli(prob: Tensor) -> Decision:
    """A sample of the policy with its log-probability, for REINFORCE (SkipNet, Eq. 2.4); no gradient in the gate."""
    action = torch.bernoulli(prob.detach())
    return Decision(action, prob, log_likelihood(action, prob))


def log_likelihood(action: Tensor, prob: Tensor) -> Tensor:
    """log of p^a (1 - p)^(1 - a) for actions a of {0, 1} or bool."""
    # Saturated probabilities would give log 0 for what can still be sampled in float32.
    safe = prob.clamp(1e-6, 1 - 1e-6)
    return torch.where(action > 0, safe.log(), (1 - safe).log())


def bounded(prob: Tensor, alpha: float) -> Tensor:
    """alpha p + (1 - alpha)(1 - p), which lies in [1 - alpha, alpha]: what is sampled from so that a policy does not
    stop to explore, as in BlockDrop."""
    return alpha * prob + (1 - alpha) * (1 - prob)


def gumbel(logits: Tensor, temperature: float = 1.0, noise: bool = True) -> Decision:
    """Straight-through Gumbel soft-max over (off, on) in the last dimension of ``logits`` (ConvNet-AIG).

    Args:
        logits: (..., 2).
        temperature: of the soft-max that gives the gradient.
        noise: False for the most likely choice, as in evaluation.
    """
    prob = logits.softmax(-1)[..., 1]
    if not noise:
        return hard_threshold(prob)
    uniform = torch.rand_like(logits).clamp(1e-9, 1 - 1e-7)
    relaxed = ((logits - (-uniform.log()).log()) / temperature).softmax(-1)[..., 1]
    return Decision(hard_threshold(relaxed).gate, prob)


def noisy_argmax(logits: Tensor, noise: float = 1.0, training: bool = True) -> Decision:
    """Arg-max over (off, on) after Gaussian noise of that standard deviation, in training only (CDB, Eq. 9).

    The paper names no gradient for the arg-max; it is that of the noisy soft-max, straight through.
    """
    prob = logits.softmax(-1)[..., 1]
    noisy = (logits + noise * torch.randn_like(logits)).softmax(-1)[..., 1] if training and noise > 0 else prob
    return Decision(hard_threshold(noisy).gate, prob)


def relu_gates(scores: Tensor) -> Decision:
    """Gates ReLU(scores): closed where exactly 0 (DeepMoE, Eq. 3.6). Computed in float32, where half precision would
    close small gates."""
    return Decision(F.relu(scores.float()))


def fixed(open_: Tensor) -> Decision:
    """A choice that is given: ``open_`` is bool or {0, 1}."""
    return Decision(open_.to(torch.float32))
