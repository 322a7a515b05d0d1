"""Every key that a tiny model reads, with values that nobody should give it: a message names the key, or it trains.

``python tests/config/hostile_values.py [TASK ...]`` tries all of them, each in a process of its own, and counts; the
test beside it draws some.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_detection import tiny_opts, write_boxes
from tiny_tasks import TASKS, batch, task_opts

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.hooks import DivergenceError
from dyn_d2.engine.trainer import DynTrainer

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

HOSTILE = (0, -1, 10**9, 0.0, -1.0, 5.0, 1e9, float("nan"), float("inf"), "", "x", [], [0], [-1.0, 2.0], None, True)
_OF_INPUT = (ValueError, KeyError, AssertionError, NotImplementedError, FileNotFoundError)
SECONDS, MEMORY = 60, 12 << 30
LOADED = "detection"  # trains by DynTrainer, data and evaluation included; the others on a batch made by hand


def options(task: str, folder: Path) -> list[str]:
    if task != LOADED:
        return task_opts(task, OUTPUT_DIR=folder, SEED=3)
    data = folder / "data" / "instances.json"
    if not data.is_file():
        write_boxes(data.parent, 4)
    return tiny_opts(data, folder / "out", SOLVER__MAX_ITER=2, SOLVER__STEPS=[1], MODEL__MASK_ON=True)


def step(cfg: CfgNode, task: str) -> None:
    """Builds the model of ``cfg``, trains it for a step (two, with data) and evaluates it."""
    if task == LOADED:
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(False)
        trainer.train()
        return
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    scheduler = DynTrainer.build_lr_scheduler(cfg, optimizer)
    with EventStorage():
        losses = model(batch())
        sum(losses.values()).backward()
    optimizer.step()
    scheduler.step()
    model.eval()
    with torch.no_grad():
        model(batch(1))


def with_value(task: str, folder: Path, key: str, value: Any) -> CfgNode:
    """The config of ``task`` with ``value`` for ``key``, as a yaml gives it."""
    opts = options(task, folder)
    pairs = [pair for pair in zip(opts[::2], opts[1::2], strict=True) if pair[0] != key]
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    path = folder / f"hostile_{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return build_cfg(str(path), [word for pair in pairs for word in pair])


def names_the_key(text: str, key: str) -> bool:
    """In full, or by its last part."""
    return key in text or key.rpartition(".")[2].lower() in text.lower()


def outcome(task: str, folder: Path, key: str, value: Any) -> str:
    """ "read": refused where it is read, "built": later, "trains", or what is wrong."""
    where = "read"
    try:
        cfg = with_value(task, folder, key, value)
        where = "built"
        step(cfg, task)
    except DivergenceError:
        return "trains"  # said with its rate and images
    except _OF_INPUT as error:
        return where if names_the_key(str(error), key) else f"unnamed: {type(error).__name__}: {error}"
    except RuntimeError as error:  # a UserError is one
        named = names_the_key(str(error), key) and type(error) is not RuntimeError
        return where if named else f"ugly: {type(error).__name__}: {error}\n{_last_line()}"
    except Exception as error:  # whatever else it is
        return f"ugly: {type(error).__name__}: {error}\n{_last_line()}"
    return "trains"


def _last_line() -> str:
    own = [line for line in traceback.format_exc().splitlines() if line.strip().startswith("File")]
    return own[-1].strip() if own else ""


@contextmanager
def keys_that_are_read(cfg: CfgNode) -> Iterator[set[str]]:
    """The dotted names of all keys that are read as attributes inside of the block."""
    found: set[str] = set()
    known: dict[int, str] = {}

    def enter(node: CfgNode, prefix: str) -> None:
        known[id(node)] = prefix
        for name, value in node.items():
            if isinstance(value, CfgNode):
                enter(value, f"{prefix}{name}.")

    enter(cfg, "")
    plain = CfgNode.__getattr__

    def watched(self: CfgNode, name: str) -> Any:
        value = plain(self, name)
        if id(self) in known and not isinstance(value, CfgNode):
            found.add(known[id(self)] + name)
        return value

    CfgNode.__getattr__ = watched
    try:
        yield found
    finally:
        CfgNode.__getattr__ = plain


def keys_of(task: str, folder: Path) -> list[str]:
    cfg = build_cfg("", options(task, folder))
    with keys_that_are_read(cfg) as found:
        step(cfg, task)
    return sorted(found - {"MODEL.WEIGHTS", "OUTPUT_DIR"})


def in_a_child(task: str, folder: Path, key: str, value: Any) -> str:
    """``outcome`` in a forked process with bounds on time and memory."""
    result = folder / "outcome.txt"
    result.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
        result.write_text(outcome(task, folder, key, value))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        return "hangs" if os.WTERMSIG(status) == signal.SIGALRM else f"ends with status {status}"
    return result.read_text()


def main() -> None:
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for task in sys.argv[1:] or [LOADED, *TASKS]:
            folder = Path(name, task)
            folder.mkdir()
            for key in keys_of(task, folder):
                for value in HOSTILE:
                    said = in_a_child(task, folder, key, value)
                    counts[said.partition(":")[0]] += 1
                    if said not in ("read", "built", "trains"):
                        print(json.dumps([task, key, repr(value), said]), flush=True)
    print(f"{sum(counts.values())} values in {time.monotonic() - began:.0f} s: {dict(counts)}")


if __name__ == "__main__":
    main()
