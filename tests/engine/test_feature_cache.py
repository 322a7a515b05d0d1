"""Fine-tuning from kept features gives what fine-tuning without gives."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tiny_detection import save_detector, tiny_opts, train_recorded

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.feature_cache import CacheError, evaluated_from_cache, features_fingerprint
from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.trainer import DynTrainer, evaluate
from dyn_d2.modeling.build import build_model
from dyn_d2.modeling.predictor_alone import PredictorAlone

STEPS = 50


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with model_final.pth and its images in data."""
    folder = tmp_path_factory.mktemp("base")
    save_detector(folder)
    return folder


def config(base: Path, output: Path, **more):
    keys = {
        "FEW_SHOT__STAGE": "finetune",
        "FEW_SHOT__METHOD": "tfa_cos",
        "FEW_SHOT__SHOTS": 1,
        "FEW_SHOT__CACHE_DIR": output.parent / "cache",
        "MODEL__WEIGHTS": base / "model_final.pth",
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
        "SOLVER__MAX_ITER": STEPS,
        "SOLVER__CHECKPOINT_PERIOD": STEPS,
        "SOLVER__STEPS": [],
    }
    return build_cfg("", tiny_opts(base / "data" / "instances.json", output, **{**keys, **more}))


def train(cfg) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The losses of each step, and the weights in the end."""
    losses, trainer = train_recorded(cfg)
    return losses, {k: v.clone() for k, v in trainer.checkpointer.model.state_dict().items()}


def furthest(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((torch.as_tensor(a[name]) - torch.as_tensor(b[name])).abs().max()) for name in a)


SIDES = ("off", "on", "auto")  # the last one finds all features


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps, more",
    [
        (STEPS, {}),
        (5, {"FEW_SHOT__METHOD": "tfa_fc", "FEW_SHOT__GROUP_BY_IMAGE": True, "DATALOADER__NUM_WORKERS": 1}),
        (5, {"SOLVER__AMP__ENABLED": True}),
    ],
    ids=["cos", "fc, grouped, worker", "bfloat16"],
)
def test_kept_features_give_the_numbers_of_computed_ones(base, tmp_path, steps, more, caplog) -> None:
    caplog.set_level(logging.INFO)
    runs = [
        train(config(base, tmp_path / side, FEW_SHOT__CACHE=side, SOLVER__MAX_ITER=steps, **more)) for side in SIDES
    ]
    plain, *others = runs
    assert len(plain[0]) == steps and plain[0][0].keys() == {"loss_cls", "loss_box_reg"}
    assert plain[0][0] != plain[0][-1]
    for losses, weights in others:
        assert max(furthest(*pair) for pair in zip(plain[0], losses, strict=True)) < 1e-4
        assert furthest(plain[1], weights) < 1e-4
    assert " 0 computed, " in caplog.text  # the third run
    final = [torch.load(tmp_path / side / "model_final.pth", weights_only=True)["model"] for side in SIDES]
    assert final[0].keys() == final[1].keys() == final[2].keys() == plain[1].keys()


@pytest.mark.slow
def test_views_serve_other_shots_and_heads_of_the_same_base(base, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    train(config(base, tmp_path / "first", SOLVER__MAX_ITER=60))
    caplog.clear()
    more = {"FEW_SHOT__METHOD": "tfa_fc", "FEW_SHOT__SHOTS": 1, "FEW_SHOT__SEED": 3, "SOLVER__MAX_ITER": 10}
    train(config(base, tmp_path / "second", FEW_SHOT__GROUP_BY_IMAGE=True, **more))
    assert " 0 computed, " in caplog.text


def test_other_frozen_weights_or_proposals_are_another_cache(base, tmp_path) -> None:
    cfg = config(base, tmp_path / "out")
    torch.manual_seed(0)
    model = build_model(cfg)
    first = features_fingerprint(cfg, model)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.add_(1)
    assert features_fingerprint(cfg, model) == first
    same = ({"FEW_SHOT__METHOD": "tfa_fc"}, {"MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 7}, {"FEW_SHOT__STAGE": "base"})
    for more in same:
        assert features_fingerprint(config(base, tmp_path / "out", **more), model) == first
    for more in ({"MODEL__RPN__NMS_THRESH": 0.6}, {"INPUT__FORMAT": "RGB"}, {"MODEL__PIXEL_MEAN": [1.0, 2.0, 3.0]}):
        assert features_fingerprint(config(base, tmp_path / "out", **more), model) != first
    for part in ("backbone", "proposal_generator", "roi_heads.box_head"):
        parameter = next(model.get_submodule(part).parameters())
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        assert features_fingerprint(cfg, model) != first
        with torch.no_grad():
            parameter.view(-1)[0] -= 1e-3
    with torch.no_grad():
        next(model.backbone.parameters()).zero_()
    assert features_fingerprint(cfg, model) != first


def test_images_and_views_have_entries_of_their_own(base, tmp_path) -> None:
    cfg = config(base, tmp_path / "out", SOLVER__MAX_ITER=5)
    train(cfg)
    cache = Path(cfg.FEW_SHOT.CACHE_DIR)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.tensors")}
    assert len(before) > 4
    for path in (base / "data" / "images").iterdir():  # a picture that was replaced by another one
        other = path.with_suffix(".keep")
        path.rename(other)
        pixels = bytearray(other.read_bytes())
        path.write_bytes(bytes(pixels) + b"\0")
    try:
        train(config(base, tmp_path / "again", SOLVER__MAX_ITER=5))
    finally:
        for path in (base / "data" / "images").glob("*.keep"):
            path.rename(path.with_suffix(".png"))
    assert len(list(cache.rglob("*.tensors"))) == 2 * len(before)


def test_damaged_entries_are_computed_again(base, tmp_path, caplog) -> None:
    first = train(config(base, tmp_path / "first", SOLVER__MAX_ITER=5))
    entries = list((tmp_path / "cache").rglob("*.tensors"))
    for path in entries:
        path.write_bytes(path.read_bytes()[:-1000])
    second = train(config(base, tmp_path / "second", SOLVER__MAX_ITER=5))
    assert "made anew" in caplog.text
    assert furthest(first[1], second[1]) == 0
    for path in entries:  # the images are gone, and nobody looks
        assert path.stat().st_size > 1000


@pytest.mark.slow
def test_a_cache_that_is_too_small_gives_the_same(base, tmp_path, caplog) -> None:
    first = train(config(base, tmp_path / "a" / "first", SOLVER__MAX_ITER=5))
    caplog.clear()
    small = {"SOLVER__MAX_ITER": 5, "FEW_SHOT__CACHE": "on"}
    second = train(config(base, tmp_path / "b" / "second", FEW_SHOT__CACHE_GB=0.00002, **small))
    assert "less than this run needs" in caplog.text and "FEW_SHOT.CACHE_GB is 2e-05" in caplog.text
    third = train(config(base, tmp_path / "c" / "third", FEW_SHOT__CACHE_GB=1e-6, **small))
    assert "not even one entry" in caplog.text
    fourth = train(config(base, tmp_path / "d" / "fourth", SOLVER__MAX_ITER=5, FEW_SHOT__CACHE_GB=1e-6))
    assert not (tmp_path / "d" / "cache").exists()
    assert all(furthest(first[1], other[1]) < 1e-6 for other in (second, third, fourth))


def test_a_checkpoint_is_evaluated_from_the_cache(base, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    cfg = config(base, tmp_path / "out", FEW_SHOT__CACHE="on")
    found = []
    for turn in (cfg, cfg, config(base, tmp_path / "plain", FEW_SHOT__CACHE="off")):
        evaluate(turn)
        found.append(json.loads((Path(turn.OUTPUT_DIR) / "inference" / "coco_instances_results.json").read_text()))
    assert "2 computed, 0 read" in caplog.text and "0 computed, 2 read" in caplog.text
    first, second, plain = ([item["score"] for item in detections] for detections in found)
    assert first == second and len(first) > 10
    assert sorted(first) == pytest.approx(sorted(plain), abs=2e-3)


def test_a_base_model_leaves_the_features_of_test_images(base, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    cfg = config(base, tmp_path / "base", FEW_SHOT__STAGE="base", MODEL__WEIGHTS="", SOLVER__MAX_ITER=2)
    model = build_model(cfg)
    model.forward = forward = lambda inputs: type(model).forward(model, inputs)
    with evaluated_from_cache(cfg, model, final=False):
        assert model.forward is forward  # in the middle of a training
    DynTrainer.test(cfg, model)
    assert model.forward is forward and "2 computed, 0 read" in caplog.text
    cell = build_model(config(base, tmp_path / "cell"))
    frozen = {name: value for name, value in model.state_dict().items() if ".box_predictor." not in name}
    cell.load_state_dict(frozen, strict=False)
    DynTrainer.test(config(base, tmp_path / "cell"), cell)
    assert "0 computed, 2 read" in caplog.text


@pytest.mark.parametrize(
    "more, reason",
    [
        ({"FEW_SHOT__METHOD": "ft_full"}, "parameters before the predictor learn"),
        ({"MODEL__MASK_ON": True}, "masks of sampled regions"),
        ({"INPUT__CROP__ENABLED": True}, "RandomCrop"),
        ({"VIS_PERIOD": 5}, "VIS_PERIOD"),
    ],
)
def test_where_features_change_the_step_is_the_plain_one(base, tmp_path, more, reason, caplog) -> None:
    caplog.set_level(logging.INFO)
    cfg = config(base, tmp_path / "out", MODEL__WEIGHTS="", **more)
    trainer = DynTrainer(cfg)
    assert not isinstance(trainer.checkpointer.model.forward, PredictorAlone) and reason in caplog.text
    with pytest.raises(CacheError, match=reason):
        DynTrainer(config(base, tmp_path / "out", MODEL__WEIGHTS="", FEW_SHOT__CACHE="on", **more))
    base_stage = DynTrainer(config(base, tmp_path / "out", MODEL__WEIGHTS="", **more, FEW_SHOT__STAGE="base"))
    assert not isinstance(base_stage.checkpointer.model.forward, PredictorAlone)


def test_all_stages_share_a_folder(tmp_path, base) -> None:
    opts = tiny_opts(base / "data" / "instances.json", tmp_path / "out", FEW_SHOT__METHOD="tfa_cos")
    for stage in plan("", [*opts, "FEW_SHOT.INIT", "novel"]):
        options = stage.opts()
        folder = options[options.index("FEW_SHOT.CACHE_DIR") + 1]
        assert folder == str((tmp_path / "out" / "feature_cache").absolute())
    stage = plan("", [*opts, "FEW_SHOT.CACHE_DIR", "elsewhere"])[-1]
    assert stage.opts()[-1] == "elsewhere" and stage.fingerprint() == plan("", opts)[-1].fingerprint()
