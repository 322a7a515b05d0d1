"""The tutorials below docs/ run to their ends, and are short."""

import ast
import subprocess
import sys

import pytest
from tool_runs import ROOT, environment

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
SAYS = {  # what the last cell prints
    "own_coco_json_to_few_shot_detector": "nAP50",
    "gated_backbone_in_an_existing_project": "million multiply-adds of the backbone",
    "masks_for_half_of_the_classes": "AP_without_masks",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, tmp_path):
    command = [sys.executable, str(path)]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert SAYS[path.stem] in run.stdout, run.stdout[-2000:]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_short_and_begins_with_its_title(path):
    text = path.read_text()
    ast.parse(text)
    assert text.startswith("# %% [markdown]\n# # ") and len(text.splitlines()) <= 120
