"""The tutorials below docs/ run to their ends, with less training than they show, and are short."""

import ast

import pytest
from tool_runs import ROOT, environment
from warm_processes import run_warm

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
SAYS = {  # what the last cell prints
    "own_coco_json_to_few_shot_detector": "nAP50",
    "gated_backbone_in_an_existing_project": "million multiply-adds of the backbone",
    "masks_for_half_of_the_classes": "AP_without_masks",
}
SHORTER = {  # what the training of a tutorial is cut to
    '"MAX_ITER": 70, "STEPS": [60], "WARMUP_ITERS": 10': '"MAX_ITER": 6, "STEPS": [5], "WARMUP_ITERS": 1',
    '"MAX_ITER": 70, "STEPS": [60]': '"MAX_ITER": 6, "STEPS": [5]',
    '"SOLVER.MAX_ITER": 50': '"SOLVER.MAX_ITER": 5',
    '"SOLVER.STEPS": [40], "SOLVER.WARMUP_ITERS": 20': '"SOLVER.STEPS": [4], "SOLVER.WARMUP_ITERS": 2',
}


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, tmp_path):
    text = path.read_text()
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    copy = tmp_path / path.name
    copy.write_text(text)
    run = run_warm([str(copy)], tmp_path, environment(), 500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert SAYS[path.stem] in run.stdout, run.stdout[-2000:]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_short_and_begins_with_its_title(path):
    text = path.read_text()
    ast.parse(text)
    assert text.startswith("# %% [markdown]\n# # ") and len(text.splitlines()) <= 120
