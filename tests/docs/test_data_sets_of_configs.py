"""datasets/README.md has every folder below datasets/ that a yaml reads and no command makes."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = {"voc_crops"}  # by dyn-d2 crop-features, as docs/tafe_net.md has it


def test_folders_that_configs_name_are_described() -> None:
    texts = [path.read_text() for path in (ROOT / "configs").rglob("*.yaml")]
    named = {folder for text in texts for folder in re.findall(r"datasets/(\w+)/", text)} - MADE
    page = (ROOT / "datasets" / "README.md").read_text()
    assert "animals_masks" in named and not [folder for folder in named if f"{folder}/" not in page]
