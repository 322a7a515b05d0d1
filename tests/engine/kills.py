"""Trainings that are killed go on to the numbers of those that were not.

``python tests/engine/kills.py [COUNT] [SEED]`` kills a small training, and a few-shot chain, at any moment:
before and after each file takes its name, in the middle of a checkpoint, around each step and each row of metrics.json.
Processes are forked from this one, so that none imports anything; the test beside it tries a few.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from counted_runs import say_into, until_stopped
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.cli import train as command
from dyn_d2.engine import stages
from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.launch import make_parser
from dyn_d2.utils.errors import one_message, wrong_input

from detectron2.engine import SimpleTrainer
from detectron2.utils.events import JSONWriter

SECONDS = 120
CLOCK = ("time", "eta_seconds")
NARROW = {
    f"MODEL__RESNETS__{key}": value
    for key, value in {"DEPTH": 50, "RES2_OUT_CHANNELS": 16, "STEM_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 4}.items()
}
SCHEDULE = {"SOLVER__MAX_ITER": 4, "SOLVER__STEPS": [3], "SOLVER__CHECKPOINT_PERIOD": 2, "TEST__EVAL_PERIOD": 2,
            "SOLVER__PREFLIGHT": False}  # fmt: skip
STAGE = {"FEW_SHOT__SHOTS": 1, "FEW_SHOT__METHOD": "tfa_cos", "FEW_SHOT__INIT": "novel"}


class Moments:
    """Counts the moments at which a process can be killed, over all processes of a command."""

    def __init__(self, kill_at: int = -1) -> None:
        self.seen, self.kill_at = multiprocessing.Value("i", 0), kill_at

    def passed(self, *_: Any, act: Callable[[], None] = lambda: os.killpg(0, signal.SIGKILL)) -> None:
        self.seen.value += 1
        if self.seen.value == self.kill_at:
            act()

    def around(self, function: Callable) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.passed()
            result = function(*args, **kwargs)
            self.passed()
            return result

        return wrapped

    def watch(self) -> None:
        """In the process that may be killed."""
        os.replace, os.unlink = self.around(os.replace), self.around(os.unlink)
        SimpleTrainer.run_step, JSONWriter.write = self.around(SimpleTrainer.run_step), self.around(JSONWriter.write)
        save = torch.save

        def half_saved(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            self.passed(act=lambda: (file.write(b"PK\x03\x04"), file.flush(), os.killpg(0, signal.SIGKILL)))
            save(content, file, *args, **kwargs)

        torch.save = half_saved


def in_a_process(work: Callable[[], Any], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """The exit status of ``work`` in a process group of its own, below 0 for the signal that ended it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setpgid(0, 0)
            say_into(log, "ab")
            signal.alarm(SECONDS)
            prepare()
            with one_message(), wrong_input():
                work()
            status = 0
        except SystemExit as end:
            print(end.code, file=sys.stderr, flush=True)
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(opts: list[str], resume: bool) -> None:
    command.train(make_parser().parse_args([*(["--resume"] if resume else []), *opts]))


def chain(opts: list[str], resume: bool) -> None:
    """``dyn-d2 few-shot``, with stages in forked processes."""

    def forked(words: list[str]) -> int:
        words = words[words.index("train") + 1 :]
        child = os.fork()  # of the same process group
        if not child:
            with contextlib.suppress(BaseException):
                sys.argv = ["train", *words]
                command.main()
                os._exit(0)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    stages.run_process = forked
    stages.train_stages(plan, "", opts)


