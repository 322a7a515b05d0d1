"""The record of PMN's decisions in one forward pass: what its policy fills and the heads predict from.

Shape shorthand: N images of the batch, n of them at a module, M knowledge levels, K modules.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dyn_d2.gating import Trace
from dyn_d2.gating.policies.gate_layers import ValidArea
from dyn_d2.utils.errors import UserError

SAMPLED, GREEDY = "sampled", "greedy"


@dataclass
class Rollout:
    """One choice of actions for each image: sampled ones, or those of the highest probability.

    Attributes:
        going: bool (N,), False for images that have stopped.
        stops: int64 (N,), m: how many modules have run so far.
        taken: bool (N, M), Omega'_k: levels taken by any module so far.
        counts: int64 (N,), |a'|: how many modules predict.
        levels: for each module so far a_k, bool (N, M).
        log_probs: for each module so far (N,), log pi of the actions taken there; empty where none is sampled.
        accuracy: (N,) in [0, 1], A of Eq. 7; set by the head.
    """

    going: Tensor
    stops: Tensor
    taken: Tensor
    counts: Tensor
    levels: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)
    accuracy: Tensor | None = None

    @classmethod
    def begin(cls, images: int, levels: int, device: torch.device) -> "Rollout":
        zeros = torch.zeros(images, dtype=torch.int64, device=device)
        taken = torch.zeros(images, levels, dtype=torch.bool, device=device)
        return cls(torch.ones(images, dtype=torch.bool, device=device), zeros, taken, zeros.clone())

    def step(self, rows: Tensor, going: Tensor, levels: Tensor, last: bool, log_prob: Tensor | None) -> "Prediction":
        """Take down what one module does.

        An image that ends here and for which no module has predicted gets its prediction from this one, unweighted: the
        paper leaves |a'| = 0 open.

        Args:
            rows: int64 (n,), the images at the module; some may have stopped in this rollout.
            going: bool (n,), T_k.
            levels: bool (n, M), a_k; none where T_k is 0.
            last: whether it is module K.
            log_prob: (n,) of these actions.
        """
        before = self.going[rows]
        ends = before if last else before & ~going
        plain = ends & ~levels.any(1) & (self.counts[rows] == 0)
        predicts = levels.any(1) | plain
        self.stops = self.stops.index_add(0, rows, before.long())
        self.counts = self.counts.index_add(0, rows, predicts.long())
        self.taken = self.taken.index_copy(0, rows, self.taken[rows] | levels)
        self.going = self.going.index_copy(0, rows, going)
        self.levels.append(torch.zeros_like(self.taken).index_copy(0, rows, levels))
        if log_prob is not None:
            self.log_probs.append(log_prob.new_zeros(len(self.going)).index_copy(0, rows, log_prob))
        return Prediction(predicts, levels, plain)


@dataclass
class Prediction:
    """For which of n images a module predicts (bool (n,)), the levels it took (bool (n, M)), and where its prediction
    is not weighted because it is the only one (bool (n,))."""

    predicts: Tensor
    levels: Tensor
    plain: Tensor

    def part(self, index: Tensor) -> "Prediction":
        return Prediction(self.predicts[index], self.levels[index], self.plain[index])


@dataclass
class ModuleOutput:
    """What a module gave for the images for which it predicts in some rollout.

    Attributes:
        module: number of the module, from 0.
        rows: int64 (n,), the images.
        features: (n, C, h, w).
        predictions: name of the rollout -> who predicts there.
    """

    module: int
    rows: Tensor
    features: Tensor
    predictions: dict[str, Prediction]


@dataclass
class PMNState:
    """Of one forward pass.

    Attributes:
        valid: area of each of the N images, None without padding.
        rows: int64 (n,), the images that have not stopped in all rollouts.
        rollouts: by name; "greedy" always, "sampled" in training.
        trained: the rollouts whose predictions the head learns from.
        hidden: (h, c) of the LSTM for ``rows``, None before the first module.
        outputs: of the modules that predict.
    """

    valid: ValidArea | None
    rows: Tensor
    rollouts: dict[str, Rollout]
    trained: tuple[str, ...]
    hidden: tuple[Tensor, Tensor] | None = None
    outputs: list[ModuleOutput] = field(default_factory=list)

    def valid_of(self, rows: Tensor) -> ValidArea | None:
        """The area of some of the images."""
        return None if self.valid is None else ValidArea(self.valid.sizes[rows], self.valid.padded)

    def keep(self, kept: Tensor) -> None:
        """Go on with the elements ``kept``, int64 (n',), of ``rows``, in this order."""
        self.rows = self.rows[kept]
        if self.hidden is not None:
            self.hidden = self.hidden[0][kept], self.hidden[1][kept]


def state_of(trace: Trace | None) -> PMNState:
    """What PMN's policy left in the trace of this forward pass.

    Raises:
        UserError: nothing is recorded, or the policy is another one.
    """
    state = None if trace is None else trace.context.state
    if not isinstance(state, PMNState):
        raise UserError(
            "this head predicts from the modules that MODEL.POLICY.NAME pmn chooses, but there is no record of them: "
            "use that policy, a gated backbone, and MODEL.META_ARCHITECTURE ImageClassifier or DynamicSegmentor."
        )
    return state
