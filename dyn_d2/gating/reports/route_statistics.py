"""From the routes of images to what pictures of them show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.data.classification.mapper import decode
from dyn_d2.data.registered import registered_records

from detectron2.data.detection_utils import read_image

from .routes import RouteTable

ALL_IMAGES = "all images"
# Few enough elements, as CDB's groups, to show each one; the channels of a layer are shown by their mean.
FEW_ELEMENTS = 8


def groups(table: RouteTable) -> dict[str, np.ndarray]:
    """Indices of the images of each class; one group of all of them where there are no labels."""
    return table.members() or {ALL_IMAGES: np.arange(len(table))}


def executed_percent(table: RouteTable) -> np.ndarray:
    """(N,) executed multiply-adds in percent of what the network without gates would take for the same image."""
    return 100 * table.executed / np.maximum(table.dense, 1)


def extremes(table: RouteTable, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each class the indices of ``count`` images with least executed (least first) and most (most first).

    Between equals the expected multiply-adds decide: how sure the gates were. No image is in both.
    """
    percent = executed_percent(table)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, chosen in groups(table).items():
        order = chosen[np.lexsort((table.expected[chosen], percent[chosen]))]
        each = min(count, max(len(order) // 2, 1))
        found[name] = order[:each], order[max(len(order) - each, each) :][::-1]
    return found


def columns(table: RouteTable) -> tuple[list[str], np.ndarray]:
    """Names and (N, columns) rates of what heat maps show: each group of a unit, or the mean of its many channels."""
    names: list[str] = []
    values: list[np.ndarray] = []
    for unit, (name, size) in enumerate(zip(table.unit_names, table.unit_sizes, strict=True)):
        opened = table.opened(unit)
        if 1 < size <= FEW_ELEMENTS:
            names += [f"{name} group {g + 1}" for g in range(size)]
            values += list(opened.T.astype(float))
        else:
            names.append(str(name))
            values.append(opened.mean(1))
    return names, np.stack(values, 1) if values else np.zeros((len(table), 0))


def class_rates(table: RouteTable, values: np.ndarray) -> np.ndarray:
    """(classes, columns) means of (N, columns) ``values`` over the images of each class."""
    return np.stack([values[chosen].mean(0) for chosen in groups(table).values()])


def use_of_elements(table: RouteTable, margin: float = 0.01) -> np.ndarray:
    """(U, 3) share of each unit's elements that are open for nearly all images (within ``margin``), for some, for
    nearly none."""
    shares = []
    for rates in table.element_rates():
        always, never = (rates >= 1 - margin).mean(), (rates <= margin).mean()
        shares.append((always, 1 - always - never, never))
    return np.array(shares).reshape(-1, 3)


def class_similarity(table: RouteTable) -> np.ndarray:
    """(classes, classes) correlation between the classes' execution rates, over all elements that not all classes use
    alike: 1 where two classes take the same routes. DeepMoE, section 3.4.1: related classes use related experts."""
    rates = np.stack([np.concatenate(table.element_rates(chosen)) for chosen in groups(table).values()])
    centred = rates - rates.mean(0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, 1)
    return similarity


def run_names(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each file of routes, or checkpoint: its run's folder, with as much more as tells them apart."""
    parts = [[p for p in Path(path).resolve().with_suffix("").parts[1:] if p != "inference"] for path in paths]
    for length in range(1, 1 + max(map(len, parts), default=0)):
        short = [
            "/".join(p[-1 - length : -1] if p[-1] in ("routes", "model_final") else p[-1 - length :]) for p in parts
        ]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def load_images(table: RouteTable, indices: Sequence[int]) -> tuple[dict[int, np.ndarray], str]:
    """Images as (H, W, 3) uint8 RGB arrays, from their files or from the registered data set.

    Returns:
        index -> image, of those that are to be had; and why others are not, "" if there are none.
    """
    images: dict[int, np.ndarray] = {}
    problem = ""
    absent = [i for i in indices if not Path(table.file_names[i]).is_file()]
    records: Mapping[str, dict[str, Any]] = {}
    if absent:
        try:
            records = {str(r.get("image_id")): r for r in registered_records(table.dataset)}
        except KeyError:  # whose own message lists all data sets
            problem = f"some images are not shown: data set {table.dataset} is not registered here"
        except (OSError, ValueError) as error:
            problem = f"some images are not shown: {error}"
    for index in indices:
        record = records.get(table.image_ids[index]) if index in absent else {"file_name": table.file_names[index]}
        try:
            if record is not None:
                images[index] = decode(record) if "image" in record else read_image(record["file_name"], "RGB")
        except OSError as error:
            problem = f"some images are not shown: {error}"
    if len(images) < len(indices) and not problem:
        problem = f"some images are not shown: their files are gone, and data set {table.dataset} does not hold them"
    return images, problem
