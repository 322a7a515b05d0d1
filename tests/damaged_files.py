"""Files that dyn_d2 writes or asks for, damaged in many ways: one message names the file, or it is read as it stands.

``python tests/damaged_files.py [COUNT] [SEED]`` tries many and counts; the test beside it draws some. Kinds of a method
stand in ``damaged_kinds.py`` beside the method's tests.
"""

import copy
import io
import json
import logging
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "gating"))

from config_kinds import of_methods
from counted_runs import in_time, until_stopped
from route_tables import route_table

from dyn_d2.checkpoint.files import tagged
from dyn_d2.config.output_dir import differing_keys
from dyn_d2.config.read import read_cfg, read_yaml
from dyn_d2.data.digit_scenes.register import load_label_maps
from dyn_d2.data.few_shot.published import _annotation_ids
from dyn_d2.data.few_shot.sampling import ObjectId, ShotSet
from dyn_d2.data.pseudo_masks import _read_cache, read_masks
from dyn_d2.engine.inputs import changed
from dyn_d2.engine.resume import drop_metrics_from
from dyn_d2.engine.stages import _read_done
from dyn_d2.evaluation.convergence import read_curve, training_seconds
from dyn_d2.evaluation.figures import _read_detections
from dyn_d2.evaluation.results import compare, main_metric, read_results
from dyn_d2.gating.reports.routes import RouteTable, summarise
from dyn_d2.gating.reports.tradeoff import read_point, read_times
from dyn_d2.hierarchy import load_hierarchy
from dyn_d2.utils.errors import UserError

SECONDS = 10


class Kind(NamedTuple):
    """
    Attributes:
        name: of the file.
        write: makes a sound one.
        read: reads it and uses what it holds; returns something to compare where nothing but white space is another.
        never_refused: what is damaged is made again, without a word of error.
    """

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    never_refused: bool = False


def _json(content: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps(content))


_MASK = {"size": [4, 4], "counts": "0"}
_RESULTS = {
    "iteration_evaluated": 4, "seed": 3, "versions": {"torch": "2"}, "config": {"SEED": 3},
    "metrics": {"boxes": {"bbox": {"AP": 51.5, "AP50": 60.0, "APs": None, "nAP": 20.0}}},
}  # fmt: skip
_POINT = {
    "weights": "a.pth", "point": "dense", "dense": True, "metric": {"task": "bbox", "name": "AP", "value": 50.0},
    "routes": {"executed": 3.0, "share": 50.0}, "settings": {"opts": [], "weights": "0a"},
}  # fmt: skip
_TIMES = [{"milliseconds": {"1": {"median": 3.0, "p90": 4.0}}, "device": "cpu", "dtype": "float32", "threads": 1}] * 2
_ROWS = "".join(json.dumps(row) + "\n" for row in (
    {"iteration": 1, "total_loss": 2.0, "time": 0.5, "lr": 0.1}, {"iteration": 3, "bbox/nAP50": 5.0, "bbox/AP": 5.0},
    {"iteration": 4, "total_loss": 1.0, "time": 0.5},
))  # fmt: skip
_INPUTS = {"data": {"boxes": {"json": "0a"}}, "files": {"KEY a.npz": "0b"}, "weights": {"MODEL.WEIGHTS": "0c"}}
_IMAGES = [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 5} for i in (1, 2)]
_TREE = {
    "concepts": {"root": ["animal", "thing"], "animal": ["cat", "dog"]},
    "datasets": {"a": {"cat": "cat", "cup": "thing"}},
}


def _results(path: Path) -> Any:
    record = read_results(path)
    for results in record["metrics"].values():
        if "bbox" in results and "AP" in results["bbox"]:
            main_metric(results)
    return compare(_RESULTS, record)


def _shots(path: Path) -> Any:
    objects = {"cat": (ObjectId("a", 1, 2), ObjectId("a", 3, 4)), "dog": (ObjectId("b", "x", 5),)}
    return ShotSet("custom", 0, 2, "instance", objects, origin="drawn").save(path)


def _curve(path: Path) -> Any:
    return read_curve(path.parent), training_seconds(path.parent)


def _routes(path: Path) -> Any:
    table = RouteTable.load(path)
    return summarise(table), table.members().keys(), len(table.element_rates())


def _label_maps(path: Path) -> Any:
    return load_label_maps(path, str(path.parent), str(path.parent))


def _tree(path: Path) -> Any:
    tree = load_hierarchy(path)
    return tree.as_dict(), tree.leaves, tree.max_depth


def _config(path: Path) -> Any:
    return differing_keys(read_yaml(str(path)), read_cfg())


