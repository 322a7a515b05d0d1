"""MIT-States (attribute, object) and StanfordVRD (subject, predicate, object): compositions whose parts were seen, but
not together. Features and labels as the authors of TAFE-Net published them."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .described_set import DescribedSet, Part

FOLDERS = {"mit_states": ("mit-states", ("attr", "obj")), "stanford_vrd": ("stanford-vrd", ("sub", "pred", "obj"))}
FEATURES = ("resnet18", "resnet101", "dla34", "dla102")
ADDRESS = (
    '"processed features and labels" of https://github.com/ucbdrive/tafe-net (Compositional Zero-shot Learning); the '
    "word vectors glove.6B.300d.txt at https://nlp.stanford.edu/projects/glove"
)


def files_of(name: str, features: str, one_hot: bool = False) -> list[str]:
    """Paths below the root of the data sets, in the order that ``read_compositions`` takes."""
    folder = f"compositional-zs/{FOLDERS[name][0]}"
    files = ["metadata.t7", "compositional-split/train_pairs.txt", "compositional-split/test_pairs.txt"]
    vectors = [] if one_hot else ["glove/glove.6B.300d.txt"]
    return [f"{folder}/{file}" for file in (f"{features}_features.t7", *files, *vectors)]


def read_compositions(files: Sequence[Path], words: Sequence[str]) -> DescribedSet:
    """Descriptions are the word vectors of the parts, one after the other, or a one for the word at each place
    (Wang 2020, Table 5.5). Evaluation decides among the unseen ones.

    Args:
        files: features, labels, the compositions of training and test, and, unless words are one-hot, word vectors.
        words: the keys of a label's parts in their order.

    Raises:
        ValueError: a file is not what it should be, or a word has no vector.
    """
    features_file, metadata_file, train_file, test_file, *vectors_file = files
    train, test = _compositions(train_file, len(words)), _compositions(test_file, len(words))
    both = sorted(set(train) & set(test))
    if both:
        raise ValueError(f"{test_file}: {' '.join(both[0])} is in {train_file.name} too, so that it is not unseen.")
    everything = [*train, *test]
    number = {composition: i for i, composition in enumerate(everything)}
    content = _load(features_file)
    try:
        place = {file: i for i, file in enumerate(content["files"])}
        features = content["features"].numpy()
        labels = [(place[item["image"]], tuple(item[key] for key in words)) for item in _load(metadata_file)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{metadata_file} and {features_file.name} do not fit each other or are not the published files ({error}): "
            "download both again."
        ) from error
    if vectors_file:
        vectors = word_vectors(vectors_file[0], sorted({word for composition in everything for word in composition}))
        descriptions = np.stack([np.concatenate([vectors[word] for word in composition]) for composition in everything])
    else:
        descriptions = one_hot_parts(everything)
    parts = {}
    for name, members in (("train", set(train)), ("test", set(test))):
        own = [(row, number[composition]) for row, composition in labels if composition in members]
        rows = np.array([row for row, _ in own], dtype=np.int64)
        parts[name] = Part(features[rows].astype(np.float32), np.array([label for _, label in own], dtype=np.int64))
    return DescribedSet(
        str(metadata_file.parent),
        [" ".join(composition) for composition in everything],
        descriptions,
        parts,
        candidates=np.arange(len(train), len(everything)),
    )


def one_hot_parts(compositions: Sequence[Sequence[Any]]) -> np.ndarray:
    """(C, D): for each place of a composition a one at its word, among the words that stand at that place. A number for
    the composition itself would say nothing of one that was never seen."""
    columns = []
    for place in zip(*compositions, strict=True):
        words = sorted(set(place))
        columns.append(np.eye(len(words), dtype=np.float32)[[words.index(word) for word in place]])
    return np.concatenate(columns, axis=1)


def word_vectors(path: Path, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors of GloVe's text format, lower case; a word with hyphens is the mean of its parts.

    Raises:
        ValueError: a word that the file lacks, or a line that is no vector.
    """
    parts = {word: word.lower().split("-") for word in words}
    wanted = {part for own in parts.values() for part in own}
    found: dict[str, np.ndarray] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            word, _, numbers = line.rstrip().partition(" ")
            if word in wanted:
                try:
                    found[word] = np.array(numbers.split(), dtype=np.float32)
                except ValueError as error:
                    raise ValueError(f"{path}: the line of {word!r} is no word with its numbers.") from error
    absent = sorted(wanted - found.keys())
    if absent:
        raise ValueError(f"{path} has no vector of {', '.join(absent[:10])} ({len(absent)} words missing).")
    return {word: np.mean([found[part] for part in own], axis=0) for word, own in parts.items()}


def _compositions(path: Path, length: int) -> list[tuple[str, ...]]:
    lines = [tuple(line.split()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    bad = [line for line in lines if len(line) != length]
    if bad or not lines:
        raise ValueError(f"{path}: {' '.join(bad[0]) if bad else 'an empty file'} is no line of {length} words.")
    return lines


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a file of tensors and text: download it again.") from error
