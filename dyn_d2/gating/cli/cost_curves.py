"""Accuracy against executed multiply-adds of finished trainings, as lines: a picture and a table.

    dyn-d2 cost-curves --line actor output/paths/path_actor_* --line static output/paths/static_* \\
        --output output/paths.png

Reads the results.json that each training wrote, so that nothing is evaluated again, and networks of different configs
stand side by side. To compare the same weights at several thresholds, or by time, see dyn-d2 tradeoff.
"""

import argparse

from tabulate import tabulate

from dyn_d2.evaluation.figures import save_figure
from dyn_d2.gating.reports.cost_curves import draw_cost_curves, read_cost


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", nargs="+", action="append", required=True, metavar=("NAME", "FOLDER"),
                        help="a name and the OUTPUT_DIRs of its trainings; may be given several times")  # fmt: skip
    parser.add_argument("--output", required=True, help="picture to write")
    args = parser.parse_args(argv)
    if not all(folders for _, *folders in args.line):
        parser.error("--line needs a name and at least one folder")
    lines = {name: sorted(map(read_cost, folders), key=lambda point: point.gflops) for name, *folders in args.line}
    metric = next(iter(lines.values()))[0].metric
    rows = [(name, p.folder, f"{p.value:.2f}", f"{1000 * p.gflops:.4g}") for name, own in lines.items() for p in own]
    heads = ["line", "folder", metric, "multiply-adds (M)"]
    print(tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True))
    print(f"\n{save_figure(draw_cost_curves(lines), args.output)}")
    return 0
