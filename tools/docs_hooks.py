"""Hooks of mkdocs (see mkdocs.yml): pages that are made from files, and their order.

Method pages, tutorials and modules are found, not listed: a new method has its page and its reference without an edit
here, and one that is taken out leaves nothing behind.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
START = ["index.md", "architecture.md"]
TASKS = ["few_shot.md", "own_data.md", "gating.md", "training.md", "troubleshooting.md", "detectron2.md"]
DATA = ["digit_scenes.md", "concept_trees.md"]
NO_REFERENCE = ("embedded", "cli", "commands")  # Detectron2's own interface, and what --help says


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The order of pages: what is named above, and what is found."""
    known = {*START, *TASKS, *DATA}
    methods = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in known)
    config.nav = [
        *START,
        {"How to": TASKS},
        {"Tutorials": [f"tutorials/{path.stem}.md" for path in _tutorials()]},
        {"Methods": methods},
        {"Data": DATA},
        {"Reference": [{name: f"reference/{name}.md"} for name in _modules()]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each tutorial and each package; tutorials as they stand are no page of the site."""
    for path in _tutorials():
        files.remove(files.get_file_from_path(f"tutorials/{path.name}"))
        page = f"tutorials/{path.stem}.md"
        files.append(File.generated(config, page, content=percent_to_markdown(path.read_text())))
    for package, modules in _modules().items():
        content = "\n\n".join([f"# {package}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"reference/{package}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to tutorials lead to their pages; files outside of docs/ are named, without a link."""
    markdown = re.sub(r"\]\(tutorials/(\w+)\.py\)", r"](tutorials/\1.md)", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./(?!images)[^)]*\)", lambda link: f"`{link[1].strip('`')}`", markdown)


def percent_to_markdown(text: str) -> str:
    """A tutorial in the percent format as a page: markdown cells as text, the others as code."""
    parts = []
    for cell in re.split(r"^# %%", text, flags=re.M)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.M))
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts)


def _tutorials() -> list[Path]:
    return sorted((ROOT / "docs" / "tutorials").glob("*.py"))


def _modules() -> dict[str, list[str]]:
    """Package -> its public modules that have a docstring, the package itself first."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "dyn_d2").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part in NO_REFERENCE or (part.startswith("_") and part != "__init__") for part in parts):
            continue
        if not path.read_text().startswith('"""'):
            continue
        package = ".".join(parts[:-1])
        found.setdefault(package, []).append(package if parts[-1] == "__init__" else ".".join(parts))
    return found
