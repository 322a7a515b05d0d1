"""Checks before the first step: whatever would spoil hours of training or its evaluation is said in seconds, and all
problems at once."""

import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from dyn_d2.checkpoint import LoadReport
from dyn_d2.checkpoint.files import no_file
from dyn_d2.data.check import ImageFile, check_image_files, check_records, concerning, summary
from dyn_d2.data.check_report import Problem
from dyn_d2.data.classification import check_labels, has_labels, require_files
from dyn_d2.data.classification.check import check_images
from dyn_d2.data.examined import Examined
from dyn_d2.data.few_shot.stages import BASE, is_fine_tuning
from dyn_d2.data.registered import registered_records, unregistered
from dyn_d2.data.semantic import check_label_maps, has_label_maps
from dyn_d2.evaluation import prepare_evaluation, with_evaluators_of_model
from dyn_d2.evaluation.quiet import quiet_tables
from dyn_d2.method import methods
from dyn_d2.modeling.answers import any_score, head_classes, label_set_problems
from dyn_d2.modeling.backbone.timm import OWN_WEIGHTS
from dyn_d2.modeling.freeze import has_frozen_parts
from dyn_d2.utils.errors import UserError, leave_traceback
from dyn_d2.utils.extras import how_to_install, is_missing

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .best import problems_of_best, unknown_metric
from .feature_cache import cache_folder, evaluated_from_cache
from .trainer import DynTrainer
from .writers import missing_writers

logger = logging.getLogger(__name__)

DRY_RUN_IMAGES = 2
WHOLE_SPLIT = ("cityscapes_instance", "cityscapes_sem_seg")  # evaluators that refuse to score a part of a data set
READ_IMAGES = 1000  # images of a data set that are opened, evenly spread; the others are only looked for
READ_MAPS = 200  # label maps of a data set, evenly spread


class PreflightError(UserError):
    """Training would not give what was asked for; the message lists every reason found."""


def _raise(problems: list[str], when: str) -> None:
    if problems:
        raise PreflightError(f"{len(problems)} problem(s) before {when}:\n  - " + "\n  - ".join(problems))


def check_files(cfg) -> None:
    """Everything that training will open exists.

    Raises:
        PreflightError: lists the data sets' missing json files and folders, and a missing MODEL.WEIGHTS.
    """
    missing: dict[str, list[str]] = {}  # what is not there -> the data sets that need it
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST]):
        for what, needed_by in _missing_files(name):
            missing.setdefault(what, []).append(needed_by)
    problems = [
        text for key in ("TRAIN", "VAL", "TEST") if (text := unregistered(cfg.DATASETS[key], f"DATASETS.{key}"))
    ]
    problems += [f"{_of_sets(names)}{what}" for what, names in missing.items()]
    problems += _missing_packages(cfg) + problems_of_best(cfg)
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not PathManager.isfile(weights.partition("?")[0]):
        problems.append(f"MODEL.WEIGHTS: {no_file(weights.partition('?')[0])}{_how_to_make(cfg)}")
    _raise(problems, "training")


def _of_sets(names: list[str]) -> str:
    names = [name for name in dict.fromkeys(names) if name]
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"data set{'s' if len(names) > 1 else ''} {shown}: "


def _missing_files(name: str) -> Iterator[tuple[str, str]]:
    """What is missing, and the data set that needs it ("" where the text says so)."""
    if has_labels(name):
        try:
            require_files(name)
        except FileNotFoundError as error:
            yield str(error), ""
        return
    metadata = MetadataCatalog.get(name)
    root = os.environ.get("DETECTRON2_DATASETS")
    where = f"DETECTRON2_DATASETS is {root}" if root else "DETECTRON2_DATASETS is not set, so ./datasets is searched"
    command = metadata.get("prepare_command")
    remedy = f" `{command}` prepares it; datasets/README.md says what to download." if command else ""
    for key in ("json_file", "image_root", "panoptic_root", "sem_seg_root", "dirname"):
        path = metadata.get(key)
        if path and "://" not in path and not os.path.exists(path):
            yield f"{path} does not exist ({where}).{remedy}", name
    for source in metadata.get("sources", []):  # a few-shot set is cut from these
        if source != name:
            yield from _missing_files(source)


def _missing_packages(cfg) -> list[str]:
    """What Detectron2 would find out when it reads Cityscapes, or when training is over and it scores."""

    def types(names) -> set[str]:
        return {MetadataCatalog.get(name).get("evaluator_type", "") for name in names}

    wanted = types(cfg.DATASETS.TEST) & set(WHOLE_SPLIT) | types(cfg.DATASETS.TRAIN) & {"cityscapes_instance"}
    if wanted and is_missing("cityscapesscripts"):
        return [f"{how_to_install('cityscapesscripts')}."]
    if cfg.INPUT.ALBUMENTATIONS and is_missing("albumentations"):
        return [f"{how_to_install('albumentations')}."]
    return missing_writers(cfg)


