"""Concept trees as yaml files.

Two mappings; a concept that has no children needs no line of its own::

    concepts:                      # concept: [children]; a child may stand below several concepts
      everything: [animal, sky]
      animal: [cat, dog]
    datasets:                      # data set: {label: concept}, in the order of the data set's classes
      pets: {kitten: cat, dog: dog}
      farm: {animal: animal, sky: sky}     # a coarse label, on a concept with children

A file may instead name another tree and the data sets that it is cut to: ``{cut_of: universal, datasets: [ade20k]}``.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dyn_d2.utils.atomic import atomic_write

from .tree import Hierarchy, HierarchyError

_SHIPPED = Path(__file__).with_name("trees")
_WRITTEN = "tree "  # a config would read json alone as a mapping


def shipped_hierarchies() -> tuple[str, ...]:
    """The names that :func:`load_hierarchy` knows."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.yaml")))


def load_hierarchy(name_or_path: str | os.PathLike) -> Hierarchy:
    """A shipped tree by its name, the tree of a yaml file, or one that is written out (``written_out``).

    Raises:
        FileNotFoundError: there is neither such a tree nor such a file.
        HierarchyError: the file is not of the format above, or the tree not valid.
    """
    text = os.fspath(name_or_path)
    if text in shipped_hierarchies():
        return _shipped(text)
    if text.startswith(_WRITTEN):
        return _read_out(text.removeprefix(_WRITTEN))
    path = Path(text).expanduser()
    if not path.is_file():
        if text in _carried:
            return _carried[text]
        raise FileNotFoundError(
            f"Concept tree {text!r} is neither a yaml file nor one of {', '.join(shipped_hierarchies())}."
        )
    return _load(path, str(path))


_carried: dict[str, Hierarchy] = {}  # by the name that a config has for them


def trees_to_carry(*names: str) -> dict[str, dict[str, Any]]:
    """What a checkpoint has to carry of these trees, so that its config can be used where their files are not: name ->
    content; those that dyn_d2 ships are everywhere."""
    return {name: load_hierarchy(name).as_dict() for name in names if name and written_out(name) != name}


def take_carried(trees: Any) -> None:
    """Make trees of a checkpoint known by their names, for ``load_hierarchy`` where there is no such file.

    Raises:
        HierarchyError: one of them is no tree.
    """
    for name, content in trees.items() if isinstance(trees, Mapping) else ():
        if not isinstance(content, Mapping):
            raise HierarchyError(f"the tree {name} of a checkpoint is a {type(content).__name__}: the file was edited.")
        concepts, datasets = content.get("concepts", {}), content.get("datasets", {})
        _check_types(concepts, datasets, str(name))
        _carried[str(name)] = Hierarchy(concepts, datasets, name=str(name))


@cache  # trees do not change
def _shipped(name: str) -> Hierarchy:
    return _load(_SHIPPED / f"{name}.yaml", name)


def written_out(name_or_path: str | os.PathLike) -> str:
    """What stands for a tree in a config that has to do without files: of a shipped one its name, of a file its
    content in one line, which ``load_hierarchy`` takes."""
    text = os.fspath(name_or_path)
    if text in shipped_hierarchies() or text.startswith(_WRITTEN):
        return text
    return _WRITTEN + json.dumps(load_hierarchy(text).as_dict())


@cache
def _read_out(text: str) -> Hierarchy:
    name = "the concept tree of the config"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HierarchyError(f"{name} is no json: {error}") from error
    return _of_content(content, name)


def _load(path: Path, name: str) -> Hierarchy:
    content = _read(path, name)
    if set(content) == {"cut_of", "datasets"}:
        return _cut(content, path, name)
    return _of_content(content, name)


def _of_content(content: dict[str, Any], name: str) -> Hierarchy:
    if "concepts" not in content or set(content) - {"concepts", "datasets"}:
        raise HierarchyError(f"{name} has the keys {sorted(content)}: 'concepts' and 'datasets' are wanted.")
    concepts, datasets = content["concepts"] or {}, content.get("datasets") or {}
    _check_types(concepts, datasets, name)
    return Hierarchy(concepts, datasets, name=name)


def _is_cut_of_itself(path: Path) -> bool:
    """Whether the files that "cut_of" leads to from ``path`` come back to one of them."""
    seen: set[Path] = set()
    while path.is_file() and path.resolve() not in seen:
        seen.add(path.resolve())
        path = path.parent / str(_read(path, str(path)).get("cut_of", ""))
    return path.is_file()


def _cut(content: dict[str, Any], path: Path, name: str) -> Hierarchy:
    whole, datasets = content["cut_of"], content["datasets"]
    if not isinstance(whole, str) or not isinstance(datasets, list) or not all(isinstance(d, str) for d in datasets):
        raise HierarchyError(f"{name}: 'cut_of' has to name one tree, and 'datasets' is a list, as in [ade20k].")
    if _is_cut_of_itself(path):
        raise HierarchyError(f"{name} is a cut of itself, by way of {whole!r}: name a tree with concepts.")
    beside = path.parent / whole
    tree = load_hierarchy(beside if beside.is_file() else whole).cut(*datasets)
    tree.name = name
    return tree


def save_hierarchy(tree: Hierarchy, path: str | os.PathLike) -> None:
    """Write the yaml file of a tree, for instance of a cut, to change it by hand."""
    with atomic_write(path) as file:
        yaml.safe_dump(tree.as_dict(), file, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """Reads every key and value as text ("no", 5), and takes a key that comes twice for the mistake that it is."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise HierarchyError(f"{self.name}, line {line}: a name was expected, not a list or mapping.")
            if key.value in seen:
                raise HierarchyError(f"{self.name}, line {line}: {key.value!r} is mapped twice; keep one of the lines.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path, name: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.load(file, _Loader)  # a SafeLoader
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise HierarchyError(f"{name} is no yaml: {error}") from error
        except RecursionError:
            raise HierarchyError(f"{name} is no tree: its lists are nested without end.") from None
    if not isinstance(content, dict):
        raise HierarchyError(f"{name} is no mapping with 'concepts' and 'datasets'.")
    return content


def _check_types(concepts: Any, datasets: Any, name: str) -> None:
    for title, mapping in (("concepts", concepts), ("datasets", datasets)):
        if not isinstance(mapping, dict):
            raise HierarchyError(f"{name}: {title!r} is no mapping.")
    for concept, below in concepts.items():
        if not isinstance(below, list) or not all(isinstance(child, str) and child for child in below):
            raise HierarchyError(f"{name}: the children of {concept!r} are no list of names.")
    for dataset, labels in datasets.items():
        if not isinstance(labels, dict) or not labels:
            raise HierarchyError(f"{name}: the labels of {dataset!r} are no mapping from label to concept.")
        for label, concept in labels.items():
            if isinstance(concept, list):
                raise HierarchyError(f"{name}: label {label!r} of {dataset} is mapped more than once: {concept}.")
            if not concept or not isinstance(concept, str):
                raise HierarchyError(f"{name}: label {label!r} of {dataset} is not mapped to a concept.")
