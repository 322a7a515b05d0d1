"""From a trained network and a budget to a gated network of equal accuracy, with a control beside it.

The stages: gates learn while the network goes on training and a budget draws them to a share of the multiply-adds;
their threshold is calibrated so that hard decisions cost that share; then the gates are fixed and the network trains on
the routes that evaluation takes. The control is the network without gates, trained on from the same weights with the
same rates for as many iterations.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyn_d2.checkpoint.files import no_file
from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import at_batch, build_cfg
from dyn_d2.config.output_dir import is_below
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.schedules import own_schedule
from dyn_d2.engine.stages import Stage, run_stage
from dyn_d2.gating.calibration import Calibrated, calibrate, unlabelled_batches
from dyn_d2.gating.meta_arch.dynamic import find_policy, gated_network
from dyn_d2.gating.policies.base import FIXED, POLICY_REGISTRY, Policy, policy_class
from dyn_d2.modeling.build import build_model
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.own_files import is_number, read_json_of

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

Train = Callable[[list[str]], None]
PLAIN, CONTROL, DEFAULT_POLICY = "plain", "control", "skipnet_rnn"
_ALL = 5  # MODEL.BACKBONE.FREEZE_AT of a backbone that learns nothing
_NAME = "MODEL.POLICY.NAME"
_CONSTANT, _COSINE = "WarmupMultiStepLR", "WarmupCosineLR"
_FPN, _RETINANET_FPN = "build_gated_fpn_backbone", "build_gated_retinanet_fpn_backbone"
# Builder of a plain backbone -> the gated one, and what then lies below a feature pyramid.
_BACKBONES = {
    "build_resnet_backbone": ("build_gated_resnet_backbone", ""),
    "build_timm_backbone": ("build_gated_timm_backbone", ""),
    "build_resnet_fpn_backbone": (_FPN, "build_gated_resnet_backbone"),
    "build_timm_fpn_backbone": (_FPN, "build_gated_timm_backbone"),
    "build_retinanet_resnet_fpn_backbone": (_RETINANET_FPN, "build_gated_resnet_backbone"),
    "build_timm_retinanet_fpn_backbone": (_RETINANET_FPN, "build_gated_timm_backbone"),
}
_META_ARCHITECTURES = {
    "GeneralizedRCNN": "DynamicRCNN",
    "RetinaNet": "DynamicRetinaNet",
    "RetinaMask": "DynamicRetinaMask",
    "SemanticSegmentor": "DynamicSegmentor",
}
# Beginning of a policy's name -> keys with which blocks that were trained to run do run at the start.
_OPEN_AT_FIRST: dict[str, dict[str, Any]] = {
    "skipnet": {"MODEL.POLICY.SKIPNET.RELAXATION": "noisy", "MODEL.POLICY.SKIPNET.INIT_BIAS": 2.0},
    "cdb": {"MODEL.POLICY.CDB.INIT_BIAS": 2.0},
}


def gated_form(cfg: CfgNode, was_open: bool = False) -> list[str]:
    """KEY VALUE pairs that turn the config of a plain network into that of the same network with gates; [] for one that
    has them. Weights fit, because gated backbones have the names of the plain ones.

    Args:
        was_open: that a gated backbone of ``cfg`` had no gates before the command named some.
    """
    keys: dict[str, Any] = {}
    backbone, bottom_up = _BACKBONES.get(cfg.MODEL.BACKBONE.NAME, ("", ""))
    if backbone:
        keys["MODEL.BACKBONE.NAME"] = backbone
    if bottom_up:
        keys["MODEL.GATED.BOTTOM_UP"] = bottom_up
    if cfg.MODEL.META_ARCHITECTURE in _META_ARCHITECTURES:
        keys["MODEL.META_ARCHITECTURE"] = _META_ARCHITECTURES[cfg.MODEL.META_ARCHITECTURE]
    policy = cfg.MODEL.POLICY.NAME
    if policy == "all_open":
        policy = keys[_NAME] = DEFAULT_POLICY
    if backbone or was_open or _NAME in keys:
        keys |= next((at_first for name, at_first in _OPEN_AT_FIRST.items() if policy.startswith(name)), {})
    return [str(part) for pair in keys.items() for part in pair]


@dataclass
class SlimStage(Stage):
    """One training of it; ``keys`` make its config from that of the command, ``others`` do not matter to it."""

    KEY = "MODEL.POLICY.STAGE"
    keys: list[str] = field(default_factory=list)
    others: tuple[str, ...] = ()

    def opts(self) -> list[str]:
        return self.keys

    def later_keys(self) -> tuple[str, ...]:
        return self.others

    def initial_weights(self, resume: bool) -> Path | None:
        return self.parents[-1].weights if self.parents else None


_OPEN = (_NAME, "all_open", "MODEL.POLICY.PLAN", "[]", "MODEL.POLICY.BUDGET.SHARE", "0.0")
_STAGE_KEYS = ("SOLVER.SECOND_STAGE", "SOLVER.FIXED_STAGE")
_SLIM_KEYS = ("SLIM", *_STAGE_KEYS, "MODEL.POLICY.PLAN")
_GATE_KEYS = (*_SLIM_KEYS, "MODEL.POLICY", "SOLVER.GATE_LR_FACTOR", "SOLVER.GATE_WEIGHT_DECAY")


@dataclass
class Slimming:
    """The trainings of one command, each made when those before it are done.

    Attributes:
        config_file, opts: of the command, with the gated form of the network among ``opts``.
        cfg: what they give.
        folder: OUTPUT_DIR.
        learning: the stages of the policy in which gates learn.
    """

    config_file: str
    opts: list[str]
    cfg: CfgNode
    folder: Path
    learning: list[str]

    @classmethod
    def of(cls, config_file: str, opts: Iterable[str]) -> "Slimming":
        """
        Raises:
            UserError: no budget, a policy that cannot keep one, nothing to start from, too few iterations, a
                schedule that the control would not have, or a backbone that learns nothing.
        """
        own = list(opts)
        if others := [key for key in own[::2] if is_below(key, _STAGE_KEYS)]:
            raise UserError(
                f"{others[0]} would give the gated network another schedule than the control: SOLVER.MAX_ITER, BASE_LR "
                "and SLIM.LEARN_SHARE are those of both."
            )
        unnamed = [part for pair in zip(own[::2], own[1::2], strict=True) if pair[0] != _NAME for part in pair]
        was_open = read_cfg(config_file, unnamed).MODEL.POLICY.NAME == "all_open"
        form = gated_form(read_cfg(config_file, own), was_open)
        kept = {key for key in own[::2] if key.startswith("MODEL.POLICY.")}  # what is said of gates holds
        for key, value in zip(form[::2], form[1::2], strict=True):
            own += [] if key in kept else [key, value]
        cfg = build_cfg(config_file, own)
        _check(cfg)
        _check_frozen(cfg, own[::2])
        plan = [stage for stage in cfg.MODEL.POLICY.PLAN if stage != FIXED]
        return cls(config_file, own, cfg, Path(cfg.OUTPUT_DIR), plan or [policy_class(cfg).STAGES[0]])

    def _stage(self, name: str, folder: str, keys: Sequence[Any], before: Stage | None, gated: bool) -> SlimStage:
        texts = [str(key) for key in keys]
        if not gated:
            texts = [*_OPEN, *texts]
        cfg = build_cfg(self.config_file, [*self.opts, *texts])
        others = _SLIM_KEYS if gated else _GATE_KEYS
        return SlimStage(name, self.folder / folder, cfg, [before] if before else [], texts, others)

    def plain(self) -> SlimStage | None:
        """The training of the network without gates, where there are no weights of it."""
        if self.cfg.MODEL.WEIGHTS:
            return None
        keys = {**_solver(self.cfg), **self._plain_schedule()}
        return self._stage(PLAIN, PLAIN, _pairs(keys), None, False)

    def _plain_schedule(self) -> dict[str, Any]:
        """SLIM.PLAIN, for the batch of the command as SOLVER is; values of the command line stay."""
        raw, given = read_cfg(self.config_file, self.opts).SOLVER, set(self.opts[::2])
        scales = raw.AUTO_SCALE and raw.REFERENCE_BATCH
        scale = raw.IMS_PER_BATCH / raw.REFERENCE_BATCH if scales else 1.0
        own = own_schedule(self.cfg.SLIM.PLAIN)
        return {k: v if f"SLIM.PLAIN.{k}" in given else at_batch(k, v, scale) for k, v in own.items()}

    def schedules(self) -> list[list[Any]]:
        """SOLVER keys of each learning stage, at a constant rate, and of the last stage, in which it falls to 0."""
        total, solver = self.cfg.SOLVER.MAX_ITER, _solver(self.cfg)
        share = round(total * self.cfg.SLIM.LEARN_SHARE / len(self.learning))
        constant = {**solver, "MAX_ITER": max(share, 1), "STEPS": (), "LR_SCHEDULER_NAME": _CONSTANT}
        rest = total - constant["MAX_ITER"] * len(self.learning)
        last = {**solver, "MAX_ITER": rest, "STEPS": (), "WARMUP_ITERS": 0, "LR_SCHEDULER_NAME": _COSINE}
        return [_pairs(constant)] * len(self.learning) + [_pairs(last)]

    def learn(self, number: int, before: Stage | None) -> SlimStage:
        """Learning stage ``number`` from 0, from the result of ``before``, None for MODEL.WEIGHTS."""
        name = self.learning[number]
        return self._stage(name, name, ["MODEL.POLICY.STAGE", name, *self.schedules()[number]], before, True)

    def fixed(self, before: Stage, threshold: float) -> SlimStage:
        """The last stage."""
        keys = ["MODEL.POLICY.STAGE", FIXED, "MODEL.POLICY.THRESHOLD", repr(threshold), *self.schedules()[-1]]
        return self._stage(FIXED, FIXED, keys, before, True)

    def control(self, number: int, before: Stage | None) -> SlimStage:
        """What goes on without gates beside stage ``number``."""
        last = number == len(self.learning)
        folder = CONTROL if last else f"{CONTROL}_{number + 1}"
        return self._stage(folder, folder, self.schedules()[number], before, False)

    def calibrated(self, learned: Stage) -> Calibrated:
        """The threshold for the result of the learning stages; read from its file where it was found before.

        Raises:
            UserError: no threshold keeps the budget, or the file is damaged.
        """
        path, target = learned.folder / "threshold.json", self.cfg.MODEL.POLICY.BUDGET.SHARE
        settings = [target, self.cfg.SLIM.IMAGES, learned.fingerprint()]
        if path.is_file():
            found = read_json_of(path, "calibrated threshold (remove it to calibrate again)")
            if found.get("settings") == settings and all(is_number(found.get(k)) for k in Calibrated._fields):
                return Calibrated(found["threshold"], found["share"])
        cfg = learned.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(learned.weights)
        model, _ = model_of(cfg)
        result = calibrate(model, unlabelled_batches(cfg, self.cfg.SLIM.IMAGES), target)
        write_json(path, {**result._asdict(), "settings": settings})
        return result


@dataclass
class Slimmed:
    """What came out.

    Attributes:
        start: of the network without gates, where it was trained here.
        gated, control: the last stages.
        calibrated: threshold and share on unlabelled training images.
    """

    start: Stage | None
    gated: Stage
    control: Stage
    calibrated: Calibrated


def slim(config_file: str, opts: Iterable[str], launcher: Iterable[str] = (), train: Train | None = None) -> Slimmed:
    """Run all trainings; finished ones are skipped, killed ones go on.

    Args:
        config_file, opts: of the network that is to be slimmed.
        launcher: options of ``dyn-d2 train`` such as ``--num-gpus 2``.
        train: called with the arguments of ``dyn-d2 train`` in place of a process.

    Raises:
        UserError: from ``Slimming.of`` and ``run_stage``.
    """
    task = Slimming.of(config_file, opts)

    def run(stage: SlimStage) -> SlimStage:
        run_stage(stage, task.config_file, task.opts, launcher, train)
        return stage

    start = task.plain()
    if start is not None:
        run(start)
    before: SlimStage | None = start
    for number in range(len(task.learning)):
        before = run(task.learn(number, before))
    assert before is not None  # there is a learning stage
    found = task.calibrated(before)
    logger.info(f"threshold {found.threshold:.4f}: {found.share:.1%} of the multiply-adds on training images")
    gated = run(task.fixed(before, found.threshold))
    before = start
    for number in range(len(task.learning) + 1):
        before = run(task.control(number, before))
    assert before is not None
    return Slimmed(start, gated, before, found)


def _check(cfg: CfgNode) -> None:
    name, share = cfg.MODEL.POLICY.NAME, cfg.MODEL.POLICY.BUDGET.SHARE
    if not 0 < share < 1:
        raise UserError(
            f"MODEL.POLICY.BUDGET.SHARE is {share}: give the share of the multiply-adds to keep, in (0, 1)."
        )
    if not _is_able(policy_class(cfg)):
        able = sorted(key for key, entry in POLICY_REGISTRY if _is_able(entry))
        raise UserError(
            f"MODEL.POLICY.NAME is {name}, {_why_unable(policy_class(cfg))}: gates that can keep a budget are "
            f"{', '.join(able)}."
        )
    first = policy_class(cfg).STAGES[0]
    if cfg.MODEL.POLICY.PLAN and cfg.MODEL.POLICY.PLAN[0] != first:
        raise UserError(
            f"MODEL.POLICY.PLAN is {list(cfg.MODEL.POLICY.PLAN)}: from a network without gates {name} starts with its "
            f"stage {first}."
        )
    if not cfg.MODEL.WEIGHTS and not cfg.SLIM.PLAIN.MAX_ITER:
        raise UserError(
            "MODEL.WEIGHTS is empty: name the checkpoint of the trained network, or let it be trained first, from "
            "MODEL.TIMM.WEIGHTS for example, with SLIM.PLAIN.MAX_ITER."
        )
    if cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS and not Path(cfg.MODEL.WEIGHTS).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS: {no_file(cfg.MODEL.WEIGHTS)}")
    if cfg.SOLVER.MAX_ITER < 3:
        raise UserError(
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: learning and fixed gates need 3 iterations at least."
        )
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: there is nothing to compare the networks on.")


def _check_frozen(cfg: CfgNode, given: Sequence[str]) -> None:
    """
    Args:
        given: keys of the command, which may ask for what a yaml has from its own purpose.
    """
    why = "the whole backbone is frozen, so that no block could learn to do without those that are skipped"
    if cfg.MODEL.BACKBONE.FREEZE_AT >= _ALL and "MODEL.BACKBONE.FREEZE_AT" not in given:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}: {why}. Add MODEL.BACKBONE.FREEZE_AT 2 (or 5, "
            "if nothing but the gates and the heads is to learn)."
        )
    if not cfg.MODEL.FREEZE:
        return
    backbone, names = getattr(build_model(cfg), "backbone", None), list(cfg.MODEL.FREEZE)
    network, policy = gated_network(backbone), find_policy(backbone)
    if network is None or policy is None:
        return
    gates = set(policy.parameters())
    if gates and not any(gate.requires_grad for gate in gates):
        raise UserError(
            f"MODEL.FREEZE is {names}, which freezes the gates too, as they lie in the backbone: add MODEL.FREEZE [] "
            "or name parts of the backbone."
        )
    learns = any(parameter.requires_grad for parameter in {*network.parameters()} - gates)
    if not learns and "MODEL.FREEZE" not in given:
        raise UserError(
            f"MODEL.FREEZE is {names}: {why}. Add MODEL.FREEZE [] (or the same names, if nothing but the gates and the "
            "heads is to learn)."
        )


def _is_able(policy: type[Policy]) -> bool:
    return not _why_unable(policy)


def _why_unable(policy: type[Policy]) -> str:
    """What gates of this policy lack to be drawn to a budget, fixed, and put into a network without gates."""
    if not policy.PROBABILITIES:
        return "whose decisions have no probabilities that a budget could draw to a share"
    if FIXED not in policy.STAGES:
        return "which has no stage in which gates are fixed"
    if policy.STAGES[0] == "pretrain":
        return f"whose own training begins with the plain network (`dyn-d2 stages` runs {', '.join(policy.STAGES)})"
    return ""


def _solver(cfg: CfgNode) -> dict[str, Any]:
    keys = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS", "LR_SCHEDULER_NAME", "WEIGHT_DECAY")
    return {key: cfg.SOLVER[key] for key in keys}


def _pairs(keys: dict[str, Any]) -> list[Any]:
    return [part for key, value in keys.items() for part in (f"SOLVER.{key}", value)]
