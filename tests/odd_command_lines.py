"""Command lines that somebody has got wrong: one message and exit status 1 or 2, or the command does what was asked.

``python tests/odd_command_lines.py [COUNT] [SEED]`` tries many, each in a forked process, counts, and lists those that
went through; the test beside it draws some.
"""

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "gating"))

from counted_runs import say_into, until_stopped
from route_tables import route_table
from tiny_detection import save_detector

from dyn_d2 import cli
from dyn_d2.cli.table import Table

SECONDS = 40
_ODD = (
    "", " ", "nowhere", "é", "-", "--", "x=y", "[1,", "{}", "a,b", ",", "0", "-1", "1.5", "nan", "x" * 300, "1e9", "~",
)  # fmt: skip
_WORDS = (
    "SEED", "SEED 3", "SEED=3", "seed 3", "SOLVER.BASE_LR fast", "SOLVER.MAX_ITER 0", "MODEL 5", "NOTHING 5",
    "SEED 3 4", "--resume", "DATASETS.TRAIN no", "DATASETS.TEST no", "MODEL.DEVICE tpu", "OUTPUT_DIR /proc/x",
    "OUTPUT_DIR ''", "FEW_SHOT.BENCHMARK none", "--config-file", "--nonsense", "-x", "--help",
)  # fmt: skip
_LONG = ("demo-few-shot", "doctor")  # would start something long or look for what is not asked here


class _Caught(BaseException):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Command -> the parser of its command line."""
    found = {}
    plain = argparse.ArgumentParser.parse_args

    def caught(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Caught(self)

    argparse.ArgumentParser.parse_args = caught
    try:
        for name in Table.read().commands:
            if name not in _LONG:
                try:
                    cli.main(name.split())
                except _Caught as error:
                    found[name] = error.parser
                except SystemExit:
                    pass
    finally:
        argparse.ArgumentParser.parse_args = plain
    return found


class World:
    """Sound files of many kinds, which are given where another is wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cfg = save_detector(folder / "model")
            self.parsers = parsers()
        (folder / "model" / "config.yaml").write_text(cfg.dump())
        (folder / "empty").mkdir()
        (folder / "empty.txt").write_text("")
        (folder / "words.txt").write_text("red\ngreen\n")
        route_table({"res2.1": 1}, 4).save(folder / "routes.npz")
        self.files = [
            "model/model_final.pth", "model/config.yaml", "model/data/instances.json", "model/data/images/001.png",
            "routes.npz", "empty", "empty.txt", "words.txt", "model", "/", "/dev/null", "model/data/images",
            "new/file.json", "new.png",
        ]  # fmt: skip
        self.names = ["TFA/voc.yaml", "TFA/custom", "digits", "SkipNet/digits.yaml", "digits_test", "coco_2017_val"]


def draw(world: World, seed: int) -> tuple[str, list[str]]:
    """A command and its arguments; the same for the same seed."""
    rng = random.Random(seed)
    name = rng.choice(sorted(world.parsers))
    words: list[str] = ["--num-train", "2", "--num-val", "1"] if name == "prepare digit-scenes" else []
    for action in world.parsers[name]._actions:
        if isinstance(action, argparse._HelpAction) or action.nargs == argparse.REMAINDER:
            continue
        if not action.required and rng.random() < 0.7:
            continue
        if action.required and rng.random() < 0.05:
            continue
        words += action.option_strings[-1:]
        if action.nargs == 0:
            continue
        count = rng.choice([1, 1, 1, 2]) if action.nargs in ("+", "*") or isinstance(action.nargs, int) else 1
        words += [_value(rng, world, action) for _ in range(count)]
    if rng.random() < 0.4:
        words += rng.choice(_WORDS).split(" ")
    if rng.random() < 0.1 and words:
        words.pop(rng.randrange(len(words)))
    return name, words


def _value(rng: random.Random, world: World, action: argparse.Action) -> str:
    if action.choices and rng.random() < 0.6:
        return str(rng.choice(list(action.choices)))
    kind = rng.random()
    if action.type in (int, float) and kind < 0.8:
        return rng.choice(["0", "-1", "1", "2", "x", "1.5", "", "nan", "inf", "-inf", "1_0", "٣"])
    return rng.choice(world.files if kind < 0.6 else world.names if kind < 0.8 else _ODD)


def outcome(world: World, name: str, words: list[str]) -> str:
    """ "refused", "done", or what is wrong."""
    out, work = world.folder / "said", Path(tempfile.mkdtemp(dir=world.folder))
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.chdir(work)
            for file in ("model", "routes.npz", "empty", "empty.txt", "words.txt"):
                os.symlink(world.folder / file, file)
            say_into(out)
            signal.alarm(SECONDS)
            status = 1
            try:
                cli.main([*name.split(), *words])
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr, flush=True)
                status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            except BaseException as error:
                print(f"Traceback: {type(error).__name__}: {error}", flush=True)
            sys.stdout.flush()
            os._exit(status)
        os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = out.read_text(errors="replace").strip()
    if status == -signal.SIGALRM:
        return "hang"
    if "Traceback" in text or "is a defect of dyn_d2" in text or status not in (0, 1, 2):
        return f"traceback: status {status}: {text[-500:]}"
    if status == 0:
        return "done"
    return "refused" if text else f"wordless: status {status}"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, until_stopped():
        world = World(Path(folder).resolve())
        for seed in range(first, first + count):
            name, words = draw(world, seed)
            said = outcome(world, name, words)
            counts[said.partition(":")[0]] += 1
            if said != "refused":
                print(seed, said, name, words, flush=True)
    print(f"{sum(counts.values())} command lines in {time.monotonic() - began:.0f} s: {dict(counts)}")


if __name__ == "__main__":
    main()