KINDS = (
    Kind("1shot.json", _shots, lambda path: ShotSet.load(path).to_dict()),
    Kind("published.json", _json({"annotations": [{"id": 1}, {"id": 2}]}), _annotation_ids),
    Kind("results.json", _json(_RESULTS), _results),
    Kind("metrics.json", lambda path: path.write_text(_ROWS), _curve),
    Kind("masks.json", _json({"annotations": [{"image_id": 1, "bbox": [0, 0, 2, 2.5],
         "segmentation": {"size": [2, 2], "counts": [1, 3]}}]}), lambda path: read_masks(str(path))),
    Kind("cache.json", _json({"0 0 2 2": _MASK, "1 1 2 2": None}), lambda path: _read_cache(path) and 1, True),
    Kind("coco_instances_results.json", _json([{"image_id": 1, "category_id": 2, "bbox": [0, 0, 2, 2], "score": 0.5}]),
         _read_detections),
    Kind("done.json", _json({"stage": "base", "fingerprint": "0a", "weights": "model_final.pth", "inputs": _INPUTS}),
         lambda path: changed(_read_done(path).get("inputs", {}), _INPUTS)),
    Kind("config.yaml", lambda path: path.write_text(read_cfg().dump()), _config),
    Kind("last_checkpoint", lambda path: path.write_text("model_0000001.pth"), lambda path: tagged(path.parent), True),
    Kind("metrics_cut.json", lambda path: path.write_text(_ROWS), lambda path: drop_metrics_from(str(path), 4), True),
    Kind("routes.npz", lambda path: route_table({"res2.1": 1, "res3.0": 9}, 6).save(path), _routes),
    Kind("point.json", _json(_POINT), read_point),
    Kind("times.json", _json(_TIMES), lambda path: read_times(path, 2, ["1"])),
    Kind("val.json", _json({"images": _IMAGES, "annotations": [], "categories": []}), _label_maps),
    Kind("tree.yaml", lambda path: path.write_text(yaml.safe_dump(_TREE)), _tree),
)  # fmt: skip


def all_kinds() -> list[Kind]:
    found = [Kind(*kind) for module in of_methods("damaged_kinds") for kind in module.KINDS]
    return [*KINDS, *found]


# --------------------------------------------------------------------------------------------------------- what is made


def _hostile(rng: random.Random) -> Any:
    return rng.choice([
        None, True, False, 0, -1, 5, 1.5, float("nan"), float("inf"), 10**400, 1e308, "", "x", "5", "\0", "é" * 9, [],
        {}, [1], [None], [[1, 2]], ["a", "b"], {"a": 1}, {"a": {"b": [1]}}, [[]], [1, "a"], "x" * 10000,
    ])  # fmt: skip


def _places(value: Any, here: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, part in items for place in _places(part, (*here, key)))]


def _changed_json(rng: random.Random, text: str) -> bytes:
    content = json.loads(text)
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.choice(_places(content))
        if not place:
            return json.dumps(_hostile(rng)).encode()
        node = content
        for key in place[:-1]:
            node = node[key]
        change = rng.choice(["set", "set", "set", "drop", "rename", "copy"])
        if change == "drop":
            del node[place[-1]]
        elif change == "rename" and isinstance(node, dict):
            node[rng.choice(["x", "", "é", str(place[-1]).upper()])] = node.pop(place[-1])
        elif change == "copy" and isinstance(node, list):
            node.append(copy.deepcopy(node[place[-1]]))
        else:
            node[place[-1]] = _hostile(rng)
    return json.dumps(content, indent=rng.choice([None, 1])).encode()