def _how_to_make(cfg) -> str:
    if is_fine_tuning(cfg):
        return " dyn-d2 surgery makes it from a base model, dyn-d2 few-shot does all stages."
    return ""


def check_trainer(trainer: DynTrainer) -> None:
    """Model, checkpoint, data and evaluation fit each other; call it after ``resume_or_load``.

    Raises:
        PreflightError: lists the problems.
    """
    cfg, model, report = trainer.cfg, trainer.checkpointer.model, trainer.checkpointer.report
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    classes = list(metadata.get("thing_classes", []))
    problems = _head_problems(cfg, model, classes)
    problems += _frozen_problems(cfg, model, report)
    if cfg.FEW_SHOT.BENCHMARK:
        problems += _stage_problems(cfg, model, report, classes)
        problems += _instance_problems(cfg, trainer, classes, list(metadata.get("novel_classes", [])))
    for method in methods():
        problems += method.problems(cfg, model, trainer.data_loader)
    wrong_maps = _label_map_problems(trainer.cfg)
    problems += _data_problems(trainer) + list(wrong_maps.values()) + _evaluation_problems(trainer, wrong_maps)
    _raise(problems, "the first step")
    if comm.is_main_process():
        _say_what_was_sampled(trainer)
    counts = ", ".join(f"{name} {trainer.data_loader.instances[i]}" for i, name in enumerate(classes[:40]))
    if counts:
        logger.info(f"training instances: {counts}{', ...' if len(classes) > 40 else ''}")
    logger.info(
        f"batch {cfg.SOLVER.IMS_PER_BATCH}, rate {cfg.SOLVER.BASE_LR:g}, {cfg.SOLVER.MAX_ITER} iterations, seed "
        f"{cfg.SEED}, pre-flight passed"
    )


def _say_what_was_sampled(trainer: DynTrainer) -> None:
    """What passed because only a part of it was looked at."""
    cfg = trainer.cfg
    sizes = {cfg.DATASETS.TRAIN[0]: len(trainer.data_loader.dataset.records)}
    sizes |= {name: len(registered_records(name)) for name in (*cfg.DATASETS.VAL, *cfg.DATASETS.TEST)}
    for name, size in sizes.items():
        if size > READ_IMAGES:
            logger.info(
                f"data set {name}: up to {READ_IMAGES} of its {size} images were opened, evenly spread, the others "
                "only looked for; dyn-d2 check-data opens all"
            )
        if size > READ_MAPS and MetadataCatalog.get(name).get("stuff_classes", None):
            logger.info(
                f"data set {name}: up to {READ_MAPS} of its {size} label maps were read; dyn-d2 check-data reads all"
            )


def _head_problems(cfg, model: nn.Module, classes: list[str]) -> list[str]:
    if hasattr(model, "sem_seg_head"):
        return _label_set_problems(cfg, model)
    rows = head_classes(model)
    problems = []
    if rows is not None and classes and rows != len(classes):
        problems.append(
            f"the head predicts {rows} classes, data set {cfg.DATASETS.TRAIN[0]} has {len(classes)}: set "
            f"MODEL.ROI_HEADS.NUM_CLASSES (RetinaNet: MODEL.RETINANET.NUM_CLASSES, ImageClassifier: "
            f"MODEL.IMAGE_CLASSIFIER.NUM_CLASSES) to {len(classes)}."
        )
    for name in [*cfg.DATASETS.TRAIN[1:], *cfg.DATASETS.VAL, *cfg.DATASETS.TEST]:
        others = list(MetadataCatalog.get(name).get("thing_classes", []))
        if others and others != classes:
            differ = sorted(set(others) ^ set(classes))
            what = f"differ in {', '.join(differ[:10])}" if differ else "have another order"
            problems.append(f"the classes of {name} and {cfg.DATASETS.TRAIN[0]} {what}.")
    return problems


