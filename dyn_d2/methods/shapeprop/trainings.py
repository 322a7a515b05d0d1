"""The trainings of instance segmentation with few masks: methods by name, each in a setting and with a seed.

All methods of a seed can start from one detector that was trained without masks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.frozen_maps import maps_folder
from dyn_d2.engine.job_queue import quiet
from dyn_d2.engine.stages import Stage
from dyn_d2.evaluation.partial_masks import mask_groups
from dyn_d2.utils.atomic import write_json

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .annotator import objects_without_masks, predict_masks


@dataclass(frozen=True)
class Host:
    """What ShapeProp is built into.

    Attributes:
        title: in tables.
        heads, shape_prop_heads: MODEL.ROI_HEADS.NAME without and with ShapeProp.
        detector: its modules that masks do not need to change.
    """

    title: str
    heads: str
    shape_prop_heads: str
    detector: tuple[str, ...]


HOSTS = {  # by MODEL.META_ARCHITECTURE
    "GeneralizedRCNN": Host(
        "Mask R-CNN",
        "DynROIHeads",
        "ShapePropROIHeads",
        ("backbone", "proposal_generator", "roi_heads.box_head", "roi_heads.box_predictor"),
    ),
    "RetinaMask": Host("RetinaMask", "MaskROIHeads", "ShapePropMaskROIHeads", ("backbone", "head")),
}


@dataclass(frozen=True)
class Method:
    """How masks are learnt.

    Attributes:
        title: its row of the table; "{}" stands for the host.
        shape_prop: with ShapeProp.
        opts: KEY VALUE pairs.
        deeper: the mask head has about as many parameters more, in further convolutions, as ShapeProp would add.
        all_masks: it has all masks, whatever the setting: an upper bound.
        teacher: the method whose model predicts the masks that are missing.
    """

    title: str
    shape_prop: bool = False
    opts: tuple[str, ...] = ()
    deeper: bool = False
    all_masks: bool = False
    teacher: str = ""


_TRANSFER = (
    "MODEL.ROI_MASK_HEAD.NAME", "WeightTransferMaskHead", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "False",
)  # fmt: skip
# In the order of the table: rows of Tables 8.1 to 8.3, and of the ablation of Table 8.4.
METHODS = {
    "mask_rcnn": Method("{}"),
    "mask_x": Method("{}, weight transfer (Mask^X)", opts=_TRANSFER),
    "grabcut": Method("{}, GrabCut", opts=("INPUT.PARTIAL_MASKS.PSEUDO", "grabcut")),
    "progressive": Method("{}, progressive", teacher="mask_rcnn"),
    "shapeprop": Method("{} + ShapeProp", True),
    "no_mil": Method("{} + ShapeProp, no MIL", True, ("MODEL.SHAPE_PROP.MIL", "False")),
    "no_propagation": Method("{} + ShapeProp, no propagation", True, ("MODEL.SHAPE_PROP.PROPAGATION", "False")),
    "no_integration": Method("{} + ShapeProp, no integration", True, ("MODEL.SHAPE_PROP.INTEGRATION", "none")),
    "channel_agnostic": Method("{} + ShapeProp, channel-agnostic", True, ("MODEL.SHAPE_PROP.CHANNEL_AGNOSTIC", "True")),
    "other_norm": Method("{} + ShapeProp, ", True),
    "more_parameters": Method("{}, more parameters in the mask head", deeper=True),
    "oracle": Method("{}, all masks", all_masks=True),
    "oracle_shapeprop": Method("{} + ShapeProp, all masks", True, all_masks=True),
}
CATEGORY = "category"


def methods_of(cfg: CfgNode, more: Iterable[Sequence[str]] = ()) -> dict[str, Method]:
    """METHODS with the titles of the config's host, and others.

    Args:
        more: of each other method its name, the one that it varies, and KEY, VALUE, ...

    Raises:
        ValueError: there is no such host or method.
    """
    if cfg.MODEL.META_ARCHITECTURE not in HOSTS:
        raise ValueError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: use {' or '.join(HOSTS)}.")
    host = HOSTS[cfg.MODEL.META_ARCHITECTURE].title
    known = {name: replace(method, title=method.title.format(host)) for name, method in METHODS.items()}
    known |= {
        name: replace(method, opts=(*method.opts, "MODEL.ROI_MASK_HEAD.NUM_CONV", str(_depth_with_as_many(cfg))))
        for name, method in known.items()
        if method.deeper
    }
    norm = "" if cfg.MODEL.SHAPE_PROP.NORM else "GN"
    title = known["other_norm"].title + ("group norm" if norm else "no norm")
    known["other_norm"] = replace(known["other_norm"], title=title, opts=("MODEL.SHAPE_PROP.NORM", norm))
    for name, base, *opts in more:
        _check_methods([base], known)
        known[name] = replace(known[base], title=name, opts=(*known[base].opts, *opts))
    return known


def _depth_with_as_many(cfg: CfgNode) -> int:
    """Convolutions of a plain mask head that has about the parameters of a mask head with ShapeProp before it."""
    head, shapes = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.SHAPE_PROP
    width, channels, encoded = shapes.CONV_DIM, cfg.MODEL.FPN.OUT_CHANNELS, shapes.INTEGRATION == "encoding"
    stack = width * (channels + (shapes.NUM_CONV - 1) * width)
    added = stack * (1 if shapes.SHARE_FEATURES or not shapes.PROPAGATION else 2)
    if encoded:
        added += width * (1 + (shapes.NUM_CONV - 1) * width) + width * head.CONV_DIM
    return head.NUM_CONV + round(added / head.CONV_DIM**2)


def _check_methods(names: Iterable[str], known: Mapping[str, Method]) -> None:
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}: use {', '.join(known)}, or define it by --method.")


@dataclass(frozen=True)
class Cell:
    """One final model: a name of a method, a setting, and a seed.

    Settings are "category" (masks of INPUT.PARTIAL_MASKS.CLASSES), "image_P" (masks of P percent of the images) and
    "data_P" (P percent of the images and all of their masks, nothing of the others: Fig. 8.6).
    """

    method: str
    setting: str
    seed: int


@dataclass(frozen=True)
class Schedule:
    """How long is trained.

    Attributes:
        mask_iterations: with masks.
        box_iterations: before that without, once a seed for all methods; 0: each starts from MODEL.WEIGHTS.
        mask_rate: SOLVER.BASE_LR with masks; None: the config's.
        frozen: with masks only what predicts these learns, the detector stays as it is; FEATURE_CACHE may keep its
            feature maps then, for all methods of a seed.
    """

    mask_iterations: int
    box_iterations: int = 0
    mask_rate: float | None = None
    frozen: bool = False


class MaskStage(Stage):
    """One training of the benchmark."""

    def __init__(
        self, folder: Path, cfg: CfgNode, given: list[str], start: Stage | None = None, teacher: Stage | None = None
    ) -> None:
        """
        Args:
            given: the keys in which it differs from the others.
            start: the stage whose weights it starts from.
            teacher: the stage whose model predicts missing masks.
        """
        super().__init__(folder.name, folder, cfg, [stage for stage in (start, teacher) if stage])
        self._given, self._start, self._teacher = given, start, teacher

    def opts(self) -> list[str]:
        return self._given

    def later_keys(self) -> tuple[str, ...]:
        # The teacher is a parent, which tells more than the name of a file.
        return ("INPUT.PARTIAL_MASKS.PSEUDO",) if self._teacher else ()

    def initial_weights(self, resume: bool) -> Path | None:
        """The weights of the detector without masks, if there is one; lets the teacher predict masks before."""
        if self._teacher and not resume:
            cfg = self._teacher.cfg
            model, _ = model_of(cfg, str(self._teacher.weights))
            masks = predict_masks(cfg, model, objects_without_masks(cfg))
            write_json(self.cfg.INPUT.PARTIAL_MASKS.PSEUDO, masks, indent=None)
        return self._start.weights if self._start else None


def cells(
    methods: Sequence[str], settings: Sequence[str], seeds: Sequence[int], known: Mapping[str, Method]
) -> list[Cell]:
    """All combinations; seeds vary slowest, so that every row of the table has its first number early.

    Raises:
        ValueError: a method or setting that there is not, or nothing of one kind.
    """
    _check_methods(methods, known)
    for what, values in (("method", methods), ("setting", settings), ("seed", seeds)):
        if not values:
            raise ValueError(f"not a single {what} is given.")
    for setting in settings:
        _shares(setting)
    return list(dict.fromkeys(Cell(m, setting, seed) for seed, setting, m in product(seeds, settings, methods)))


def _shares(setting: str) -> tuple[float, float]:
    """Share of the images that are trained on, and of these that of the images whose masks are used.

    Raises:
        ValueError: no such setting.
    """
    if setting == CATEGORY:
        return 1.0, 1.0
    kind, _, percent = setting.partition("_")
    try:
        share = float(percent) / 100
        if kind not in ("image", "data") or not 0 < share <= 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"unknown setting {setting!r}: use {CATEGORY}, image_10 for masks of 10 percent of the images, or data_10 "
            "for 10 percent of the images with their masks."
        ) from None
    return (share, 1.0) if kind == "data" else (1.0, share)


def plan(
    config_file: str, opts: Iterable[str], wanted: Sequence[Cell], schedule: Schedule, known: Mapping[str, Method]
) -> dict[Cell, list[Stage]]:
    """The stages of each cell: the common detector, if there is one, the method's teacher, and the method.

    A method with all masks has one training a seed, in whatever settings it is asked for. "category" uses the masks of
    the config's INPUT.PARTIAL_MASKS.CLASSES, and every evaluation of the benchmark tells these classes from the others.

    Raises:
        ValueError: "category" is asked for, but the config names no classes, or all or none of a test set's.
    """
    opts = list(opts)
    cfg = read_cfg(config_file, opts)
    if any(cell.setting == CATEGORY for cell in wanted) and not cfg.INPUT.PARTIAL_MASKS.CLASSES:
        raise ValueError(
            "setting category: INPUT.PARTIAL_MASKS.CLASSES is empty, so that no class would lack masks. Name those "
            "that have masks."
        )
    planner = _Planner(cfg, config_file, opts, schedule, known)
    with quiet():
        plans = {cell: planner.stages(cell) for cell in wanted}
    for cell, stages in plans.items():
        if cell.setting == CATEGORY:
            _require_both_kinds(stages[-1].cfg)
    return plans


def _require_both_kinds(cfg: CfgNode) -> None:
    """Each test set has classes with and classes without masks: the table of "category" is about the latter.

    Raises:
        ValueError: names the data set; or see ``mask_groups``.
    """
    for name in cfg.DATASETS.TEST if cfg.MODEL.MASK_ON else ():
        metadata = MetadataCatalog.get(name)
        if not mask_groups(cfg, metadata):
            raise ValueError(
                f"setting category: INPUT.PARTIAL_MASKS.CLASSES {list(cfg.TEST.MASKED_CLASSES)} are all or none of the "
                f"classes of {name}, so that no two groups can be compared. Name some of them: "
                f"{', '.join(metadata.thing_classes[:20])}."
            )


def plan_cell(
    config_file: str, opts: Iterable[str], cell: Cell, schedule: Schedule, known: Mapping[str, Method]
) -> list[Stage]:
    """The stages of one cell; see ``plan``."""
    return plan(config_file, opts, [cell], schedule, known)[cell]


@dataclass(frozen=True)
class _Planner:
    cfg: CfgNode
    config_file: str
    opts: list[str]
    schedule: Schedule
    known: Mapping[str, Method]

    def stages(self, cell: Cell) -> list[Stage]:
        """The stages of a cell, in order."""
        method = self.known[cell.method]
        if method.teacher:
            chain = self.stages(Cell(method.teacher, cell.setting, cell.seed))
            start, teacher = (chain[0] if len(chain) > 1 else None), chain[-1]
        else:
            start, teacher = self._detector(cell), None
            chain = [start] if start else []
        masked = list(self.cfg.INPUT.PARTIAL_MASKS.CLASSES)
        if method.all_masks:
            name, data = f"{cell.method}_seed{cell.seed}", _partial_masks([], 1.0)
        else:
            name = f"{cell.method}_{cell.setting}_seed{cell.seed}"
            images, share = _shares(cell.setting)
            data = _partial_masks(masked if cell.setting == CATEGORY else [], share) | _thinned(images)
        own: dict[str, Any] = {**data, **self._solver(self.schedule.mask_iterations), "TEST.MASKED_CLASSES": masked}
        own["MODEL.ROI_HEADS.NAME"] = self._host.shape_prop_heads if method.shape_prop else self._host.heads
        own["MODEL.SHAPE_PROP.OUTPUT_MAPS"] = method.shape_prop  # only these have maps
        if self.schedule.mask_rate is not None:
            own["SOLVER.BASE_LR"] = self.schedule.mask_rate
        if self.schedule.frozen:
            own["MODEL.FREEZE"] = self._host.detector
            own["FEATURE_CACHE.DIR"] = maps_folder(self.cfg)
        if teacher:
            own["INPUT.PARTIAL_MASKS.PSEUDO"] = teacher.folder / "predicted_masks.json"
        return [*chain, self._stage(name, cell.seed, own, method.opts, start, teacher)]

    @property
    def _host(self) -> Host:
        return HOSTS[self.cfg.MODEL.META_ARCHITECTURE]

    def _detector(self, cell: Cell) -> Stage | None:
        """The common detector without masks."""
        images = 1.0 if self.known[cell.method].all_masks else _shares(cell.setting)[0]
        if not self.schedule.box_iterations:
            return None
        own = {
            "MODEL.MASK_ON": False,
            "MODEL.ROI_HEADS.NAME": self._host.heads,
            **_partial_masks([], 1.0),
            **_thinned(images),
            **self._solver(self.schedule.box_iterations),
        }
        name = f"box_{cell.setting}" if images < 1 else "box"
        return self._stage(f"{name}_seed{cell.seed}", cell.seed, own)

    def _stage(self, name: str, seed: int, own: dict[str, Any], more: Iterable[str] = (), *parents: Any) -> MaskStage:
        own = own | {"SEED": seed, "INPUT.PARTIAL_MASKS.SEED": seed}
        given = [str(part) for pair in own.items() for part in pair] + list(more)
        cfg = build_cfg(self.config_file, [*self.opts, *given])
        return MaskStage(Path(self.cfg.OUTPUT_DIR) / name, cfg, given, *parents)

    def _solver(self, iterations: int) -> dict[str, Any]:
        """The config's schedule, squeezed or stretched; the warm-up keeps its length where it fits in."""
        solver = self.cfg.SOLVER
        return {
            "SOLVER.MAX_ITER": iterations,
            "SOLVER.STEPS": tuple(round(step * iterations / solver.MAX_ITER) for step in solver.STEPS),
            "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, iterations // 4),
        }


def _partial_masks(classes: list[str], fraction: float) -> dict[str, Any]:
    return {"INPUT.PARTIAL_MASKS.CLASSES": classes, "INPUT.PARTIAL_MASKS.FRACTION": fraction}


def _thinned(images: float) -> dict[str, Any]:
    """Keys that train on a share of the images, the same for one SEED."""
    if images == 1:
        return {}
    return {"DATALOADER.SAMPLER_TRAIN": "RandomSubsetTrainingSampler", "DATALOADER.RANDOM_SUBSET_RATIO": images}
