"""Print in what two evaluations differ: settings first, then metrics with their difference.

    dyn-d2 compare RUN_A/results.json RUN_B/results.json

Exit status: 0 when settings and numbers agree, 1 when they differ, 2 on unreadable input.
"""

import argparse
import sys

from tabulate import tabulate

from dyn_d2.evaluation.results import compare, read_results


def _row(name: str, first, second) -> list:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (first, second))
    return [name, first, second, f"{second - first:+.4g}" if numbers else ""]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="results.json, or the folder that holds it")
    parser.add_argument("second")
    args = parser.parse_args(argv)
    try:
        differences = compare(read_results(args.first), read_results(args.second))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if not differences:
        print("The two evaluations agree in every setting and every number.")
        return 0
    differences.sort(key=lambda row: row[0].startswith("metrics/"))
    print(
        tabulate(
            [_row(*row) for row in differences],
            headers=["", args.first, args.second, "difference"],
            disable_numparse=True,
        )
    )
    return 1