def _label_set_problems(cfg: CfgNode, model: nn.Module) -> list[str]:
    """Data sets whose labels are not the classes of the segmentation head, unless the model answers that itself."""
    # Test sets may have other labels: the dry run shows whether they can be evaluated.
    own = label_set_problems(model, cfg.DATASETS.TRAIN, cfg.DATALOADER.ONE_DATASET_PER_BATCH)
    if own is not None:
        return own
    lists: dict[tuple[str, ...], list[str]] = {}  # classes -> the data sets that have them
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST):
        classes = tuple(MetadataCatalog.get(name).get("stuff_classes", None) or ())
        if classes:
            lists.setdefault(classes, []).append(name)
    rows = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    problems = [
        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {rows}, data set {names[0]} has {len(classes)} stuff_classes."
        for classes, names in lists.items()
        if len(classes) != rows
    ]
    if len(lists) > 1 and not problems:
        problems.append(f"the stuff_classes of {' and '.join(names[0] for names in lists.values())} differ.")
    return problems


def _frozen_problems(cfg, model: nn.Module, report: LoadReport) -> list[str]:
    loaded = set(report.loaded)
    for prefix, module in model.named_modules():
        if getattr(module, OWN_WEIGHTS, False):
            loaded.update(f"{prefix}.{name}" for name, _ in module.named_parameters())
    random = [name for name, p in model.named_parameters() if not p.requires_grad and name not in loaded]
    if not random:
        return []
    remedy = "check MODEL.WEIGHTS and MODEL.FREEZE" if has_frozen_parts(model) else "set MODEL.BACKBONE.FREEZE_AT 0"
    return [
        f"{len(random)} frozen parameters did not come from MODEL.WEIGHTS ({report.source}) and would stay random: "
        f"{', '.join(random[:5])}{', ...' if len(random) > 5 else ''}; {remedy}."
    ]


def _stage_problems(cfg, model: nn.Module, report: LoadReport, classes: list[str]) -> list[str]:
    if not is_fine_tuning(cfg):
        return []
    problems = []
    if report.class_count_problem():
        problems.append(report.class_count_problem())
    others = [name for name in report.reinitialised() if ".box_predictor." not in name]
    if others:
        problems.append(f"not in {report.source}: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}.")
    named = report.metadata.get("classes")
    if named and named != classes and len(named) == len(classes) and head_classes(model) is not None:
        problems.append(
            f"the rows of {report.source} are for {', '.join(named[:30])}, the data set's classes are "
            f"{', '.join(classes[:30])}: fit the checkpoint with dyn-d2 surgery."
        )
    head = report.metadata.get("classifier")
    if head and head != cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER:
        problems.append(
            f"the head of {report.source} is {head}, MODEL.ROI_BOX_HEAD.CLASSIFIER is "
            f"{cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER}: fit the checkpoint with dyn-d2 surgery."
        )
    return problems


def _instance_problems(cfg, trainer: DynTrainer, classes: list[str], novel: list[str]) -> list[str]:
    if cfg.FEW_SHOT.STAGE == BASE:
        return []
    instances = trainer.data_loader.instances
    absent = [name for i, name in enumerate(classes) if name in novel and instances[i] == 0]
    return [f"no training instance of the novel classes {', '.join(absent)}."] if absent else []


def _data_problems(trainer: DynTrainer) -> list[str]:
    """Defects of the annotations and images that this run uses; one process looks for all of them."""
    if not comm.is_main_process():
        return []
    cfg = trainer.cfg
    sets = {cfg.DATASETS.TRAIN[0]: list(trainer.data_loader.dataset.records)}
    sets |= {name: registered_records(name) for name in (*cfg.DATASETS.VAL, *cfg.DATASETS.TEST)}
    problems = _chosen_on_others(cfg, sets)
    # The cells of a table share their images.
    examined = Examined(cache_folder(cfg)) if is_fine_tuning(cfg) and cfg.FEW_SHOT.CACHE != "off" else None
    for name, records in sets.items():
        metadata = MetadataCatalog.get(name)
        if has_labels(name):
            report = check_labels(records, name, read_images=len(records) <= READ_IMAGES)
            if len(records) > READ_IMAGES:
                opened = check_images(_spread(records, READ_IMAGES), name, read_images=True)
                report.problems += [problem for problem in opened if problem.kind != "missing_image"]
            if not report.ok:
                problems.append(f"data set {name} has {summary(report.problems, per_kind=5)}")
            continue
        report = check_records([record for record in records if "annotations" in record], metadata)
        files = {r["file_name"]: (r["file_name"], r.get("image_id"), r.get("width"), r.get("height")) for r in records}
        report.problems += _image_problems(list(files.values()), examined)
        report.problems = concerning(report.problems, cfg)
        # Data sets that few-shot code did not make are Detectron2's business, which drops empty boxes.
        report.tolerate(metadata.get("tolerated_defects", ["empty_box"]))
        if not report.ok:
            problems.append(f"data set {name} has {summary(report.problems, per_kind=5)}")
    return problems


