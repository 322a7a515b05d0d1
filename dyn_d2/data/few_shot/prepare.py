"""Sample K-shot sets of a benchmark, or import published lists, and save them for FEW_SHOT.SHOTS_DIR.

The set that a run draws by itself is the same one; files are for sharing, citing and reading the published lists.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .benchmarks import BENCHMARKS
from .published import find_published, read_published
from .register import load_sources
from .sampling import UNITS, ShotSet, collect_candidates, sample_shots, sample_whole_images, shots_path
from .sources import ROOT_VARIABLE


def prepare_shots(
    benchmark_name: str,
    folder: Path,
    *,
    shots: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    unit: str = "instance",
    published: Path | None = None,
    train_sets: Sequence[str] = (),
    max_objects: int = 0,
) -> list[Path]:
    """Write one file for each seed and K, for all classes; splits and protocols use parts of it.

    Args:
        folder: becomes FEW_SHOT.SHOTS_DIR.
        shots: the Ks; empty means those of the benchmark.
        published: folder with published lists to import in place of sampling.
        train_sets: as FEW_SHOT.TRAIN_SETS.
        max_objects: as FEW_SHOT.MAX_OBJECTS.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: the data, or a published list, is not there.
        NotEnoughShots: a class has too few objects.
    """
    benchmark = BENCHMARKS[benchmark_name]
    if train_sets:
        benchmark = replace(benchmark, train_sets=tuple(train_sets))
    candidates = collect_candidates(load_sources(benchmark), benchmark.classes())
    written = []
    for seed in seeds:
        for number in shots or benchmark.shots:
            if published is None and max_objects:
                result = sample_whole_images(
                    candidates, benchmark=benchmark.name, seed=seed, shots=number, max_objects=max_objects
                )
            elif published is None:
                result = sample_shots(
                    candidates, benchmark=benchmark.name, seed=seed, shots=number, unit=unit, at_most=benchmark.at_most
                )
            else:
                result = _import(benchmark_name, candidates, published, seed, number)
            written.append(shots_path(folder, benchmark.name, seed, number, unit, max_objects))
            result.save(written[-1])
    return written


def _import(benchmark_name: str, candidates: dict, published: Path, seed: int, shots: int) -> ShotSet:
    benchmark = BENCHMARKS[benchmark_name]
    files = find_published(benchmark, published, seed, shots, list(candidates))
    if not files:
        raise FileNotFoundError(f"{published} has no published list of {shots} shots, seed {seed}.")
    return read_published(benchmark, files, candidates, seed, shots)


def main(argv: list[str] | None = None) -> int:
    """``dyn-d2 prepare few-shot``."""
    root = Path(os.environ.get(ROOT_VARIABLE, "datasets"))
    usual = "; ".join(f"{name} {', '.join(map(str, BENCHMARKS[name].shots))}" for name in BENCHMARKS)
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nThe data is read from {ROOT_VARIABLE}={root}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=list(BENCHMARKS), help="a value of FEW_SHOT.BENCHMARK")
    parser.add_argument("--shots", type=int, nargs="+", default=[], help=f"K (default: {usual})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--out", type=Path, default=root / "few_shot", help="folder (default: %(default)s)")
    parser.add_argument("--unit", choices=tuple(UNITS), default="instance", help="what K counts")
    parser.add_argument(
        "--max-objects",
        type=int,
        default=0,
        help="draw whole images with at most so many objects, all labelled; 0 draws objects (default: %(default)s)",
    )
    parser.add_argument("--published", type=Path, help="import the published lists of this folder instead of sampling")
    parser.add_argument("--train-sets", nargs="+", default=[], help="other registered data sets to sample from")
    options = parser.parse_args(argv)
    if options.published and options.unit != "instance":
        parser.error("published lists count instances: leave out --unit")
    if options.max_objects < 0:
        parser.error("--max-objects must not be negative")
    if options.max_objects and (options.published or options.unit != "instance"):
        parser.error("--max-objects draws objects by images itself: leave out --published and --unit")
    files = prepare_shots(
        options.benchmark,
        options.out,
        shots=options.shots,
        seeds=options.seeds,
        unit=options.unit,
        published=options.published,
        train_sets=options.train_sets,
        max_objects=options.max_objects,
    )
    for file in files:
        print(file)
    print(f"use them with FEW_SHOT.SHOTS_DIR {options.out}")
    return 0
