"""One html page about the routes of images, which needs nothing beside itself."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dyn_d2.utils.atomic import atomic_write

from .level_figures import taken_levels
from .route_figures import span
from .route_statistics import (
    class_rates,
    class_similarity,
    columns,
    executed_percent,
    extremes,
    groups,
    load_images,
    use_of_elements,
)
from .routes import NOT_COUNTED, RouteTable, summarise

BINS = 40
THUMBNAIL = 160  # longest side in pixels
SMALL = 64  # images up to this size are shown as they are, with visible pixels
MOST_SIMILAR = 100  # classes up to which their similarity is a table


def write_page(tables: Mapping[str, RouteTable], path: str | Path, images: int = 8, most_photos: int = 3000) -> Path:
    """Write the page.

    Args:
        tables: name -> routes; several are compared, e.g. checkpoints or input sizes.
        images: how many easy and how many hard images of each class are in it.
        most_photos: in all; with many classes each gets fewer.

    Raises:
        ValueError: a table without images.
    """
    empty = [name for name, table in tables.items() if not len(table)]
    if empty:
        raise ValueError(f"there are no routes in {', '.join(empty)}: the evaluation saw no image.")
    low, high = span(np.concatenate([executed_percent(table) for table in tables.values()]))
    runs = [_run(name, table, images, most_photos // len(tables), (low, high)) for name, table in tables.items()]
    data = json.dumps({"runs": runs, "span": [low, high], "not_counted": list(NOT_COUNTED)}, separators=(",", ":"))
    template = (Path(__file__).parent / "route_page.html").read_text(encoding="utf-8")
    with atomic_write(path) as file:
        # In a script element "</" ends the data, and "<!--" with "<script" the page; json has "<" in texts only.
        file.write(template.replace("__DATA__", data.replace("<", "\\u003c")))
    return Path(path)


def _run(name: str, table: RouteTable, images: int, most_photos: int, limits: tuple[float, float]) -> dict[str, Any]:
    members, summary = groups(table), summarise(table)
    each = max(1, min(images, most_photos // (2 * len(members))))
    chosen = extremes(table, each)
    photos, problem = _photos(table, sorted({int(i) for sides in chosen.values() for side in sides for i in side}))
    percent, correct, per_unit = executed_percent(table), table.correct, table.rates()
    titles, values = columns(table)
    counts, _ = np.histogram(percent, bins=BINS, range=limits)
    heat = class_rates(table, values)
    classes = [
        {
            "name": label,
            "images": len(own),
            "accuracy": None if correct is None else _rounded(100 * correct[own].mean()),
            "mean": _rounded(percent[own].mean(), 3),
            "spread": _rounded(np.percentile(percent[own], [10, 25, 50, 75, 90])),
            "rates": _rounded(100 * per_unit[own].mean(0)),
            "columns": _rounded(100 * heat[k]),
            "easy": [int(i) for i in chosen[label][0]],
            "hard": [int(i) for i in chosen[label][1]],
        }
        for k, (label, own) in enumerate(members.items())
    ]
    return {
        "name": name,
        "dataset": table.dataset,
        "images": len(table),
        "labelled": bool(table.members()),
        "stages": list(dict.fromkeys(table.unit_stages.tolist())),
        "cards": {
            "accuracy": None if correct is None else 100 * float(correct.mean()),
            "executed": {key: 1e9 * value for key, value in summary["executed"].items()},
            "dense": {"mean": float(table.dense.mean())},
            "executed_percent": summary["executed_percent"],
            "gates_percent": summary["gates_percent"],
        },
        "units": [
            {"name": unit, **{key: info[key] for key in ("kind", "size", "stage")}, "rate": _rounded(info["rate"])}
            for unit, info in summary["units"].items()
        ],
        "span": span(percent),
        "histogram": _rounded(100 * counts / len(table), 3),
        "classes": classes,
        "columns": titles,
        "elements": [_rounded(row) for row in 100 * use_of_elements(table)],
        "similarity": [_rounded(row, 3) for row in class_similarity(table)] if len(members) <= MOST_SIMILAR else [],
        "levels": [
            {"name": level, "rate": _rounded(use["rate"]), "modules": _rounded(list(use["modules"].values()))}
            for level, use in summary["levels"].items()
        ],
        "level_modules": table.level_modules.tolist(),
        "photos": photos,
        "problem": problem,
    }


def _rounded(value: Any, digits: int = 2) -> Any:
    return np.round(np.asarray(value, dtype=float), digits).tolist()


def _photos(table: RouteTable, indices: list[int]) -> tuple[dict[int, dict[str, Any]], str]:
    """What the page says about single images."""
    pixels, problem = load_images(table, indices)
    percent, correct, routes = executed_percent(table), table.correct, table.rates()[indices]

    def class_name(number: int) -> str | None:
        if number < 0:
            return None
        return str(table.class_names[number]) if number < len(table.class_names) else f"class {number}"

    return {
        index: {
            "source": _data_url(pixels[index]) if index in pixels else None,
            "small": index in pixels and max(pixels[index].shape[:2]) <= SMALL,
            "name": Path(str(table.file_names[index])).name or f"image {table.image_ids[index]}",
            "label": class_name(int(table.labels[index])),
            "answer": class_name(int(table.predictions[index])),
            "right": None if correct is None else bool(correct[index]),
            "percent": _rounded(percent[index]),
            "executed": float(table.executed[index]),
            "dense": float(table.dense[index]),
            "route": np.round(100 * route).astype(int).tolist(),
            "levels": taken_levels(table, index) if len(table.level_names) else None,
        }
        for index, route in zip(indices, routes, strict=True)
    }, problem


def _data_url(pixels: np.ndarray) -> str:
    """The image in a data: address; small ones without loss."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    kind = "PNG" if max(image.size) <= SMALL else "JPEG"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(buffer, kind, **({"quality": 82} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
