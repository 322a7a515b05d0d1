"""The losses of dynamic networks, as functions of decisions. None of them is weighted, except where an equation is.

Numbers of equations: see the sources in ``policies/__init__.py``.

Shape shorthand: N images, T decisions of an image. Rates and shares lie in [0, 1], costs are multiply-adds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import executed_by
from .trace import Step


def skip_returns(opened: Tensor, losses: Tensor, alpha: float, beta: float | None = None) -> Tensor:
    """The return of each decision of SkipNet's policy, with the relaxed reward (below Eq. 2.6):

        r_i = -[beta L - alpha / T sum_{j >= i} R_j],   R_j = 1 - g_j,

    that is C_j = 1, what skipping block j saves.

    Args:
        opened: (N, T) of {0, 1} or bool, the actions g.
        losses: (N,) loss L of each image on the path that was taken.
        alpha: what skipping is worth against the loss.
        beta: weight of the loss; None: alpha / T, as there.

    Returns:
        (N, T), without gradient.
    """
    count = max(opened.shape[1], 1)
    skipped = 1 - opened.detach().to(torch.float32)
    to_come = skipped.flip(1).cumsum(1).flip(1)
    beta = alpha / count if beta is None else beta
    return alpha / count * to_come - beta * losses.detach().float()[:, None]


def sampled_log_probs(steps: Sequence[Step]) -> Tensor:
    """(N, T) logarithm of the probability of each action that was sampled, with gradient."""
    return torch.stack([step.decision.log_prob for step in steps if step.decision.log_prob is not None], 1)


def policy_gradient_loss(log_probs: Tensor, returns: Tensor) -> Tensor:
    """- sum_i log p(g_i | x) r_i, averaged over images: its gradient is the last term of SkipNet's Eq. 2.6.

    Args:
        log_probs: (N, T) logarithm of the probability of each sampled action, with gradient.
        returns: (N, T); a baseline may have been subtracted.
    """
    return -(log_probs * returns.detach()).sum() / max(len(log_probs), 1)


def gate_sparsity(gates: Sequence[Tensor]) -> Tensor:
    """L_g of DeepMoE, Eq. 3.8: sum of the gates over layers and channels, averaged over images.

    Args:
        gates: (N, C_l), not negative, for each layer l.
    """
    return torch.stack([gate.sum() for gate in gates]).sum() / max(len(gates[0]), 1)


def execution_rate(gate: Tensor) -> Tensor:
    """z_l: mean of the gates of a unit, (N,) or (N, G), over images and groups; 0 for an empty batch."""
    return gate.sum() / max(gate.numel(), 1)


def execution_loss(gates: Sequence[Tensor], target: float) -> Tensor:
    """L_exec of CDB, Eq. 10 and 11: sum over blocks of (e - z_l)^2.

    Args:
        gates: (N,) or (N, G) for each block, 0 or 1, with straight-through gradient.
        target: e.
    """
    rates = torch.stack([execution_rate(gate) for gate in gates])
    return ((target - rates) ** 2).sum()


def executed_cost(gates: Sequence[Tensor], unit_costs: Sequence[Tensor]) -> Tensor:
    """f of CDB, Eq. 13: multiply-adds of the gated parts that ran, mean over images, with the gradient of the gates.

    Args:
        gates: (N,) or (N, G) for each block.
        unit_costs: (1,) or (G,) for each block.
    """
    images = len(gates[0])
    total = torch.stack(
        [executed_by(gate.reshape(images, len(cost)), cost).sum() for gate, cost in zip(gates, unit_costs, strict=True)]
    ).sum()
    return total / max(images, 1)


def flops_loss(executed: Tensor, total: float, target: float) -> Tensor:
    """L_flops of CDB, Eq. 12: (f / f_total - r)^2."""
    return (executed / total - target) ** 2


def category_loss(logits: Sequence[Tensor], categories: Tensor, weights: Sequence[float]) -> Tensor:
    """L_ctg of CDB, Eq. 7 and 8: sum over blocks of alpha_l times the cross entropy of its controller.

    Eq. 7 lacks the minus sign of the cross entropy that the text names.

    Args:
        logits: (N, K) for each block.
        categories: int64 (N,).
        weights: alpha_l for each block.
    """
    terms = [
        weight * F.cross_entropy(scores, categories, reduction="sum")
        for scores, weight in zip(logits, weights, strict=True)
    ]
    return torch.stack(terms).sum() / max(len(categories), 1)


def target_rate_loss(gates: Sequence[Tensor], targets: Sequence[float]) -> Tensor:
    """That of ConvNet-AIG: mean over blocks of (t_l - rate_l)^2.

    Args:
        gates: (N,) for each block, 0 or 1, with straight-through gradient.
        targets: t_l.
    """
    terms = [(target - execution_rate(gate)) ** 2 for gate, target in zip(gates, targets, strict=True)]
    return torch.stack(terms).mean()


def drop_reward(opened: Tensor, accuracy: Tensor, penalty: float) -> Tensor:
    """R of BlockDrop (Wu et al., CVPR 2018, Eq. 3): 1 - (share of open blocks)^2 for a right answer, -penalty for a
    wrong one; between the two in proportion where the accuracy is neither 0 nor 1.

    Args:
        opened: (N, T) of {0, 1} or bool.
        accuracy: (N,) in [0, 1].

    Returns:
        float32 (N,).
    """
    usage = opened.float().mean(1)
    right = accuracy.float()
    return right * (1 - usage**2) - (1 - right) * penalty
