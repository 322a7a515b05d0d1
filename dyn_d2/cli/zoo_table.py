"""The table of models, MODEL_ZOO.md, from records of evaluations (results.json) and the models that come with dyn_d2.

    dyn-d2 zoo-table output/ --output MODEL_ZOO.md --commands commands.yaml --metrics bbox/nAP50,bbox/bAP50

Folders are searched at any depth. Runs whose folders differ in nothing but the seed are one row; trainings that have
not ended are left out. --commands names a yaml file of lines "name of a folder below the one that is given, without
its seed: how it was trained"; or of sections: "commands" with these lines, "data" with lines "test set: what the table
calls it", "about", a text for the top of the page, and "measured", models whose numbers stand in json files beside the
yaml file (dyn_d2/evaluation/zoo_measured.py has the format).
"""

import argparse
from pathlib import Path

from dyn_d2 import model_zoo
from dyn_d2.evaluation.zoo_measured import rows_measured
from dyn_d2.evaluation.zoo_table import Words, read_words, rows_of, rows_of_cards, to_markdown
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", help="results.json files, or folders that hold some")
    parser.add_argument("--output", default="MODEL_ZOO.md", help="the page to write (default: %(default)s)")
    parser.add_argument("--commands", default="", help="yaml file: how models were trained, see above")
    parser.add_argument("--metrics", default="", help="TASK/NAME,...: a row each (default: what a model is judged by)")
    args = parser.parse_args(argv)
    metrics = [metric for metric in args.metrics.split(",") if metric]
    wrong = [metric for metric in metrics if not all(metric.partition("/"))]
    if wrong:
        parser.error(f"--metrics {wrong[0]} has to be TASK/NAME, such as bbox/nAP50")
    words = read_words(args.commands) if args.commands else Words()
    names = model_zoo.names()
    shipped = rows_of_cards(
        {name: model_zoo.card(name) for name in names}, {n: model_zoo.path_of(n).stat().st_size for n in names}
    )
    trained = rows_of(args.results, words.commands, metrics) if args.results else []
    for row in trained:
        row.data = words.data.get(row.data, row.data)
    rows = [*shipped, *trained, *rows_measured(words.measured, Path(args.commands).parent)]
    if not rows:
        raise UserError("no model comes with dyn_d2 yet: give results.json files, or folders that hold some.")
    with atomic_write(args.output) as file:
        file.write(to_markdown(rows, words.about))
    print(f"{len(rows)} model{'s' * (len(rows) != 1)}: {args.output}")
    return 0
