"""The commands of docs/fsrw.md draw the samples of shots that its table of photographs has."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fsrw.md"


def test_commands_have_the_seeds_of_the_table() -> None:
    text = PAGE.read_text().partition("## Measured on photographs")[2].partition("\n## ")[0]
    commands = re.findall(r"--methods fsrw,yolo_ft --shots ([\d,]+) --seeds 0-(\d+)", text)
    drawn = {int(shots): int(last) for several, last in commands for shots in several.split(",")}
    shown = {int(shots): int(last) for shots, last in re.findall(r"^\| (\d+), 0 to (\d+) \|", text, re.MULTILINE)}
    assert drawn == shown and len(shown) == 5
