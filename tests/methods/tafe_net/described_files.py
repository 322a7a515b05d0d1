"""Data sets with descriptions in each published format, a few images each."""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat

CLASSES = ["ant", "bee", "cat", "dog", "elk"]  # the last two are unseen
WORDS = {"red": 1.0, "old": 2.0, "car": 3.0, "wine": 4.0, "t": 5.0, "shirt": 7.0}


def features(count: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(count).random((count, width)).astype(np.float32)


def write_proposed_split(folder: Path, **changes) -> np.ndarray:
    """res101.mat and att_splits.mat of ten images, two a class; returns the features."""
    folder.mkdir(parents=True, exist_ok=True)
    x = features(10)
    labels = np.repeat(np.arange(1, 6), 2)[:, None]
    savemat(folder / "res101.mat", {"features": x.T.astype(np.float64), "labels": labels})
    lists = {
        "trainval_loc": [1, 3, 5, 6],
        "test_seen_loc": [2, 4],
        "test_unseen_loc": [7, 8, 9, 10],
        "train_loc": [1, 3],
        "val_loc": [5, 6],
    }
    content = {name: np.array(values)[:, None] for name, values in lists.items()}
    names = np.empty((5, 1), object)
    names[:, 0] = CLASSES
    content |= {"allclasses_names": names, "att": np.zeros((3, 5)), "original_att": np.arange(15.0).reshape(3, 5)}
    content |= changes
    savemat(folder / "att_splits.mat", {key: value for key, value in content.items() if value is not None})
    return x


def write_compositions(folder: Path, kind: str = "resnet18") -> np.ndarray:
    """MIT-States in small: three pairs for training, two unseen ones, an image of a pair in neither list."""
    (folder / "compositional-split").mkdir(parents=True, exist_ok=True)
    (folder / "glove").mkdir(exist_ok=True)
    pairs = [("red", "car"), ("old", "wine"), ("red", "t-shirt"), ("old", "car"), ("red", "wine"), ("old", "t-shirt")]
    lines = [" ".join(pair) for pair in pairs]
    (folder / "compositional-split" / "train_pairs.txt").write_text("\n".join(lines[:3]) + "\n")
    (folder / "compositional-split" / "test_pairs.txt").write_text("\n".join(lines[3:5]) + "\n")
    x = features(12)
    names = [f"images/{i}.jpg" for i in range(12)]
    order = np.random.default_rng(0).permutation(12)
    torch.save(
        {"files": [names[i] for i in order], "features": torch.from_numpy(x[order])}, folder / f"{kind}_features.t7"
    )
    labels = [{"image": name, "attr": pairs[i % 6][0], "obj": pairs[i % 6][1]} for i, name in enumerate(names)]
    torch.save(labels, folder / "metadata.t7")
    vectors = [f"{word} {value} {-value}" for word, value in WORDS.items()]
    (folder / "glove" / "glove.6B.300d.txt").write_text("\n".join(vectors) + "\n")
    return x


class FakeH5:
    """h5py.File for files that numpy wrote: reading needs no more than this."""

    def __init__(self, path: Path, mode: str) -> None:
        with open(path, "rb") as file:
            self._content = dict(np.load(file))

    def __enter__(self) -> "FakeH5":
        return self

    def __exit__(self, *error) -> None:
        pass

    def __getitem__(self, name: str) -> np.ndarray:
        return self._content[name]


def write_low_shot(folder: Path) -> np.ndarray:
    """Eight classes of three training images and one test image; two base and two novel ones in each setup."""
    (folder / "experiment_cfgs").mkdir(parents=True, exist_ok=True)
    x, labels = features(24, 4), np.repeat(np.arange(8), 3)
    for name, values, own in (("train", x, labels), ("val", features(8, 4), np.arange(8))):
        padded = np.concatenate([values, np.full((2, 4), np.nan, np.float32)])  # the files are longer than what counts
        with open(folder / f"{name}.hdf5", "wb") as file:
            np.savez(file, all_feats=padded, all_labels=np.r_[own, 0, 0], count=[len(values)])
    division = {"base_classes": [0, 1, 2, 3], "novel_classes": [4, 5, 6, 7]}
    division |= {
        "base_classes_1": [0, 1],
        "base_classes_2": [2, 3],
        "novel_classes_1": [4, 5],
        "novel_classes_2": [6, 7],
    }
    (folder / "label_idx.json").write_text(json.dumps(division))
    (folder / "experiment_cfgs" / "splitfile_1.json").write_text(json.dumps([[3 * c + 2, 3 * c] for c in range(8)]))
    return x


def write_custom(folder: Path, width: int = 3) -> list[str]:
    """Config keys of own data: ant, bee and cat are trained on, dog is described only."""
    rng = np.random.default_rng(0)
    vectors = {name: (rng.random(width) + i).tolist() for i, name in enumerate(CLASSES[:4])}
    (folder / "classes.json").write_text(json.dumps(vectors))
    for split, names in (("train", ["ant", "bee", "cat"] * 8), ("test", CLASSES[:4] * 2)):
        np.savez(folder / f"{split}.npz", features=features(len(names)), labels=np.array(names))
    keys = {"TRAIN": "train.npz", "TEST": "test.npz", "CLASSES": "classes.json"}
    return [text for key, file in keys.items() for text in (f"ZERO_SHOT.CUSTOM.{key}", str(folder / file))]
