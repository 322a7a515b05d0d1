"""benchmarks/frozen_detector.py compares ways to compute the same; how long they take is not tested."""

import json

import pytest
import torch
from tool_runs import load_benchmark

from dyn_d2.config.derive import build_cfg
from dyn_d2.modeling.build import build_model

pytest.importorskip("timm")

TINY = ["MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("frozen_detector")


@pytest.mark.embedded
def test_all_sides_compute_the_same_and_leave_the_model_as_it_was(tool):
    torch.manual_seed(0)
    model = build_model(build_cfg("TFA/voc07_lite0.yaml", TINY)).eval()
    (image,) = tool.images_of(1, 96, 96, 20)
    found = {}
    for side in (*tool.SIDES, "after"):
        with torch.no_grad():
            if side == "after":
                features = model.backbone(model.preprocess_image([image]).tensor)
            else:
                with tool.as_side(model, side):
                    features = model.backbone(model.preprocess_image([image]).tensor)
        found[side] = features["p3"]
    assert torch.equal(found["both"], found["after"]) and torch.equal(found["plain"], found["regions"])
    assert not torch.equal(found["plain"], found["both"])  # other roundings
    scale = found["plain"].abs().max()
    torch.testing.assert_close(found["both"] / scale, found["plain"] / scale, rtol=0, atol=1e-4)


@pytest.mark.embedded
def test_table(tool, tmp_path, capsys):
    output = tmp_path / "frozen.json"
    assert tool.main(["--batch", "1", "--size", "64", "64", "--rounds", "1", "--output", str(output), *TINY]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["what"], row["side"]) for row in rows] == [(w, s) for w in ("step", "inference") for s in tool.SIDES]
    assert all(row["ms"] > 0 for row in rows) and "both" in capsys.readouterr().out