class Subject:
    """A training or a chain, and what it gives where nobody kills it."""

    def __init__(self, folder: Path, of_stages: bool) -> None:
        self.folder, self.work = folder, chain if of_stages else train
        data = write_boxes(folder / "data", 4)
        more = {**NARROW, **SCHEDULE, **(STAGE if of_stages else {})}
        if of_stages:
            for stage in ("BASE", "NOVEL", "FINETUNE"):
                more |= {f"FEW_SHOT__{stage}__MAX_ITER": 2, f"FEW_SHOT__{stage}__STEPS": [1]}
            more |= {"SOLVER__CHECKPOINT_PERIOD": 1, "TEST__EVAL_PERIOD": 0}
        self.opts = tiny_opts(data, folder / "out", **more)
        moments = Moments()
        assert self.run(False, moments.watch) == 0, self.log()
        self.moments = moments.seen.value
        self.whole = self.results()
        shutil.rmtree(folder / "out")

    def run(self, resume: bool, prepare: Callable[[], None] = lambda: None, more: tuple[str, ...] = ()) -> int:
        (self.folder / "log").write_bytes(b"")
        return in_a_process(lambda: self.work([*self.opts, *more], resume), self.folder / "log", prepare)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def go_on(self) -> str:
        """Runs the command as long as somebody would who was told what to do; "" or what is wrong."""
        resume = self.work is train and (self.folder / "out" / "last_checkpoint").is_file()
        status = self.run(resume)
        if status:
            return f"dead end: status {status}: {self.log()[-600:]}"
        found = self.results()
        differing = [name for name in self.whole if found.get(name) != self.whole[name]]
        shutil.rmtree(self.folder / "out")
        return f"other numbers: {differing[:6]}" if differing or found.keys() != self.whole.keys() else ""

    def results(self) -> dict[str, Any]:
        """Weights, optimizers, rows of metrics.json and scores, by name."""
        found: dict[str, Any] = {}
        for path in sorted(self.folder.joinpath("out").rglob("model_final.pth")):
            content = torch.load(path, weights_only=True)
            name = str(path.parent.relative_to(self.folder / "out"))
            for key, value in content["model"].items():
                found[f"{name} {key}"] = _hash(value)
            states = content["trainer"]["_trainer"]["optimizer"]["state"]
            found[f"{name} optimizer"] = [_hash(state["momentum_buffer"]) for state in states.values()]
            rows = map(json.loads, (path.parent / "metrics.json").read_text().splitlines())
            found[f"{name} rows"] = [
                {key: value for key, value in row.items() if not any(part in key for part in CLOCK)} for row in rows
            ]
            results = path.parent / "results.json"
            found[f"{name} results"] = json.loads(results.read_text())["metrics"] if results.is_file() else None
        return {name: json.dumps(value) for name, value in found.items()}  # as text, NaN equals NaN


def _hash(value: torch.Tensor) -> str:
    return hashlib.sha256(value.numpy().tobytes()).hexdigest()


def kill(subject: Subject, rng: random.Random) -> str:
    """A run that is killed, perhaps once more while it goes on; "" or what is wrong."""
    moments = Moments(rng.randint(1, subject.moments))
    status = subject.run(False, moments.watch)
    if status != -signal.SIGKILL:
        return f"not killed: status {status} at {moments.kill_at} of {subject.moments}: {subject.log()[-300:]}"
    if rng.random() < 0.3:
        again = Moments(rng.randint(1, subject.moments))
        resume = subject.work is train and (subject.folder / "out" / "last_checkpoint").is_file()
        if subject.run(resume, again.watch) not in (0, -signal.SIGKILL):
            return f"dead end at the second try: {subject.log()[-600:]}"
    return subject.go_on()


def fill(subject: Subject, size: int) -> str:
    """A run that may write no file larger than ``size`` bytes, as on a full disk, and then may."""
    status = subject.run(False, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    text = subject.log()
    if status != 1 or "Traceback" in text or "make room" not in text:
        return f"status {status}: {text[-600:]}"
    if list((subject.folder / "out").rglob("*.tmp")):
        return "half a file is left"
    return subject.go_on()


def kill_loader(subject: Subject, after: int) -> str:
    """The process that loads images is killed after so many moments, or at the first one at which there is one."""
    moments, killed = Moments(), []

    def passed(*_: Any, **__: Any) -> None:
        moments.seen.value += 1
        if moments.seen.value >= after and not killed:
            killed.extend(multiprocessing.active_children())
            for child in killed:
                os.kill(child.pid, signal.SIGKILL)

    def watch() -> None:
        moments.passed = passed
        moments.watch()

    status = subject.run(False, watch, ("DATALOADER.NUM_WORKERS", "1"))
    text = subject.log()
    if status != 1 or "Traceback" in text or "was killed" not in text:
        return f"status {status}: {text[max(0, text.find('Traceback') - 300) :][:3000]}"
    return subject.go_on()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, until_stopped():
        subjects = {kind: Subject(Path(name, kind), kind == "chain") for kind in ("training", "chain")}
        print(
            {kind: subject.moments for kind, subject in subjects.items()},
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        for number in range(count):
            kind = "chain" if number % 3 == 2 else "training"
            said = kill(subjects[kind], rng)
            counts[f"{kind} {said.partition(':')[0] or 'equal'}"] += 1
            if said:
                print(number, kind, said, flush=True)
                shutil.rmtree(subjects[kind].folder / "out", ignore_errors=True)
        for said in (
            fill(subjects["training"], 150_000),
            *(kill_loader(subjects["training"], at) for at in (5, 8, 20)),
        ):
            counts[said.partition(":")[0] or "disk, loader: equal"] += 1
            if said:
                print(said)
    print(f"kills in {time.monotonic() - began:.0f} s: {dict(counts)}")


if __name__ == "__main__":
    main()