def _changed_bytes(rng: random.Random, data: bytes) -> bytes:
    kind = rng.choice(["cut", "cut", "flip", "insert", "repeat", "all", "swap"])
    at = rng.randrange(len(data) + 1)
    if kind == "cut":
        return data[:at]
    if kind == "flip" and data:
        return data[: at - 1] + rng.randbytes(1) + data[at:] if at else data
    if kind == "insert":
        odd = [b"\0", b"\xff", b"{", b"]", b",", b'"', b":", b"\n", b"\t", b"- ", b"NaN", b"!!x ", b"&a [*a]"]
        odd += [b"[" * 5000, b"9" * 5000]
        return data[:at] + rng.choice(odd) + data[at:]
    if kind == "repeat":
        return data + data
    if kind == "swap":
        end = min(len(data), at + 40)
        return data[:at] + data[at:end][::-1] + data[end:]
    whole = [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"3",
        b'"x"',
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"[" * 100_000,
        rng.randbytes(200),
    ]
    return rng.choice([*whole, b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16")])


def _changed_yaml(rng: random.Random, text: str) -> bytes:
    lines = text.split("\n")
    i = rng.choice([i for i, line in enumerate(lines) if line.strip()])
    change = rng.choice(["value", "value", "drop", "twice", "indent", "key"])
    if change == "drop":
        del lines[i]
    elif change == "twice":
        lines.insert(i, lines[i])
    elif change == "indent":
        lines[i] = " " + lines[i]
    else:
        name, _, value = lines[i].partition(":")
        odd = [
            "5",
            "~",
            "no",
            "[1]",
            "{a: 1}",
            "&a [*a]",
            "!!x 1",
            "2024-01-01",
            "",
            "*a",
            "'",
            "[" * 2000,
            "x: y",
            "root",
        ]
        lines[i] = f"{name}: {rng.choice(odd)}" if change == "value" else f"{rng.choice(odd)}:{value}"
    return "\n".join(lines).encode()


def _changed_arrays(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.25:
        return _changed_zip(rng, data)
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    name = rng.choice(sorted(arrays))
    value = arrays[name]
    change = rng.choice("drop nan type text shape empty more object complex big negative rename".split())
    if change in ("drop", "rename"):
        del arrays[name]
        arrays |= {name.upper(): value} if change == "rename" else {}
    elif change == "nan":
        arrays[name] = np.full(value.shape, np.nan)
    elif change == "type":
        arrays[name] = np.zeros(value.shape, rng.choice(["f2", "f8", "i8", "u1", "?", "M8[s]"]))
    elif change == "text":
        arrays[name] = np.full(value.shape, "x")
    elif change == "shape":
        arrays[name] = value[None]
    elif change == "empty":
        arrays[name] = value[:0] if value.ndim else np.array([], value.dtype)
    elif change == "more":
        arrays[name] = np.concatenate([value, value]) if value.ndim else np.array([value, value])
    elif change == "object":
        arrays[name] = np.array([{}], dtype=object)
    elif change == "complex":
        arrays[name] = np.zeros(value.shape, "c8")
    else:
        arrays[name] = np.full(value.shape, 2**40 if change == "big" else -3)
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def _changed_zip(rng: random.Random, data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        victim = rng.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, _changed_bytes(rng, content) if name == victim else content)
    return made.getvalue()


def damage(rng: random.Random, kind: Kind, data: bytes) -> bytes:
    """Another file than ``data``, in one of many ways."""
    if rng.random() < 0.35:
        return _changed_bytes(rng, data)
    if kind.name.endswith(".npz"):
        return _changed_arrays(rng, data)
    if kind.name.endswith(".yaml"):
        return _changed_yaml(rng, data.decode())
    if kind.name.startswith("metrics"):
        lines = data.decode().splitlines()
        i = rng.randrange(len(lines))
        lines[i] = _changed_json(rng, lines[i]).decode().replace("\n", "")
        return "\n".join([*lines, ""]).encode()
    return _changed_json(rng, data.decode()) if kind.name.endswith(".json") else _changed_bytes(rng, data)


# --------------------------------------------------------------------------------------------------------- what happens


def outcome(kind: Kind, path: Path, data: bytes) -> str:
    """ "refused" or "read", or what is wrong."""
    path.write_bytes(data)
    try:
        found = kind.read(path)
    except (UserError, ValueError, OSError) as error:
        if isinstance(error, UnicodeError) or isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return f"traceback: {type(error).__name__}: {error}"
        if kind.never_refused:
            return f"refused, though it is made again: {error}"
        return "refused" if path.name in str(error) else f"unnamed: {type(error).__name__}: {str(error)[:200]}"
    except Exception as error:
        last = [line for line in traceback.format_exc().splitlines() if line.strip().startswith("File")][-1].strip()
        return f"traceback: {type(error).__name__}: {str(error)[:200]} ({last})"
    nonsense = "nan" in repr(found).lower() and b"NaN" not in data and kind.name != "config.yaml"
    return f"silent: {str(found)[:300]}" if nonsense else "read"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    counts: Counter[tuple[str, str]] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, until_stopped():
        sound = {}
        logging.disable()
        for kind in all_kinds():
            folder = Path(name, kind.name.partition(".")[0])
            folder.mkdir()
            path = folder / kind.name.replace("metrics_cut", "metrics")
            kind.write(path)
            sound[kind] = path, path.read_bytes()
            assert outcome(kind, *sound[kind]) == "read", (kind.name, outcome(kind, *sound[kind]))
        for _ in range(count):
            kind = rng.choice(list(sound))
            path, data = sound[kind]
            damaged = damage(rng, kind, data)
            with in_time(SECONDS):
                said = outcome(kind, path, damaged)
            counts[kind.name, said.partition(":")[0]] += 1
            if said not in ("read", "refused"):
                print(kind.name, said, damaged[:200], flush=True)
    print(f"{sum(counts.values())} files in {time.monotonic() - began:.0f} s")
    for name in sorted({name for name, _ in counts}):
        print(f"  {name}: { ({said: n for (of, said), n in sorted(counts.items()) if of == name}) }")


if __name__ == "__main__":
    main()
