"""Every key that a tiny model reads, with values that nobody should give it: a message names the key, or it trains.

``python tests/config/hostile_values.py [TASK ...]`` tries all of them, each in a process of its own, and counts; the
test beside it draws some. A task is one of tiny_tasks.py, ``detection`` (data included), or a yaml of configs/ (``TFA``
for all of a folder) with a few more keys, of which those are tried that are dyn_d2's own.
"""

import functools
import json
import os
import re
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

from config_kinds import KINDS, Kind, of_methods
from counted_runs import until_stopped
from tiny_detection import tiny_opts, write_boxes
from tiny_tasks import TASKS, batch, task_opts

from dyn_d2.config.applied import note_loader
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.names import config_names, configs_folder
from dyn_d2.config.ranges import check_ranges, default_values
from dyn_d2.config.read import flatten, read_cfg
from dyn_d2.engine.hooks import DivergenceError
from dyn_d2.engine.trainer import DynTrainer

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage

HOSTILE = (0, -1, 10**9, 0.0, -1.0, 5.0, 1e9, float("nan"), float("inf"), "", "x", [], [0], [-1.0, 2.0], None, True)
OF_YAMLS = (*HOSTILE, 1, 3, 1e-30, 1.0, 0.5, False, [1], [3] * 9, [0.5], [1.0] * 9, ["x"], [[1, 2]], [[0.5, 0.5]] * 4)
POLICIES = {  # that no yaml has; of the task "classifier"
    policy: ["MODEL.POLICY.NAME", policy] for policy in ("convnet_aig", "random_skip", "fixed", "blockdrop", "cdb")
} | {"blockdrop-joint": ["MODEL.POLICY.NAME", "blockdrop", "MODEL.POLICY.STAGE", "joint"]}
_OF_INPUT = (ValueError, KeyError, AssertionError, NotImplementedError, FileNotFoundError)
SECONDS, MEMORY = 60, 12 << 30
LOADED = "detection"  # trains by DynTrainer, data and evaluation included; the others on a batch made by hand


def options(task: str, folder: Path) -> list[str]:
    if task in POLICIES:
        return [*task_opts("classifier", OUTPUT_DIR=folder, SEED=3), *POLICIES[task]]
    if task in of_yamls():
        _, kind, _, opts = of_yamls()[task]
        more = [part for module in of_methods() for part in getattr(module, "SMALL", ())]
        return [str(part) for part in (*more, *kind.small, *opts, "OUTPUT_DIR", folder)]
    if task != LOADED:
        return task_opts(task, OUTPUT_DIR=folder, SEED=3)
    data = folder / "data" / "instances.json"
    if not data.is_file():
        write_boxes(data.parent, 4)
    return tiny_opts(data, folder / "out", SOLVER__MAX_ITER=2, SOLVER__STEPS=[1], MODEL__MASK_ON=True)


@functools.cache
def of_yamls() -> dict[str, tuple[str, Kind, str, list[Any]]]:
    """Task -> the yaml, its kind, a variant of that, and its keys."""
    kinds = [*KINDS, *(kind for module in of_methods() for kind in getattr(module, "KINDS", ()))]
    found = {}
    for name in config_names():
        path = str(configs_folder() / name)
        cfg = read_cfg(path)
        (kind,) = (kind for kind in kinds if re.fullmatch(kind.architectures, cfg.MODEL.META_ARCHITECTURE))
        for variant, opts in kind.variants(cfg).items():
            found[f"{name}-{variant}".rstrip("-")] = path, kind, variant, opts
    return found


def _step_of_yaml(cfg: CfgNode, kind: Kind) -> None:
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    scheduler = DynTrainer.build_lr_scheduler(cfg, optimizer)
    inputs = kind.inputs(cfg, True)
    note_loader(model, cfg)  # as one would that made this batch
    with EventStorage():
        losses = model(inputs)
        wrong = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        if wrong:
            raise FloatingPointError(f"not finite: {wrong}")
        sum(losses.values()).backward()
    optimizer.step()
    scheduler.step()
    model.eval()
    kind.ready(model, inputs)
    with torch.no_grad():
        model(kind.inputs(cfg, False))


def step(cfg: CfgNode, task: str) -> None:
    """Builds the model of ``cfg``, trains it for a step (two, with data) and evaluates it."""
    if task == LOADED:
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(False)
        trainer.train()
        return
    if task in of_yamls():
        _step_of_yaml(cfg, of_yamls()[task][1])
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
    path, words = folder / f"hostile_{os.getpid()}.yaml", [word for pair in pairs for word in pair]
    if task in of_yamls():
        base, kind, variant, _ = of_yamls()[task]
        path.write_text(yaml.safe_dump({"_BASE_": base, **tree}))
        cfg = read_cfg(str(path), words)
        check_ranges(cfg, related=False)
        kind.prepare(cfg, variant)
        check_ranges(cfg)
        return cfg
    path.write_text(yaml.safe_dump(tree))
    return build_cfg(str(path), words)


def names_the_key(text: str, key: str) -> bool:
    """In full, or by its last part."""
    return key in text or key.rpartition(".")[2].lower() in text.lower()


def outcome(task: str, folder: Path, key: str, value: Any, *, only_read: bool = False) -> str:
    """ "read": refused where it is read, "built": later, "trains", or what is wrong."""
    where = "read"
    try:
        cfg = with_value(task, folder, key, value)
        if only_read:
            return "trains"
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
    """The keys that ``task`` reads, those of yaml files only where they are dyn_d2's own."""
    cfg = with_value(task, folder, "SEED", 3)
    with keys_that_are_read(cfg) as found:
        step(cfg, task)
    if task in of_yamls() or task in POLICIES:
        found = found - flatten(get_cfg()).keys()
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
    """With ``--list`` only the tasks and the keys that each of them would try."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    began, tried = time.monotonic(), set[str]()
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    tasks = [task for word in words for task in (*of_yamls(), *POLICIES, *TASKS, LOADED) if task.startswith(word)]
    with tempfile.TemporaryDirectory() as name, until_stopped():
        for task in tasks or [LOADED, *TASKS]:
            folder = Path(name, task.replace("/", "_"))
            folder.mkdir()
            own = task in of_yamls() or task in POLICIES
            keys = [key for key in keys_of(task, folder) if not own or key not in tried]
            tried |= set(keys)
            if "--list" in sys.argv:
                print(task, *keys, flush=True)
                continue
            for key in keys:
                for value in OF_YAMLS if own else HOSTILE:
                    said = outcome(task, folder, key, value, only_read=True)
                    if said == "trains":
                        said = in_a_child(task, folder, key, value)
                    counts[said.partition(":")[0]] += 1
                    if said not in ("read", "built", "trains"):
                        print(json.dumps([task, key, repr(value), said]), flush=True)
    print(f"{sum(counts.values())} values in {time.monotonic() - began:.0f} s: {dict(counts)}")
    print(f"keys that no task has tried: {sorted(default_values().keys() - tried)}")


if __name__ == "__main__":
    main()
