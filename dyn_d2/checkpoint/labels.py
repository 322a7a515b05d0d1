"""What checkpoints say about the labels of their data sets, for machines where these are not registered."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog

ENTRY = "label_sets"
KEYS = ("stuff_classes", "stuff_colors", "label_set", "hierarchy", "evaluator_type")


def describe_labels(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Data set -> what its metadata say about the labels of pixels."""
    found = {name: MetadataCatalog.get(name).as_dict() for name in names}
    return {
        name: {key: _plain(metadata[key]) for key in KEYS if metadata.get(key) is not None}
        for name, metadata in found.items()
        if metadata.get("stuff_classes")
    }


def restore_metadata(described: Mapping[str, Any]) -> None:
    """Tell the catalogue about data sets of a checkpoint that it knows no labels of."""
    stored = described.get(ENTRY)
    for name, entries in stored.items() if isinstance(stored, Mapping) else ():
        if not isinstance(entries, Mapping) or not _are_names(entries.get("stuff_classes")):
            continue  # edited, or of a later version: the model is then used as if it named no labels
        metadata = MetadataCatalog.get(str(name))
        if metadata.get("stuff_classes", None):
            continue
        for key in KEYS:
            if isinstance(entries.get(key), str | list) and metadata.get(key, None) is None:
                metadata.set(**{key: entries[key]})


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _plain(value: Any) -> Any:
    """Lists in place of tuples and arrays, as checkpoints are read without running code."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float) else str(value)
