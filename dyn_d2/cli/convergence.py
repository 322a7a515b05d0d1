"""Learning speed of several trainings: metrics against iterations, each divided by its largest value.

    dyn-d2 convergence FSRW=output/fsrw/fsrw_split1_10shot_seed0 YOLO-ft=output/fsrw/yolo_ft_split1_10shot_seed0 \\
        --metrics nAP50,AP-seven --output output/convergence.png

The runs must have evaluated while they trained: TEST.EVAL_PERIOD 20.
"""

import argparse

from dyn_d2.evaluation.convergence import draw_convergence, read_curve
from dyn_d2.evaluation.figures import save_figure

MOST = 4  # line styles


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="up to four trainings")
    parser.add_argument("--metrics", default="nAP50", help="separated by commas, such as nAP50,AP-seven")
    parser.add_argument("--absolute", action="store_true", help="percent instead of shares of the largest value")
    parser.add_argument("--output", default="output/convergence.png", help="picture to write")
    args = parser.parse_args(argv)
    pairs = [run.partition("=") for run in args.runs]
    if not all(name and folder for name, _, folder in pairs) or len(pairs) > MOST:
        raise ValueError(f"give up to {MOST} runs as NAME=FOLDER, not {' '.join(args.runs)}.")
    metrics = args.metrics.split(",")
    curves = {name: {metric: read_curve(folder, metric) for metric in metrics} for name, _, folder in pairs}
    print(save_figure(draw_convergence(curves, normalise=not args.absolute), args.output))
    return 0
