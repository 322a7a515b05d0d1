"""The levels that PMN's modules took, through the evaluator."""

import numpy as np
import torch
from route_tables import black_images, classifier_cfg

from dyn_d2.gating.reports.routes import RouteEvaluator, RouteTable

from detectron2.modeling import build_model


def test_the_evaluator_records_what_the_modules_took(tmp_path):
    cfg = classifier_cfg("pmn")
    cfg.MODEL.POLICY.STAGE, cfg.MODEL.GATED.FIRST_BLOCK = "joint", True
    cfg.MODEL.POLICY.PMN.TREE, cfg.MODEL.POLICY.PMN.WIDTH, cfg.MODEL.POLICY.PMN.INIT_BIAS = "digits", 8, 5.0
    model = build_model(cfg).eval()
    evaluator = RouteEvaluator("digits_test", str(tmp_path), model=model)
    with torch.no_grad():
        outputs = model(black_images())
    evaluator.process(black_images(), outputs)
    result = evaluator.evaluate()["routes"]
    read = RouteTable.load(tmp_path / "routes.npz")
    assert read.level_names.tolist() == list(outputs[0]["route"].level_names) and len(read.level_names) == 5
    assert read.level_modules.tolist() == ["res2.0", "res3.0", "res4.0"]
    for n, output in enumerate(outputs):
        np.testing.assert_array_equal(read.levels()[n], np.stack(list(output["route"].levels.values())))
    assert result["blocks_run"] == 3.0
