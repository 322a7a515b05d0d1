"""Pictures of which images take which route through a gated network, as png files and as one page for a browser.

    dyn-d2 routes output/skipnet/inference/routes.npz --output output/skipnet/routes
    dyn-d2 routes sp/inference/routes.npz hrl/inference/routes.npz --output compare

Evaluating a gated model writes routes.npz. Images come from their files, or from the data set by its registered name
(then $DETECTRON2_DATASETS has to be set as it was for the evaluation).
"""

import argparse
from pathlib import Path

from dyn_d2.gating.reports.route_figures import draw_distribution, draw_routes
from dyn_d2.gating.reports.route_page import write_page
from dyn_d2.gating.reports.route_statistics import run_names
from dyn_d2.gating.reports.routes import RouteTable


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("routes", nargs="+", help="routes.npz of one model, or of several to compare")
    parser.add_argument("--output", required=True, help="folder for the pictures and index.html")
    parser.add_argument("--names", nargs="+", help="what to call the models; default: their folders")
    parser.add_argument("--images", type=int, default=8, help="easy and hard images of each class")
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error("--images has to be at least 1")
    if args.names and (len(args.names) != len(args.routes) or len(set(args.names)) < len(args.names)):
        parser.error(f"--names needs {len(args.routes)} different names, one a file")
    tables = [RouteTable.load(path) for path in args.routes]
    named = dict(zip(args.names or run_names(args.routes), tables, strict=True))
    output = Path(args.output)
    page = write_page(named, output / "index.html", args.images)
    if len(named) > 1:
        print(f"executed multiply-adds of all: {draw_distribution(named, output / 'executed_all.png')}")
    for name, table in named.items():
        prefix = f"{name.replace('/', '_')}_" if len(named) > 1 else ""
        for what, path in draw_routes(table, output, prefix, min(args.images, 6)).items():
            print(f"{f'{name}, ' if prefix else ''}{what}: {path}")
    print(f"page to browse: {page}")
    return 0
