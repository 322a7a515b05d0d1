"""The pictures and the page of visualize_routes, from routes that are made up."""

import json
import re

import numpy as np
import pytest
import torch
from route_tables import classifier_cfg, route_table

from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.cli import routes
from dyn_d2.gating.reports.route_figures import span
from dyn_d2.gating.reports.route_statistics import load_images
from dyn_d2.gating.reports.routes import RouteTable

BLOCKS = {"res2.1": 1, "res3.0": 1, "res3.1": 1}


def _data(page) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))


def test_one_model(tmp_path, capsys):
    table = route_table({**BLOCKS, "res4.0": 3, "res4.1": 12})
    table.class_names = np.array(["zero", "</script><b>", "two", "three"])
    table.save(tmp_path / "run" / "inference" / "routes.npz")
    assert routes.main([str(tmp_path / "run/inference/routes.npz"), "--output", str(tmp_path / "out")]) == 0
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {
        "execution_rate.png", "executed.png", "rate_per_class.png", "classes.png", "elements.png",
        "class_similarity.png", "easiest_hardest.png",
    }  # fmt: skip
    assert "none:" not in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)|https?://|url\(', page), "the page has to need nothing beside itself"
    (run,) = _data(page)["runs"]
    assert len(run["classes"]) == 4 and run["classes"][1]["name"] == "</script><b>"
    assert len(run["columns"]) == 3 + 3 + 1 and sum(run["histogram"]) == pytest.approx(100, abs=0.1)
    shown = [i for group in run["classes"] for i in group["easy"] + group["hard"]]
    assert len(shown) == 4 * 2 * 5 and all(run["photos"][str(i)]["source"].startswith("data:image/png") for i in shown)
    assert run["photos"]["5"]["right"] is False and len(run["photos"]["0"]["route"]) == 5


def test_several_models_without_labels_or_images(tmp_path, capsys):
    for name, sizes in (("a", BLOCKS), ("b", {"res2.0": 2})):
        route_table(sizes, labels=False, dataset="gone").save(tmp_path / name / "inference" / "routes.npz")
    files = [str(tmp_path / name / "inference" / "routes.npz") for name in "ab"]
    assert routes.main([*files, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "a, execution rate per class: none: the images have no labels" in printed
    assert "a, easiest and hardest images: none: some images are not shown" in printed
    assert (tmp_path / "out" / "executed_all.png").is_file() and (tmp_path / "out" / "b_elements.png").is_file()
    runs = _data((tmp_path / "out" / "index.html").read_text())["runs"]
    assert [run["name"] for run in runs] == ["a", "b"] and not runs[0]["labelled"] and "gone" in runs[0]["problem"]
    with pytest.raises(SystemExit):
        routes.main([*files, "--names", "x", "--output", str(tmp_path / "out")])
    with pytest.raises(FileNotFoundError, match="evaluate a gated model"):
        routes.main([str(tmp_path / "routes.npz"), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("percent", "limits"),
    [((97, 100), (90, 100)), ((60, 100), (60, 100)), ((52, 53), (45, 60)), ((98, 103), (95, 105)), ((0, 2), (0, 10))],
)
def test_an_axis_of_percent_ends_at_100(percent, limits):
    assert span(np.array(percent, float)) == limits


def test_a_data_set_that_is_not_here_is_named_alone(tmp_path):
    table = route_table({"res2.0": 1}, images=4, dataset="nowhere_val")
    images, problem = load_images(table, [0, 1])
    assert not images and problem == "some images are not shown: data set nowhere_val is not registered here"


def test_small_images_at_several_scales_stand_in_one_figure_each_beside_its_own_dense_network(tmp_path, capsys):
    """Fig. 2.11 of SkipNet by INPUT.CLASSIFICATION.RESIZE_TEST alone, on images without a recipe that resizes."""
    model, files = None, []
    for side in (4, 8, 16):
        cfg = classifier_cfg("skipnet_rnn")
        cfg.INPUT.CLASSIFICATION.RESIZE_TEST, cfg.OUTPUT_DIR = side, str(tmp_path / str(side))
        torch.manual_seed(0)
        model = model or DynTrainer.build_model(cfg).eval()
        DynTrainer.test(cfg, model)
        files.append(str(tmp_path / str(side) / "inference" / "routes.npz"))
    dense = [RouteTable.load(file).dense[0] for file in files]
    assert 3.5 * dense[0] < dense[1] and 3.5 * dense[1] < dense[2]
    assert routes.main([*files, "--names", "0.5", "1", "2", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "executed_all.png").is_file()
    runs = _data((tmp_path / "out" / "index.html").read_text())["runs"]
    assert [run["name"] for run in runs] == ["0.5", "1", "2"]
    assert all(RouteTable.load(file).correct is not None for file in files)
