"""PMN: how many modules run for an image, and which levels of a concept tree each of them recognises (Liang,
CVPR 2019).

After each module a recurrent policy decides whether to go on (Eq. 1, 2) and, if so, which levels the module takes (Eq.
3 to 5), among those that the graph search allows. The predictions of modules that took levels are weighted and averaged
(Eq. 6) by the head: ``ImageClassifier`` or ``PMNHead``. Stage "pretrain" trains the network with a prediction from its
last module, or from each of them by itself, stage "joint" network and policy together (Eq. 7 to 12).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Decision, TakenLevels, Trace, Unit
from dyn_d2.gating.cost import linear_cost, lstm_cost
from dyn_d2.gating.decisions import bernoulli, bounded, fixed, log_likelihood
from dyn_d2.gating.execution import gather
from dyn_d2.gating.losses import policy_gradient_loss
from dyn_d2.gating.policies.base import POLICY_REGISTRY, Policy
from dyn_d2.gating.policies.fixed import kept
from dyn_d2.gating.policies.gate_layers import (
    apply_linear,
    check_choice,
    check_positive,
    check_threshold,
    pool_valid,
    valid_area,
)
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode

from .levels import KnowledgeLevels, action_space, build_levels
from .module_predictions import ModuleClassifier, WeightedAverage
from .rollout import GREEDY, SAMPLED, ModuleOutput, PMNState, Rollout

LEARNED = ("levels", "modules", "stop")
HEURISTICS = ("fixed", "random", "distribute")


@POLICY_REGISTRY.register_as("pmn")
class PMN(Policy):
    """The recurrent policy, its ablations and the heuristics that the paper compares it with.

    Modules are the units of the last stages; blocks before them always run, and so does the first module. Attributes:

        modules_at: index of the unit of each module.
        module_channels: of the feature map that each module gives.
        levels: the knowledge levels.
    """

    KINDS = ("block",)
    STAGES = ("pretrain", "joint")
    selected: Tensor
    start: Tensor
    reach: Tensor
    stops = True
    LATER_KEYS = tuple(
        f"MODEL.POLICY.{key}"
        for key in ("THRESHOLD", *(f"PMN.{k}" for k in ("HOPS", "OVERLAP", "OFF_LEVEL_WEIGHT", "WEIGH", "ALPHA",
                    "STOP_ALPHA", "LAMBDA", "WEIGHT", "TRAIN_ON", "INIT_BIAS")))
    )  # fmt: skip

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        stage: str = "pretrain",
        levels: KnowledgeLevels | None = None,
        actions: str = "levels",
        num_stages: int = 0,
        num_modules: int = 0,
        overlap: bool = True,
        width: int = 512,
        threshold: float = 0.5,
        alpha: float = 0.8,
        stop_alpha: float = 0.8,
        usage_weight: float = 0.5,
        weight: float = 1.0,
        train_on: str = "sampled",
        init_bias: float = 0.0,
        pretrain: str = "last",
    ) -> None:
        """
        Args:
            units: blocks.
            stage: "pretrain" or "joint".
            levels: what modules can recognise; None for one level.
            actions: what is decided. "levels": when to stop and which levels each module takes; "modules": when to stop
                and which modules predict ("Policy-adaptive"); "stop": when to stop, all modules predict ("Policy").
                Nothing is learned with "fixed" (the first ``num_modules`` run, the last of them predicts), "random" (as
                many, drawn once, each predicts) and "distribute" (the same, evenly spread).
            num_stages: how many stages, from the end, consist of modules; 0 for all.
            num_modules: for the heuristics; 0 for all.
            overlap: whether levels may be taken again by later modules.
            width: of the LSTM and of its input.
            threshold: in evaluation an image goes on where q_k is greater.
            alpha: bounds p_k in sampling, Eq. 12.
            stop_alpha: bounds q_k, Eq. 11.
            usage_weight: lambda of Eq. 7.
            weight: of the policy gradient beside the task's loss.
            train_on: which predictions the network learns from: "sampled", or "both" (the greedy ones as well).
            init_bias: first logit of q_k.
            pretrain: which modules predict in stage "pretrain": the "last" one, or "all" of them, each with a loss of
                its own, so that none of them starts stage "joint" at chance.
        """
        super().__init__(units)
        self.stage = check_choice("STAGE", stage, self.STAGES)
        self.actions = check_choice("PMN.ACTIONS", actions, LEARNED + HEURISTICS)
        self.train_on = check_choice("PMN.TRAIN_ON", train_on, ("sampled", "both"))
        self.pretrain = check_choice("PMN.PRETRAIN", pretrain, ("last", "all"))
        self.threshold = check_threshold(threshold)
        self.alpha, self.stop_alpha = _check_bound("ALPHA", alpha), _check_bound("STOP_ALPHA", stop_alpha)
        self.usage_weight, self.weight, self.overlap = usage_weight, check_positive("PMN.WEIGHT", weight), overlap
        self.levels = levels or KnowledgeLevels.flat()
        self.modules_at = _modules(self.units, num_stages)
        count = len(self.modules_at)
        if not 0 <= num_modules <= count:
            raise ValueError(f"MODEL.POLICY.PMN.MODULES is {num_modules}, but there are {count} modules; 0 for all.")
        self._place_modules(actions, num_modules or count)
        if actions in LEARNED:
            self._add_network(width, init_bias)

    def _place_modules(self, actions: str, number: int) -> None:
        count = len(self.modules_at)
        if actions == "random":
            selected = torch.zeros(count, dtype=torch.bool)
            selected[torch.randperm(count)[:number]] = True
        else:
            order = "even" if actions == "distribute" else "last"
            selected = torch.tensor(kept(count, number / count, order))
        # What was drawn belongs to the model.
        self.register_buffer("selected", selected, persistent=actions == "random")
        self.register_buffer("start", self.levels.start, persistent=False)
        self.register_buffer("reach", self.levels.reach, persistent=False)

    def _add_network(self, width: int, init_bias: float) -> None:
        self.projections = nn.ModuleList(nn.Linear(channels, width) for channels in self._distinct_channels())
        self.lstm = nn.LSTMCell(width, width)
        self.score = nn.Linear(width, 1 + len(self.levels))
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)
        nn.init.constant_(self.score.bias[:1], init_bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        policy, pmn = cfg.MODEL.POLICY, cfg.MODEL.POLICY.PMN
        return {
            "stage": policy.STAGE or cls.STAGES[0],
            "levels": build_levels(cfg),
            "actions": pmn.ACTIONS,
            "num_stages": pmn.STAGES,
            "num_modules": pmn.MODULES,
            "overlap": pmn.OVERLAP,
            "width": pmn.WIDTH,
            "threshold": policy.THRESHOLD,
            "alpha": pmn.ALPHA,
            "stop_alpha": pmn.STOP_ALPHA,
            "usage_weight": pmn.LAMBDA,
            "weight": pmn.WEIGHT,
            "train_on": pmn.TRAIN_ON,
            "init_bias": pmn.INIT_BIAS,
            "pretrain": pmn.PRETRAIN,
        }

    def build_classifier(self, cfg) -> ModuleClassifier:
        classes = cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES
        return ModuleClassifier(self.module_channels, WeightedAverage.from_config(cfg, classes, "thing_classes"))

    @property
    def module_channels(self) -> list[int]:
        """Channels of the feature map that each module gives."""
        following = [self.units[index + 1].channels for index in self.modules_at[:-1]]
        last = self.units[self.modules_at[-1]]
        return [*following, last.out_channels or last.channels]

    def _distinct_channels(self) -> list[int]:
        return sorted(set(self.module_channels))

    def _projection(self, channels: int) -> nn.Linear:
        """From so many channels to the input of the LSTM."""
        layer = self.projections[self._distinct_channels().index(channels)]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def learns(self) -> bool:
        """Whether the policy decides anything in this stage."""
        return self.stage == "joint" and self.actions in LEARNED

    @property
    def adds_losses(self) -> bool:
        return self.learns

    @property
    def _alone(self) -> dict[str, int]:
        """Rollouts of stage "pretrain" in which one module predicts alone, and which: all but the last one, whose
        prediction is the greedy one."""
        if not (self.training and self.stage == "pretrain" and self.pretrain == "all"):
            return {}
        return {f"module {module}": module for module in range(len(self.modules_at) - 1)}

    def force_open(self) -> bool:
        """All modules run and the last one predicts, as in stage "pretrain"."""
        self.stage = "pretrain"
        return True

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> PMNState:
        count, device = len(images), images.device
        samples = self.training and self.learns
        names = (GREEDY, SAMPLED) if samples else (GREEDY, *self._alone)
        rollouts = {name: Rollout.begin(count, len(self.levels), device) for name in names}
        trained = ((SAMPLED, GREEDY) if self.train_on == "both" else (SAMPLED,)) if samples else names
        return PMNState(valid_area(images, image_sizes), torch.arange(count, device=device), rollouts, trained)

    def stay(self, index: int, features: Tensor, state: PMNState) -> Tensor | None:
        if index <= self.modules_at[0]:
            return None
        module = self.modules_at.index(index) - 1 if index < len(self.units) else len(self.modules_at) - 1
        last = module == len(self.modules_at) - 1
        rows = state.rows
        actions = self._learned_actions(module, features, state) if self.learns else self._given_actions(module, state)
        predictions = {
            name: state.rollouts[name].step(rows, going, levels, last, log_prob)
            for name, (going, levels, log_prob) in actions.items()
        }
        self._remember(module, features, predictions, state)
        if last:
            return None
        return torch.stack([rollout.going[rows] for rollout in state.rollouts.values()]).any(0)

    def keep(self, kept: Tensor, state: PMNState) -> None:
        state.keep(kept)

    def _remember(self, module: int, features: Tensor, predictions: dict, state: PMNState) -> None:
        needed = torch.stack([prediction.predicts for prediction in predictions.values()]).any(0).nonzero()[:, 0]
        if len(needed):
            # A copy, as the next block may overwrite its input.
            own = {name: prediction.part(needed) for name, prediction in predictions.items()}
            state.outputs.append(ModuleOutput(module, state.rows[needed], gather(features, needed), own))

    def probabilities(self, module: int, features: Tensor, state: PMNState) -> tuple[Tensor, Tensor]:
        """q_k (n,) and p_k (n, M), Eq. 1 and 4, for all levels; moves the LSTM on.

        The gradient ends here: the policy gradient is for W, the policy's parameters, alone (Eq. 9).
        """
        pooled = pool_valid(features.detach(), state.valid_of(state.rows))
        x = F.relu(apply_linear(self._projection(features.shape[1]), pooled))
        with torch.autocast(x.device.type, enabled=False):
            hidden, cell = self.lstm(x.to(self.score.weight.dtype), state.hidden)
        state.hidden = hidden, cell
        scores = torch.sigmoid(apply_linear(self.score, hidden))
        return scores[:, 0], scores[:, 1:]

    def _learned_actions(self, module: int, features: Tensor, state: PMNState) -> dict[str, tuple]:
        """For each rollout T_k (n,), a_k (n, M) and, where they are sampled, log pi of both (n,)."""
        q, p = self.probabilities(module, features, state)
        actions = {}
        for name, rollout in state.rollouts.items():
            alive = rollout.going[state.rows]
            allowed = action_space(rollout.taken[state.rows], self.start, self.reach, self.overlap)
            act = self._sample if name == SAMPLED else self._most_likely
            actions[name] = act(q, p, alive, allowed)
        return actions

    def _sample(self, q: Tensor, p: Tensor, alive: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stop = bernoulli(bounded(q, self.stop_alpha))
        assert stop.log_prob is not None  # as it is sampled
        going = stop.open & alive
        if self.actions == "stop":
            return going, going[:, None], stop.log_prob * alive
        bounded_p = bounded(p, self.alpha)
        space = allowed & going[:, None]
        levels = torch.bernoulli(bounded_p.detach()).bool() & space
        log_levels = (log_likelihood(levels, bounded_p) * space).sum(1)
        return going, levels, stop.log_prob * alive + log_levels

    def _most_likely(self, q: Tensor, p: Tensor, alive: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, None]:
        going = (q.detach() > self.threshold) & alive
        levels = going[:, None] if self.actions == "stop" else (p.detach() > 0.5) & allowed & going[:, None]
        return going, levels, None

    def _given_actions(self, module: int, state: PMNState) -> dict[str, tuple]:
        """Of stage "pretrain" and of the heuristics."""
        selected = torch.ones_like(self.selected) if self.stage == "pretrain" else self.selected
        last = int(selected.nonzero().max())
        alone = self.stage == "pretrain" or self.actions not in ("random", "distribute")
        predicts = module == last if alone else bool(selected[module])
        shape = len(state.rows), len(self.levels)
        going = torch.full(shape[:1], module < last, dtype=torch.bool, device=state.rows.device)
        chosen = {GREEDY: predicts} | {name: module == own for name, own in self._alone.items()}
        return {
            name: (going, torch.full(shape, here, dtype=torch.bool, device=state.rows.device), None)
            for name, here in chosen.items()
        }

    def stay_cost(self, index: int) -> float:
        if not self.learns or index <= self.modules_at[0]:
            return 0.0
        module = self.modules_at.index(index) - 1 if index < len(self.units) else len(self.modules_at) - 1
        layer = self._projection(self.module_channels[module])
        return linear_cost(layer, self.score) + lstm_cost(self.lstm)

    def decide(self, index: int, features: Tensor, state: PMNState) -> Decision:
        opened = True
        if self.stage == "joint" and self.actions in HEURISTICS and index in self.modules_at:
            opened = bool(self.selected[self.modules_at.index(index)])
        return fixed(torch.full((len(features),), opened, device=features.device))

    def fixed_route(self) -> list[bool]:
        """Behind the last module that a heuristic selects there are no images, so that "fixed" leaves all open."""
        opened = [True] * len(self.units)
        if self.stage == "joint" and self.actions in HEURISTICS:
            chosen = self.selected.tolist()
            last = max(module for module, here in enumerate(chosen) if here)
            for module, index in enumerate(self.modules_at[:last]):
                opened[index] = chosen[module]
        return opened

    def taken_levels(self, state: PMNState) -> TakenLevels | None:
        """a_k of each module in the greedy rollout; None where the policy chooses no levels."""
        if not self.learns or self.actions == "stop":
            return None
        names = [self.units[index].name for index in self.modules_at]
        return TakenLevels(self.levels.names, dict(zip(names, state.rollouts[GREEDY].levels, strict=True)))

    def rewards(self, rollout: Rollout) -> Tensor:
        """R of Eq. 7, (N,).

        Raises:
            UserError: no head has predicted from the modules.
        """
        if rollout.accuracy is None:
            raise UserError(
                "MODEL.POLICY.NAME pmn is rewarded for right predictions of its modules, which this model does not "
                "make: use MODEL.META_ARCHITECTURE ImageClassifier, or DynamicSegmentor with MODEL.SEM_SEG_HEAD.NAME "
                "PMNHead."
            )
        return usage_reward(rollout.stops, len(self.modules_at), rollout.accuracy, self.usage_weight)

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        """Self-critical policy gradient, Eq. 10: its gradient is minus that of the paper's objective J."""
        if not self.learns:
            return {}
        sampled, greedy = (trace.context.state.rollouts[name] for name in (SAMPLED, GREEDY))
        advantage = self.rewards(sampled) - self.rewards(greedy)
        log_probs = torch.stack(sampled.log_probs, 1)
        return {"loss_policy": self.weight * policy_gradient_loss(log_probs, advantage[:, None])}


def usage_reward(stops: Tensor, modules: int, accuracy: Tensor, weight: float) -> Tensor:
    """R of Eq. 7: lambda (1 - (m / K)^2) + A.

    Args:
        stops: (N,), m: the modules that ran.
        modules: K.
        accuracy: (N,), A in [0, 1].
        weight: lambda.

    Returns:
        float32 (N,).
    """
    return weight * (1 - (stops.float() / modules) ** 2) + accuracy.float()


def _modules(units: Sequence[Unit], num_stages: int) -> list[int]:
    """Indices of the units that are modules."""
    stages = sorted({unit.stage for unit in units})
    if not 0 <= num_stages <= len(stages):
        raise ValueError(f"MODEL.POLICY.PMN.STAGES is {num_stages}, but {len(stages)} stages have gated blocks.")
    chosen = stages[-num_stages:] if num_stages else stages
    return [index for index, unit in enumerate(units) if unit.stage in chosen]


def _check_bound(key: str, alpha: float) -> float:
    if not 0.5 < alpha <= 1:
        raise ValueError(f"MODEL.POLICY.PMN.{key} is {alpha}: use a value in (0.5, 1]; 1 does not bound anything.")
    return float(alpha)
