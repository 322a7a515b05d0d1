"""The architecture of docs/architecture.md, held by the imports and words of the code itself."""

import ast
import re
from pathlib import Path

import pytest
from without_method import IMPORT_ALL, copy_without, run

PACKAGE = Path(__file__).resolve().parents[1] / "dyn_d2"
METHODS = sorted(path.name for path in (PACKAGE / "methods").iterdir() if (path / "__init__.py").is_file())
LAYERS = ("utils", "platform", "gating", "methods", "cli")
TOP = {"cli", "__main__"}
# How the methods are called in words, config keys and class names.
WORDS = (
    r"tfa(_\w+)?|fsrw|(feature )?re-?weight\w*|yolo\w*|lstd\w*|darknet\w*|meta_?rcnn|tafe_?\w*|shape_?prop\w*|dsspn\w*"
    r"|pmn\w*|multi_?path\w*|idk\w*|(deep )?layer[_ ]?cascade\w*"
)
# Where one of these words alone is the name of a format of annotations, which is no method.
FORMATS = ("data/convert/", "data/custom/", "config/keys/data.py", "config/ranges.py")


def _files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html", ".yaml", ".cpp", ".cu", ".h"))


def _room(path: Path) -> str:
    """The folder, or the single file, below dyn_d2."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _layer(room: str) -> str:
    if room in TOP:
        return "cli"
    return room if room in ("utils", "gating", "methods") else "platform"


SOURCES = [path for path in _files() if _room(path) not in ("embedded", "configs")]


def _imports(path: Path) -> set[str]:
    """Absolute names of all modules of dyn_d2 that a file imports, also inside of functions."""
    package = (path.parent if path.name != "__init__.py" else path.parent).relative_to(PACKAGE.parent).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "dyn_d2"}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    """utils <- platform <- gating <- methods <- cli: whoever imports stands to the right."""
    upward = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in SOURCES
        if path.suffix == ".py" and path != PACKAGE / "__init__.py" and _layer(_room(path)) == layer
        for name in _imports(path)
        if len(name.split(".")) > 1 and LAYERS.index(_layer(name.split(".")[1])) > LAYERS.index(layer)
    ]
    assert not upward


def test_a_method_imports_no_other():
    """But for a paper's own building on another, which there is none of in code: they meet through the platform."""
    across = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in SOURCES
        if path.suffix == ".py" and _room(path) == "methods" and path.parent != PACKAGE / "methods"
        for name in _imports(path)
        if name.startswith("dyn_d2.methods.") and name.split(".")[2] != path.relative_to(PACKAGE).parts[1]
    ]
    assert not across


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_platform_and_gating_name_no_method(path):
    """Neither in code nor in comments nor as config keys."""
    if _layer(_room(path)) not in ("methods", "cli"):
        text = path.read_text()
        if path.relative_to(PACKAGE).as_posix().startswith(FORMATS):
            text = re.sub(r"(?<!model\.)\byolo\b", "", text, flags=re.IGNORECASE)
        assert not [line for line in text.splitlines() if re.search(rf"\b({WORDS})\b", line, re.IGNORECASE)]


def test_every_method_registers_itself_under_the_name_of_its_folder():
    from dyn_d2.method import methods

    assert [method.name for method in methods()] == ["gating", *METHODS]


@pytest.mark.slow
def test_methods_can_be_taken_out(tmp_path):
    """All else is importable, its tests are found, and those of config, data and the house pass. The short tests of
    all the rest: ``python tests/without_method.py METHOD -- -m "not slow"``."""
    copy_without(["fsrw", "shapeprop", "tafe_net"], tmp_path)
    body = "".join(f"    {line}\n" for line in IMPORT_ALL.strip().splitlines())
    (tmp_path / "tests" / "test_import_all.py").write_text(f"def test_import_all():\n{body}")
    # One process finds all tests, and runs those of these files.
    chosen = "test_import_all.py or test_house.py or test_setup.py or test_resumable.py"
    done = run(tmp_path, "-m", "pytest", "-q", "-m", "not slow", "-k", chosen, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 300, done.stdout[-2000:]
