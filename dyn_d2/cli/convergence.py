"""Learning speed of several trainings: metrics against iterations, each divided by its largest value.

    dyn-d2 convergence FSRW=output/fsrw/fsrw_split1_10shot_seed0 YOLO-ft=output/fsrw/yolo_ft_split1_10shot_seed0 \\
        --metrics nAP50,AP-seven --output output/convergence.png

The runs must have evaluated while they trained: TEST.EVAL_PERIOD 20. A folder without a name has its own, with as many
of those above as tell it from the others.
"""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from dyn_d2.evaluation.convergence import draw_convergence, read_curve
from dyn_d2.evaluation.figures import save_figure

MOST = 4  # line styles


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]FOLDER", help="up to four trainings")
    parser.add_argument("--metrics", default="nAP50", help="separated by commas, such as nAP50,AP-seven")
    parser.add_argument("--absolute", action="store_true", help="percent instead of shares of the largest value")
    parser.add_argument("--output", default="output/convergence.png", help="picture to write")
    args = parser.parse_args(argv)
    runs = named_folders(args.runs)
    metrics = args.metrics.split(",")
    curves = {name: {metric: read_curve(folder, metric) for metric in metrics} for name, folder in runs.items()}
    print(save_figure(draw_convergence(curves, normalise=not args.absolute), args.output))
    return 0


def named_folders(runs: Sequence[str]) -> dict[str, str]:
    """Name -> folder, of folders and NAME=FOLDER.

    Raises:
        ValueError: there are too many, a name has no folder, or two have one name.
    """
    if len(runs) > MOST:
        raise ValueError(f"{len(runs)} runs are given: a picture has line styles for {MOST}.")
    split = [("", run) if "=" not in run or Path(run).is_dir() else tuple(run.split("=", 1)) for run in runs]
    if nowhere := [name for name, folder in split if not folder]:
        raise ValueError(f"{nowhere[0] or 'an empty name'} has no folder: give FOLDER or NAME=FOLDER.")
    folders = [Path(folder).resolve() for _, folder in split]
    names = [name or _tail(folder, set(folders)) for (name, _), folder in zip(split, folders, strict=True)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two runs are called {twice[0]}: give each folder once, or names as NAME=FOLDER.")
    return {name: folder for name, (_, folder) in zip(names, split, strict=True)}


def _tail(folder: Path, folders: Collection[Path]) -> str:
    """The shortest end of a path that no other of ``folders`` has."""
    tails = ("/".join(folder.parts[-count:]) for count in range(1, len(folder.parts)))
    return next((tail for tail in tails if sum(f"{one}".endswith(f"/{tail}") for one in folders) == 1), str(folder))