def _chosen_on_others(cfg: CfgNode, sets: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Images of DATASETS.VAL that are trained on or reported too, whatever the sets are called."""

    def files(names: Iterable[str]) -> set[str]:
        found = (record.get("file_name") for name in names for record in sets[name])
        return {os.path.realpath(file) for file in found if isinstance(file, str)}

    if not (chosen := files(cfg.DATASETS.VAL)):
        return []
    problems = []
    # The first set of TRAIN stands for all of them, as in ``sets``.
    for names, what in ((cfg.DATASETS.TRAIN[:1], "trained on"), (cfg.DATASETS.TEST, "reported")):
        if both := sorted(chosen & files(names)):
            problems.append(
                f"{len(both)} images of DATASETS.VAL are {what} too, the first is {both[0]}: choose on others "
                "(DATASETS.CUSTOM.HOLD_OUT holds a part of the training images out)."
            )
    return problems


def _image_problems(files: list[ImageFile], examined: Examined | None) -> list[Problem]:
    missing = check_image_files(files, read_images=False)
    to_open = _spread(files, READ_IMAGES)
    if examined is not None:
        to_open = examined.others(to_open)
    opened = check_image_files(to_open, read_images=True)
    if examined is not None and not opened:
        examined.add(to_open)
    return missing + [problem for problem in opened if problem.kind != "missing_image"]


def _spread(values: list[Any], at_most: int) -> list[Any]:
    """Not more than ``at_most`` of the values, evenly spread."""
    return values[:: max(1, -(-len(values) // at_most))]


def _label_map_problems(cfg: CfgNode) -> dict[str, str]:
    """Data set -> what is wrong with its label maps, if anything; at most READ_MAPS of each set are read."""
    if not comm.is_main_process():
        return {}
    problems = {}
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST)):
        if not has_label_maps(MetadataCatalog.get(name)):
            continue
        report = check_label_maps(name, cfg, limit=READ_MAPS)
        for note in report.notes:
            logger.info(f"data set {name}: {note}")
        if not report.ok:
            problems[name] = f"data set {name} has {summary(report.problems, per_kind=5)}"
    return problems


def _evaluation_problems(trainer: DynTrainer, said: Collection[str] = ()) -> list[str]:
    """What goes wrong when two images are evaluated by the real evaluators, but for sets whose defects are said."""
    problems, cfg = [], trainer.cfg
    for name in (*cfg.DATASETS.TEST, *(cfg.DATASETS.VAL if cfg.SOLVER.BEST.METRIC else ())):
        try:
            results = _dry_run(trainer, name)
        except Exception as error:  # evaluators fail in many ways; each of them would come after hours of training
            if name in said and isinstance(error, ValueError):
                continue
            expected = isinstance(error, (UserError, ValueError, OSError))
            what = f"{error}" if expected else f"{type(error).__name__}: {error} (traceback: {leave_traceback(error)})"
            problems.append(f"evaluation of {name} fails on {DRY_RUN_IMAGES} images: {what}")
            continue
        if name in cfg.DATASETS.VAL and len(cfg.DATASETS.VAL) == 1 and results:
            found = flatten_results_dict(results)
            problems += [] if cfg.SOLVER.BEST.METRIC in found else [unknown_metric(cfg.SOLVER.BEST.METRIC, found)]
    return problems


def _dry_run(trainer: DynTrainer, name: str) -> dict[str, Any]:
    with evaluated_from_cache(trainer.cfg, trainer.checkpointer.model, final=False):
        return _evaluate_a_few(trainer, name)


def _evaluate_a_few(trainer: DynTrainer, name: str) -> dict[str, Any]:
    """The results; {} where another process has them, or the evaluator scores whole splits only."""
    model = trainer.checkpointer.model
    prepare_evaluation(trainer.cfg, model, limit=1)
    loader = trainer.build_test_loader(trainer.cfg, name)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), any_score(model), quiet_tables():
        evaluator = trainer.build_evaluator(trainer.cfg, name, folder)
        evaluator = with_evaluators_of_model(evaluator, trainer.cfg, model, name, folder)
        evaluator.reset()
        training, _ = model.training, model.eval()
        try:
            for inputs in islice(loader, DRY_RUN_IMAGES):
                evaluator.process(inputs, model(inputs))
        finally:
            model.train(training)
        if MetadataCatalog.get(name).get("evaluator_type", None) in WHOLE_SPLIT:
            return {}
        results = evaluator.evaluate()
    if comm.is_main_process() and not isinstance(results, dict):
        raise TypeError(f"the evaluator returned {type(results).__name__}, not a dict of results")
    return results or {}
