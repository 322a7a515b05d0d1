"""Data sets with different labels in one model: label sets, levels, the trace of the whole model, a real training."""

import json

import pytest
import torch
from semantic_sets import dsspn_opts
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.config.applied import note_loader
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

PLAIN = {"MODEL__BACKBONE__NAME": "build_resnet_backbone", "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res3"]}


def _model(names, **more) -> torch.nn.Module:
    cfg = read_cfg("", dsspn_opts(names, names, **more))
    model = build_model(cfg)
    note_loader(model, cfg)  # the batches below are made as its loader makes them
    return model


def _inputs(dataset, classes: int, images: int = 2) -> list[dict]:
    found = []
    for _ in range(images):
        image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
        labels = torch.randint(0, classes, (64, 64))
        found.append({"image": image, "sem_seg": labels, "height": 60, "width": 70})
    return [{**inputs, "dataset": dataset} for inputs in found] if dataset else found


def test_each_data_set_has_its_labels(squares):
    model = _model(squares)
    with EventStorage():
        for name, classes in zip(squares, (12, 8), strict=True):
            losses = model(_inputs(name, classes))
            assert losses.keys() == {"loss_sem_seg"} and torch.isfinite(losses["loss_sem_seg"])
        with pytest.raises(ValueError, match="ONE_DATASET_PER_BATCH"):
            model(_inputs(squares[0], 8, 1) + _inputs(squares[1], 8, 1))
        with pytest.raises(ValueError, match="do not say of which"):
            model(_inputs(None, 8))
        stock = _model(squares, MODEL__META_ARCHITECTURE="SemanticSegmentor")
        with pytest.raises(ValueError, match="squares_digits, squares_places have different labels"):
            stock(_inputs(squares[0], 8))
    model.eval()
    with torch.no_grad():
        for name, classes in zip(squares, (12, 8), strict=True):
            for output in model(_inputs(name, classes)):
                assert output["sem_seg"].shape == (classes, 60, 70)
                assert output["levels"].shape[1:] == (60, 70) and not output["levels"][0].any()
                tree, concepts = model.sem_seg_head.tree, model.sem_seg_head.plan_of(name).concepts
                label, last = int(output["sem_seg"].argmax(0)[30, 30]), int(output["levels"][-1][30, 30])
                assert tree.concepts[last] == concepts[label]


@pytest.mark.parametrize("plain", [{}, PLAIN], ids=["gated_fpn", "stock_resnet"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_the_trace_counts_what_torch_counts(squares, plain, dynamic):
    model = _model(squares, MODEL__DSSPN__DYNAMIC=dynamic, **plain).eval()
    for parameter in model.sem_seg_head.neurons.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    inputs = _inputs(squares[0], 12, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        (output,) = model(inputs)
    assert output["route"].executed == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    assert output["route"].open["neuron.everything"].all()
    assert dynamic or output["route"].executed == pytest.approx(output["route"].dense)


def test_data_to_choose_on_has_its_labels(squares):
    fine, coarse = squares
    opts = dsspn_opts([fine], [fine], DATASETS__VAL=[coarse, "of another machine"])
    model = build_model(read_cfg("", opts)).eval()
    with torch.no_grad():
        assert model(_inputs(coarse, 8, 1))[0]["sem_seg"].shape == (8, 60, 70)
    with pytest.raises(KeyError, match="not for 'of another machine': name it in .*DATASETS.VAL"):
        model(_inputs("of another machine", 8, 1))


def test_heads_of_stock_and_gated_models(squares):
    stock = _model(squares[:1], MODEL__META_ARCHITECTURE="SemanticSegmentor")
    gated = _model(squares[:1], MODEL__POLICY__NAME="convnet_aig")
    with EventStorage():
        assert stock(_inputs(None, 12)).keys() == {"loss_sem_seg"}
        losses = gated(_inputs(None, 12))
    assert losses.keys() > {"loss_sem_seg"} and all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        assert stock.eval()(_inputs(None, 12, 1))[0]["sem_seg"].shape == (12, 60, 70)
        (output,) = gated.eval()(_inputs(None, 12, 1))
    assert {"neuron.everything", "res3.0"} <= output["route"].open.keys()


def test_training_on_two_sets_resumes_to_the_same_numbers_and_evaluates(squares, tmp_path):
    cfg = read_cfg("", [*dsspn_opts(squares, squares), "SOLVER.BACKBONE_LR_FACTOR", "0.1", "OUTPUT_DIR", str(tmp_path)])
    cfg.freeze()
    trainer = DynTrainer(cfg)
    assert {round(group["lr"], 6) for group in trainer.optimizer.param_groups} == {0.01, 0.001}
    trainer.resume_or_load(resume=False)
    trainer.train()
    whole = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")  # as if it had been killed
    again = DynTrainer(cfg)
    again.resume_or_load(resume=True)
    again.train()
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    results = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert set(results) == set(squares) and all("mIoU" in results[name]["sem_seg"] for name in squares)
    assert all(results[name]["routes"]["rate-neuron.everything"] == 100 for name in squares)
    for name, images in zip(squares, (6, 12), strict=True):  # no set has overwritten another one's
        predictions = json.loads((tmp_path / "inference" / name / "sem_seg_predictions.json").read_text())
        assert len({p["file_name"] for p in predictions}) == images
        assert all(name in p["file_name"] for p in predictions)
