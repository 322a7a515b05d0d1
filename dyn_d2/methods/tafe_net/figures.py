"""Figures 5.3 and 5.5 of Wang 2020, and the numbers in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_d2.data.object_crops import CropOptions, cut
from dyn_d2.utils.seeds import derive_seed

from detectron2.data.detection_utils import read_image

from .data import DescribedSet, Part
from .meta_arch import TAFENet

MARKERS = "osD^vP*X"
RIGHT, WRONG = "#228833", "#cc3311"


def embeddings(model: TAFENet, data: DescribedSet, tasks: Sequence[int], each: int = 20, seed: int = 0) -> list[dict]:
    """t-SNE of the TAFEs of test images under several task descriptions (Fig. 5.3).

    Args:
        tasks: numbers of classes whose images are taken, and whose descriptions each image is seen with.
        each: images of a class.
        seed: of the drawing of images and of t-SNE.

    Returns:
        One dict a pair: "image" (its place in the test part), "class", "task", "x", "y".

    Raises:
        ValueError: there are fewer than three pairs.
    """
    part = data.parts["test"]
    rng = np.random.default_rng(derive_seed("embeddings", seed))
    chosen = []
    for task in tasks:
        own = np.flatnonzero(part.labels == task)
        chosen.append(rng.choice(own, min(each, len(own)), replace=False))
    images = np.concatenate(chosen)
    if len(images) * len(tasks) < 3:
        raise ValueError("there are fewer than three pairs of image and description: choose more classes.")
    from sklearn.manifold import TSNE  # half a second to import

    with torch.no_grad():
        features = torch.from_numpy(part.features[images]).to(model.device)
        _, weights = model.meta_learner(model.descriptions[list(tasks)])
        tafe = model.network.embed(features, weights).cpu().numpy().astype(np.float32)
    points = tafe.reshape(-1, tafe.shape[-1])
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    pairs = [(image, task) for image in images for task in tasks]
    return [
        {
            "image": int(image),
            "class": data.classes[part.labels[image]],
            "task": data.classes[task],
            "x": float(x),
            "y": float(y),
        }
        for (image, task), (x, y) in zip(pairs, plane, strict=True)
    ]


def draw_embeddings(pairs: Sequence[dict]) -> Figure:
    """A dot a pair: its colour says under which description, its shape of which class; a black edge marks pairs that
    fit."""
    tasks, classes = (list(dict.fromkeys(pair[key] for pair in pairs)) for key in ("task", "class"))
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axis = figure.subplots()
    for i, task in enumerate(tasks):
        for j, name in enumerate(classes):
            own = np.array([(p["x"], p["y"]) for p in pairs if p["task"] == task and p["class"] == name])
            x, y = own.T
            fits, marker = task == name, MARKERS[j % len(MARKERS)]
            edge, width = ("black", 1.0) if fits else (f"C{i % 10}", 0.0)
            axis.scatter(x, y, s=34, marker=marker, color=f"C{i % 10}", alpha=0.75, edgecolors=edge, linewidths=width)
    for i, task in enumerate(tasks):
        axis.scatter([], [], color=f"C{i % 10}", label=f"described: {task}")
    for j, name in enumerate(classes):
        axis.scatter([], [], color="grey", marker=MARKERS[j % len(MARKERS)], label=f"image of {name}")
    axis.set(xticks=[], yticks=[], title="TAFEs of the same images under several descriptions (t-SNE)")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def retrievals(scores: np.ndarray, data: DescribedSet, count: int = 5) -> dict[str, list[dict[str, Any]]]:
    """The test images of unseen classes that fit each of these best (Fig. 5.5): ranked by the class's share of the
    soft-max over the unseen classes, as ``retrieval_mAP`` ranks them. Images of seen classes are left out, as the
    paper's test sets have none.

    Args:
        scores: (N, C) of the test part.
        count: images a class.

    Returns:
        class -> dicts with "image" (place in the test part), "class", "right", "share" and, where known, "file" and
        "box".

    Raises:
        ValueError: no class is unseen.
    """
    part, unseen = data.parts["test"], data.unseen
    if not len(unseen):
        raise ValueError(f"{data.source}: every class has training images, so there is no unseen one to look for.")
    images = np.flatnonzero(np.isin(part.labels, unseen))
    shares = torch.from_numpy(scores[np.ix_(images, unseen)]).softmax(1).numpy()
    found: dict[str, list[dict[str, Any]]] = {}
    for place, number in enumerate(unseen):
        best = np.argsort(-shares[:, place], kind="stable")[:count].tolist()
        found[data.classes[number]] = [
            {
                "image": i,
                "class": data.classes[part.labels[i]],
                "right": bool(part.labels[i] == number),
                "share": share,
                **({} if part.files is None else {"file": str(part.files[i])}),
                **({} if part.boxes is None else {"box": part.boxes[i].tolist()}),
            }
            for i, share in zip(images[best].tolist(), shares[best, place].tolist(), strict=True)
        ]
    return found


def draw_retrievals(found: dict[str, list[dict[str, Any]]], part: Part, folder: str | Path = "") -> Figure:
    """A row a class; frames are green where the image is of it, and red with the name of its class where it is not.

    Args:
        part: whose images they are; features that are maps are drawn where there is no ``folder``.
        folder: of the image files.
    """
    columns = max(len(row) for row in found.values())
    figure = Figure(figsize=(1.3 * columns + 1.2, 1.45 * len(found)), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(found), columns, squeeze=False), found.items(), strict=True):
        axes[0].set_ylabel(name, fontsize=8)
        for axis in axes[len(row) :]:
            axis.axis("off")
        for axis, item in zip(axes, row, strict=False):
            _draw_image(axis, item, part, folder)
            axis.set(xticks=[], yticks=[])
            axis.set_title("" if item["right"] else item["class"], fontsize=7, color=WRONG, pad=2)
            for side in axis.spines.values():
                side.set(color=RIGHT if item["right"] else WRONG, linewidth=2.5)
    return figure


def _draw_image(axis: Axes, item: dict[str, Any], part: Part, folder: str | Path) -> None:
    if folder and "file" in item:
        image = read_image(str(Path(folder) / item["file"]), "RGB")
        axis.imshow(cut(image, item["box"], CropOptions(size=160)) if "box" in item else image)
    elif part.features.ndim == 4:
        axis.imshow(part.features[item["image"]].mean(0), cmap="gray")
    else:
        axis.text(0.5, 0.5, f"{item['image']}\n{item['class']}", ha="center", va="center", fontsize=7)
