"""Fuzz what reads data, with seeds: python tests/data/fuzz/fuzz_data.py --kinds coco voc --seeds 1000-1400

Prints every case that did not end right with what was done to its files, and the counts of each kind; exit status 1 if
there was one. Cases run in a process of their own, so that one that hangs or dies ends alone.
"""

import argparse
import functools
import logging
import multiprocessing
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fuzzed_coco
import fuzzed_folders
import fuzzed_images
import fuzzed_maps
import fuzzed_records
import fuzzed_voc
from outcomes import HANG, RIGHT, TRACEBACK, Case, Finding

import dyn_d2  # noqa: F401  chooses the backend

KINDS: dict[str, Callable[[Case], None]] = {
    "coco": fuzzed_coco.run,
    "lvis": functools.partial(fuzzed_coco.run, lvis=True),
    "voc": fuzzed_voc.run,
    "records": fuzzed_records.run,
    "maps": fuzzed_maps.run,
    "images": fuzzed_images.run,
    "folders": fuzzed_folders.run,
}
SECONDS = 20


def judge(kind: str, seed: int) -> tuple[str, str]:
    """Outcome of a case, and what there is to say about it."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{kind}_"))
    case = Case(seed, folder, random.Random(f"{kind} {seed}"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind](case)
        return RIGHT, "; ".join(case.changes)
    except Finding as found:
        return found.outcome, f"{'; '.join(case.changes) or 'nothing changed'}\n    {found}"
    except Exception:
        return (
            TRACEBACK,
            f"{'; '.join(case.changes) or 'nothing changed'}\n    of the harness: {traceback.format_exc()}",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _work(kind: str, seeds: list[int], pipe) -> None:
    logging.disable(logging.CRITICAL)
    for seed in seeds:
        pipe.send((seed, *judge(kind, seed)))
    pipe.close()


def run(kind: str, seeds: list[int], show: bool = True) -> Counter:
    """Counts of outcomes; findings are printed."""
    counts: Counter = Counter()
    left = list(seeds)
    while left:
        receive, send = multiprocessing.Pipe(False)
        process = multiprocessing.get_context("fork").Process(target=_work, args=(kind, left, send))
        process.start()
        send.close()
        ended = ""
        while left and not ended:
            try:
                if not receive.poll(SECONDS):
                    ended = HANG
                else:
                    seed, outcome, text = receive.recv()
                    counts[outcome] += 1
                    left.remove(seed)
                    if outcome != RIGHT and show:
                        print(f"{kind} {seed}: {text}\n", flush=True)
            except EOFError:
                ended = TRACEBACK
        if ended:
            process.kill()
            print(f"{kind} {left[0]}: {'hangs' if ended == HANG else 'its process died'}\n", flush=True)
            counts[ended] += 1
            left.pop(0)
        process.join()
    return counts


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--seeds", default="0-100", help="first and last + 1, or one")
    options = parser.parse_args()
    first, _, end = options.seeds.partition("-")
    seeds = list(range(int(first), int(end or int(first) + 1)))
    found = {kind: run(kind, seeds) for kind in options.kinds}
    for kind, counts in found.items():
        print(f"{kind}: {sum(counts.values())} cases, " + ", ".join(f"{n} {o}" for o, n in counts.most_common()))
    return int(any(set(counts) - {RIGHT} for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
