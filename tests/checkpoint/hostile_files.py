"""Checkpoints that are damaged, edited or made to do harm, through everything that loads one.

``python tests/checkpoint/hostile_files.py [COUNT] [SEED]`` tries many and counts; the test beside it draws some. A file
is refused with one message that names it, or what is loaded is what was saved.
"""

import copy
import io
import logging
import pickle
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from counted_runs import in_time, until_stopped
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.checkpoint import read_checkpoint
from dyn_d2.checkpoint.fits import require_same_classes, warn_of_settings
from dyn_d2.checkpoint.model import model_of
from dyn_d2.checkpoint.surgery import Source
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.few_shot import starting_checkpoint
from dyn_d2.engine.predictor import load_predictor
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.method import methods
from dyn_d2.modeling.backbone.timm_weights import read_file
from dyn_d2.utils.errors import UserError

try:
    from dyn_d2.methods.idk_cascade.calibration import ENTRY, read_stored
except ImportError:  # a copy of the project without that method
    ENTRY, read_stored = "cascade", read_checkpoint

SECONDS = 30
NARROW = {
    f"MODEL__RESNETS__{key}": value
    for key, value in {"DEPTH": 50, "RES2_OUT_CHANNELS": 16, "STEM_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 4}.items()
}
_OF_INPUT = (UserError, ValueError, KeyError, OSError)


class World:
    """A short training, whose checkpoint of the second of three iterations is what is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        more = {"SOLVER__MAX_ITER": 3, "SOLVER__STEPS": [2], "SOLVER__CHECKPOINT_PERIOD": 1, **NARROW}
        self.opts = tiny_opts(write_boxes(folder / "data", 2), folder / "out", **more)
        self.cfg = build_cfg("", self.opts)
        trainer = DynTrainer(self.cfg)
        trainer.resume_or_load(False)
        trainer.train()
        self.trainer = DynTrainer(self.cfg)  # that is loaded into, again and again
        self.next_stage = build_cfg("", [*self.opts, "FEW_SHOT.STAGE", "finetune", "FEW_SHOT.SHOTS", "1"])
        out = folder / "out"
        self.content = torch.load(out / "model_0000001.pth", weights_only=True)
        self.content[ENTRY] = {
            "members": [{"name": n, "weights": f"{n}.pth", "weights_hash": n} for n in "ab"], "about": {"x": 1.0},
            "rules": [],
        }  # fmt: skip
        self.goes_on = True
        self.final = torch.load(out / "model_final.pth", weights_only=True)["model"]


@dataclass
class Case:
    """
    Attributes:
        place: of the part that is another, () for the whole file.
        same: the weights are those that were saved, wherever the file is taken.
        broken: nobody may take it.
    """

    kind: str
    suffix: str
    data: bytes
    place: tuple = ()
    same: bool = False
    broken: bool = False
    tags: set[str] = field(default_factory=set)


def _hostile(rng: random.Random) -> Any:
    loop: list = []
    loop.append(loop)
    return rng.choice([
        lambda: None, lambda: "text", lambda: 5, lambda: -1, lambda: 10**12, lambda: True, lambda: float("nan"),
        lambda: float("inf"), lambda: [], lambda: {}, lambda: [1], lambda: {"a": 1}, lambda: ["x", None], lambda: (),
        lambda: torch.ones(3), lambda: torch.eye(3).to_sparse(), lambda: torch.empty(3, device="meta"), lambda: b"x",
        lambda: torch.zeros(0), lambda: torch.ones(2, dtype=torch.complex64), lambda: torch.tensor(float("nan")),
        lambda: torch.ones(1).expand(10**9), lambda: np.array(["a"]), lambda: np.arange(3), lambda: np.float64(3),
        lambda: loop, lambda: ((((1,),),),), lambda: {("a", 1): 2}, lambda: {1: {2: 3}}, lambda: "x" * 10000,
        lambda: "a: &a [*a]", lambda: "[" * 3000, lambda: "MODEL: 5", lambda: "SEED: no\n", lambda: ["red", "green"],
    ])()  # fmt: skip


def _places(value: Any, here: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here] * bool(here) + [place for key, part in items for place in _places(part, (*here, key))]


def _set(content: dict, place: tuple, change: Callable[[Any, Any], None]) -> None:
    node: Any = content
    for key in place[:-1]:
        node = node[key]
    change(node, place[-1])


def _saved(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def draw(world: World, seed: int) -> Case:
    """A case; the same for the same seed."""
    rng = random.Random(seed)
    content = copy.deepcopy(world.content)
    return rng.choice([_part, _part, _part, _dropped, _bytes, _bytes, _wrapped, _classes, _weights, _pickle])(
        rng, content
    )


def _place(rng: random.Random, content: dict) -> tuple:
    top = rng.choice([key for key in content if isinstance(content[key], dict)] + [""])
    return rng.choice([p for p in _places(content) if not top or p[0] == top and (len(p) > 1 or rng.random() < 0.1)])


def _part(rng: random.Random, content: dict) -> Case:
    place, value = _place(rng, content), _hostile(rng)
    _set(content, place, lambda node, key: node.__setitem__(key, value))
    broken = len(place) > 1 and place[0] == "model" and not isinstance(value, torch.Tensor | np.ndarray | np.generic)
    return Case("part", ".pth", _saved(content, rng.random() < 0.7), place, broken=broken)


def _dropped(rng: random.Random, content: dict) -> Case:
    place = _place(rng, content)
    _set(content, place, lambda node, key: node.pop(key))
    return Case("dropped", ".pth", _saved(content), place)


def _bytes(rng: random.Random, content: dict) -> Case:
    zipped = rng.random() < 0.6
    data = bytearray(_saved(content, zipped))
    kind = rng.choice(["cut", "cut", "flipped", "inserted", "zeroed", "zip"])
    if kind == "cut":
        return Case("cut", ".pth", bytes(data[: rng.randrange(len(data))]), broken=True)
    if kind == "zip" and zipped:
        return _other_zip(rng, bytes(data))
    at = rng.choice(
        [rng.randrange(len(data)), rng.randrange(min(4000, len(data))), len(data) - 1 - rng.randrange(3000)]
    )
    if kind == "inserted":
        data[at:at] = rng.randbytes(rng.choice([1, 8, 100]))
    elif kind == "zeroed":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    else:
        for _ in range(rng.choice([1, 4, 30])):
            data[min(len(data) - 1, at + rng.randrange(200))] = rng.randrange(256)
    return Case(kind, ".pth", bytes(data), tags={"bytes"})


def _other_zip(rng: random.Random, data: bytes) -> Case:
    """Parts that are gone, empty, twice, compressed."""
    kind, made = rng.choice(["gone", "empty", "compressed", "half"]), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        victim = rng.choice([name for name in names if "/data/" in name or name.endswith("data.pkl")])
        for name in names:
            content = old.read(name)
            if name == victim and kind == "gone":
                continue
            part = (
                {"empty": b"", "half": content[: len(content) // 2]}.get(kind, content) if name == victim else content
            )
            new.writestr(name, part, zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED)
    return Case(f"zip {kind}", ".pth", made.getvalue(), broken=True)


def _wrapped(rng: random.Random, content: dict) -> Case:
    """As others write their weights: they are found."""
    model = content["model"]
    if rng.random() < 0.5:
        model = {f"module.{name}": value for name, value in model.items()}
    key = rng.choice(["model", "state_dict", "model_state_dict", ""])
    return Case("wrapped", ".pth", _saved({key: model} if key else model, rng.random() < 0.7), ("wrapped",), same=True)


def _classes(rng: random.Random, content: dict) -> Case:
    names = content["dyn_d2"]["classes"]
    other = rng.choice(
        [names[::-1], names[1:] + names[:1], [*names[:-1], "else"], names[:-1], [*names, "more"], names[:1] * 3]
    )
    content["dyn_d2"]["classes"] = other
    return Case("classes", ".pth", _saved(content), ("dyn_d2", "classes"), tags={"classes"})


def _weights(rng: random.Random, content: dict) -> Case:
    model = content["model"]
    name = rng.choice(sorted(model))
    kind, value = rng.choice(["renamed", "shape", "type", "extra", "more dimensions"]), model.pop(name)
    if kind == "renamed":
        model[name + "x"] = value
    elif kind == "shape":
        model[name] = torch.zeros([side + 1 for side in value.shape] or [1])
    elif kind == "type":
        model[name] = value.to(torch.float64)
    elif kind == "extra":
        model |= {name: value, "else.weight": torch.ones(2)}
    else:
        model[name] = value[None] if value.dim() else value[None, None]
    return Case(f"weights {kind}", ".pth", _saved(content), ("model", name), same=kind in ("type", "extra"))


def _pickle(rng: random.Random, content: dict) -> Case:
    """Arrays of the model zoo's format, whole or not."""
    model = {name: value.numpy() for name, value in content["model"].items()}
    data: Any = {"model": model, "__author__": "x"}
    kind = rng.choice(["whole", "part", "cut", "flipped", "other"])
    if kind == "part":
        place = rng.choice([p for p in _places(data) if len(p) > 1])
        _set(
            data,
            place,
            lambda node, key: node.__setitem__(key, rng.choice([None, "x", [1], {}, (1,), b"x", np.array(["a"])])),
        )
    if kind == "other":
        data = rng.choice(
            [None, [], model, {"blobs": 5}, {"blobs": model}, {"model": [], "__author__": "x"}, "x", {5: 6}]
        )
    raw = bytearray(pickle.dumps(data, protocol=rng.choice([2, 4])))
    if kind == "cut":
        raw = raw[: rng.randrange(len(raw))]
    if kind == "flipped":
        raw[rng.choice([rng.randrange(len(raw)), rng.randrange(300)])] = rng.randrange(256)
    return Case(f"pkl {kind}", ".pkl", bytes(raw), ("pkl",), same=kind == "whole", broken=kind in ("part", "cut"))


# ---------------------------------------------------------------------------------------------------------------- loads


def _start(world: World, path: Path) -> dict[str, Any]:
    trainer = world.trainer
    trainer.checkpointer.load(str(path), checkpointables=[])
    model, report = trainer.checkpointer.model, trainer.checkpointer.report
    require_same_classes(model, report, world.cfg.DATASETS.TRAIN, start=True)
    warn_of_settings(world.cfg, report)
    for method in methods():
        method.start(world.cfg, model, report)
    if report.reinitialised():
        raise UserError(f"{path.name}: said in the log: {report.table()}")
    return model.state_dict()


def _evaluate(world: World, path: Path) -> dict[str, Any]:
    model, report = model_of(world.cfg, str(path))
    require_same_classes(model, report, world.cfg.DATASETS.TRAIN)
    for method in methods():
        method.check_loaded(world.cfg, report)
    report.metadata.get("few_shot", {}).get("shots_hash")
    return model.state_dict()


def _demo(world: World, path: Path) -> dict[str, Any]:
    config = "" if "dyn_d2" in read_checkpoint(str(path)) else str(world.folder / "demo.yaml")
    if config:
        Path(config).write_text(world.cfg.dump())
    return load_predictor(str(path), config).model.state_dict()


def _surgery(world: World, path: Path) -> dict[str, Any] | None:
    base = Source.read(str(path), [] if "dyn_d2" in read_checkpoint(str(path)) else list("rgb"))
    if base.classes != list("rgb"):
        starting_checkpoint(world.next_stage, base)
    return base.model


def _cascade(world: World, path: Path) -> None:
    read_stored(path)


def _timm(world: World, path: Path) -> dict[str, Any] | None:
    return read_file(str(path)) if path.suffix == ".pth" else None


def _resume(world: World, path: Path) -> dict[str, Any]:
    """Where the state of the trainer is what was damaged, goes on for the last iteration: the weights of its end."""
    out = world.folder / "out"
    noted = out / "model_0000001.pth"
    before = noted.read_bytes()
    try:
        noted.write_bytes(path.read_bytes())
        (out / "last_checkpoint").write_text(noted.name)
        world.trainer.resume_or_load(True)
        if not world.goes_on:
            return world.trainer.checkpointer.model.state_dict()
        trainer = DynTrainer(world.cfg)
        trainer.resume_or_load(True)
        trainer.train()
        return {"end": trainer.checkpointer.model.state_dict()}
    finally:
        noted.write_bytes(before)


LOADERS = {load.__name__.strip("_"): load for load in (_start, _evaluate, _demo, _surgery, _cascade, _timm, _resume)}


def outcome(world: World, case: Case) -> dict[str, str]:
    """Loader -> "right", or what is wrong."""
    path = world.folder / f"hostile{case.suffix}"
    path.write_bytes(case.data)
    world.goes_on = case.place[:1] == ("trainer",)
    found = {}
    for name, load in LOADERS.items():
        if name == "resume" and case.suffix != ".pth":
            continue
        found[name] = _outcome_of(world, case, name, load, path)
    return found


def _outcome_of(world: World, case: Case, name: str, load: Callable, path: Path) -> str:
    try:
        loaded = load(world, path)
    except _OF_INPUT as error:
        text = str(error)
        if isinstance(error, UnicodeError | IndexError) or (isinstance(error, KeyError) and " " not in text):
            return f"traceback: {type(error).__name__}: {text[:200]} ({_place_of_error()})"
        named = "hostile" in text or "model_0000001" in text or "IDK cascade" in text
        refused_well = case.same and name not in ("cascade", "surgery", "resume")
        return (
            f"refused: {text[:200]}"
            if refused_well
            else "right"
            if named
            else f"unnamed: {type(error).__name__}: {text[:300]}"
        )
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]} ({_place_of_error()})"
    if loaded is None:
        return "right"
    if case.broken and name not in ("cascade",) and not (name == "timm" and case.kind == "part"):
        return "silent: loaded"
    if "end" in loaded:
        # A parameter without a state is one that never had a gradient.
        without = case.place[:4] == ("trainer", "_trainer", "optimizer", "state") and len(case.place) <= 5
        return "right" if without or _alike(loaded["end"], world.final) else "silent: resumed otherwise"
    wanted = world.content["model"]
    if (
        case.place[:1] == ("model",)
        and not case.same
        or name == "timm"
        or case.tags & {"bytes"}
        or "flipped" in case.kind
    ):
        return "right"  # another number is a number
    if "classes" in case.tags and name in ("evaluate", "start"):
        return "silent: other classes"
    return "right" if _alike(loaded, wanted) else "silent: other weights"


def _place_of_error() -> str:
    return [line for line in traceback.format_exc().splitlines() if line.strip().startswith("File")][-1].strip()


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = {name for name in other if not name.endswith("num_batches_tracked")}
    return names <= one.keys() and all(torch.equal(one[name].float(), other[name].float()) for name in names)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    logging.disable()
    counts: Counter[tuple[str, str]] = Counter()
    began = time.monotonic()
    with ExitStack() as stack:
        world = World(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.enter_context(until_stopped())
        for seed in range(first, first + count):
            case = draw(world, seed)
            with in_time(SECONDS):
                found = outcome(world, case)
            for name, said in found.items():
                counts[name, said.partition(":")[0]] += 1
                if said != "right":
                    print(seed, case.kind, case.place, name, said, flush=True)
    print(f"{seed - first} files, {sum(counts.values())} loads in {time.monotonic() - began:.0f} s")
    for name in LOADERS:
        print(f"  {name}: { ({said: n for (of, said), n in sorted(counts.items()) if of == name}) }")


if __name__ == "__main__":
    main()
