"""Records of registered data sets, the same ones whichever Detectron2 runs.

Sets that Detectron2's own functions registered (``register_coco_instances``, ``register_lvis_instances``,
``register_pascal_voc``, and with them the builtin ones) are read from their files by dyn_d2: the loaders of an
installed Detectron2 end in an assertion, or leave objects out, at files that the check passes. A set that was
registered with any other function is what that function returns.
"""

import difflib
import itertools
from collections.abc import Iterable
from typing import Any, cast

from torch.utils.data import Dataset

from detectron2.data import DatasetCatalog, MetadataCatalog

from .few_shot.sources import load_source
from .imports import left_out_hint
from .validity.coco import DataError

_REGISTRARS = {"register_coco_instances", "register_lvis_instances", "register_pascal_voc"}


def registered_records(name: str) -> list[dict[str, Any]]:
    """Records of the data set ``name`` in Detectron2's format; annotations that were read here have an "id" too.

    Raises:
        KeyError, FileNotFoundError: the data set is unknown or not there.
        ValueError: an annotation file cannot be used; the message names it.
    """
    if said := unregistered([name]):
        raise KeyError(said)
    if _is_detectron2s(name):
        return load_source(name)
    found = DatasetCatalog.get(name)
    if not isinstance(found, list | tuple | Dataset):
        raise DataError(f"the function that {name} is registered with returns {type(found).__name__}, not a list.")
    return list(cast(Iterable[Any], found))


def unregistered(names: Iterable[str], key: str = "") -> str:
    """What to say of names that no data set has: which there are; "" where all are registered.

    Args:
        key: of the config, that names them.
    """
    known = sorted(DatasetCatalog.list())
    missing = [name for name in dict.fromkeys(names) if name not in known]
    if not missing:
        return ""
    near = list(dict.fromkeys(n for name in missing for n in difflib.get_close_matches(name, known, 3, 0.5)))
    mean = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"{key}{' names ' if key else 'data set '}{', '.join(missing)}, not registered.{mean} DATASETS.CUSTOM takes "
        f"your own data by keys, DATASETS.IMPORT a module that registers them.{left_out_hint()} These are registered: "
        f"{', '.join(_by_family(known))}."
    )


def _by_family(names: list[str], most: int = 4) -> list[str]:
    """Sorted names; of more than ``most`` that begin with the same word only how many there are."""
    families = [(word, list(own)) for word, own in itertools.groupby(names, lambda name: name.split("_")[0])]
    return [text for word, own in families for text in (own if len(own) <= most else [f"{word}_... ({len(own)})"])]


def _is_detectron2s(name: str) -> bool:
    """Whether Detectron2's own reader of local files is behind ``name``."""
    function, metadata = DatasetCatalog[name], MetadataCatalog.get(name)
    own = getattr(function, "__module__", "").startswith("detectron2.data.datasets.")
    if not own or getattr(function, "__qualname__", "").split(".")[0] not in _REGISTRARS:
        return False
    if metadata.get("evaluator_type") == "lvis" and metadata.get("thing_dataset_id_to_contiguous_id"):
        return False  # COCO's classes in LVIS' format, which no evaluation of LVIS counts
    return "://" not in str(metadata.get("json_file") or metadata.get("dirname"))  # which Detectron2 would fetch
