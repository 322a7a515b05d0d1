"""Tools on a tiny Layer Cascade: the demo, and the trade-off."""

import json

import pytest
from layer_cascade_toy import toy_layer_cascade
from tool_runs import demo_of_noise

from dyn_d2.gating.cli import tradeoff


def test_the_demo_shows_the_stages(tmp_path):
    with toy_layer_cascade(tmp_path):
        config = str(tmp_path / "config.yaml")
        shares = demo_of_noise(tmp_path, "MODEL.LAYER_CASCADE.THRESHOLDS", "[0.0]", config=config)
        assert shares["settled by"] == {"stage1": 100.0} and list(shares) == ["classes", "settled by"]
        shares = demo_of_noise(tmp_path, "MODEL.LAYER_CASCADE.THRESHOLDS", "[1.0]", config=config)
        assert shares["settled by"] == {"stage3": 100.0}


def test_the_tradeoff_at_several_thresholds(tmp_path):
    arguments = ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(tmp_path / "model_final.pth"),
                 "--output", str(tmp_path / "out"), "--batch", "4", "--timed", "2",
                 "--sweep", "MODEL.LAYER_CASCADE.THRESHOLDS", "[0.0]", "[1.0]"]  # fmt: skip
    with toy_layer_cascade(tmp_path):
        assert tradeoff.main(arguments) == 0
    dense, none, everything = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    assert dense["dense"] and dense["routes"]["executed_percent"] == pytest.approx(100)
    assert none["point"] == "thresholds [0.0]" and none["routes"]["executed_percent"] < 60
    assert everything["routes"] == dense["routes"] and everything["metric"] == dense["metric"]
    assert dense["metric"]["name"] == "mIoU"
