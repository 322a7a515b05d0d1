"""Few-shot instance segmentation with ShapeProp: base training with masks, surgery by class name, K-shot tuning."""

import pytest
import torch
from tiny_detection import CLASSES, tiny_opts, write_boxes
from tool_runs import ROOT

from dyn_d2.checkpoint.surgery import Source, operate
from dyn_d2.config.derive import build_cfg, feature_parts
from dyn_d2.engine import stages
from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.stages import train_stages
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.methods.shapeprop import SALIENCY

SHAPE_PROP = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_HEADS.NAME": "ShapePropROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME": "PartialMaskHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 6,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    "MODEL.SHAPE_PROP.NUM_CONV": 1,
    "MODEL.SHAPE_PROP.CONV_DIM": 8,
    "MODEL.SHAPE_PROP.LATENT_CHANNELS": 2,
    "FEW_SHOT.METHOD": "tfa_cos",
    "FEW_SHOT.SHOTS": 2,
    "SOLVER.MAX_ITER": 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
}
YAML = str(ROOT / "configs" / "ShapeProp" / "digit_scenes.yaml")
LAST_LAYERS = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.", SALIENCY)


@pytest.fixture
def opts(tmp_path) -> list[str]:
    return tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", **SHAPE_PROP)


@pytest.mark.slow
def test_stages_train_masks_and_tune_the_last_layers_only(opts, monkeypatch) -> None:
    losses, found = {}, {}

    def train_here(command: list[str]) -> int:
        """dyn-d2 train without its process, evaluation of two masks included."""
        cfg = build_cfg("", command[command.index("OUTPUT_DIR") :])
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.cfg.DATASETS.TEST, tests = (), cfg.DATASETS.TEST
        trainer.train()
        losses[cfg.FEW_SHOT.STAGE] = trainer.storage.latest()
        trainer.cfg.DATASETS.TEST = tests
        found[cfg.FEW_SHOT.STAGE] = DynTrainer.test(trainer.cfg, trainer.model)
        return 0

    monkeypatch.setattr(stages, "run_process", train_here)
    last = train_stages(plan, "", opts)
    for stage in ("base", "finetune"):
        terms = [losses[stage][name][0] for name in ("loss_saliency", "loss_shape", "loss_mask")]
        assert all(0 < value < 100 for value in terms)
        assert {"AP", "bAP"} <= found[stage]["segm"].keys()
    base, start, tuned = (
        torch.load(path, weights_only=True)
        for path in (last.parents[0].weights, last.folder / "initial.pth", last.weights)
    )
    changed = {name for name, value in tuned["model"].items() if not torch.equal(value, start["model"][name])}
    assert changed and all(name.startswith(LAST_LAYERS) for name in changed)
    assert any(name.startswith(SALIENCY) for name in changed)
    # Saliency has a map for each class and one for background: old ones are kept, whatever their new place.
    names, rows = start["dyn_d2"]["classes"], start["model"][SALIENCY + "weight"]
    assert names == list(CLASSES) and len(rows) == 5
    old = base["model"][SALIENCY + "weight"]
    for name in base["dyn_d2"]["classes"]:
        assert torch.equal(rows[names.index(name)], old[base["dyn_d2"]["classes"].index(name)])
    assert torch.equal(rows[-1], old[-1]) and 0 < rows[3].std() < 0.1


def test_masks_of_base_classes_may_be_all_that_there_are(opts) -> None:
    opts = [*opts, "INPUT.PARTIAL_MASKS.CLASSES", "['red', 'yellow']"]
    for stage, left in (("base", {"red"}), ("finetune", {"red", "yellow"})):
        cfg = build_cfg("", [*opts, "FEW_SHOT.STAGE", stage])
        records = list(DynTrainer.build_train_loader(cfg).dataset.records)
        assert {CLASSES[a["category_id"]] for r in records for a in r["annotations"] if "segmentation" in a} == left


@pytest.mark.parametrize("novel", [False, True])
def test_saliency_rows_follow_names(novel) -> None:
    def source(classes: list[str], first: int) -> Source:
        rows = torch.arange(len(classes) + 1.0) + first
        model = {"roi_heads.box_predictor.cls_score.weight": rows[:, None]}
        return Source("x", model | {SALIENCY + "weight": rows[:, None], SALIENCY + "bias": rows}, classes, {})

    base, extra = source(["cat", "dog"], 10), source(["owl"], 20)
    kept = operate(base, ["owl", "dog", "cat"], ["owl"], novel=extra if novel else None)["model"]
    assert kept[SALIENCY + "bias"].tolist()[1:] == [11, 10, 12]
    assert kept[SALIENCY + "weight"][1:, 0].tolist() == [11, 10, 12]
    assert (kept[SALIENCY + "bias"][0] == 20) == novel


def test_one_map_for_all_classes_stays(opts) -> None:
    model = {"roi_heads.box_predictor.cls_score.weight": torch.randn(3, 4), SALIENCY + "weight": torch.randn(1, 4)}
    kept = operate(Source("x", model, ["cat", "dog"], {}), ["cat", "dog", "owl"], ["owl"])["model"]
    assert torch.equal(kept[SALIENCY + "weight"], model[SALIENCY + "weight"])


@pytest.mark.parametrize(
    "keys",
    [{}, {"PROPAGATION": False}, {"SHARE_FEATURES": True}, {"INTEGRATION": "activation"}, {"MIL": False}],
    ids=str,
)
def test_frozen_parts_exist_in_every_ablation(opts, keys) -> None:
    opts = [*opts, *(str(part) for key, value in keys.items() for part in (f"MODEL.SHAPE_PROP.{key}", value))]
    cfg = build_cfg("", [*opts, "FEW_SHOT.STAGE", "finetune"])
    assert cfg.MODEL.FREEZE == feature_parts(cfg)
    trainable = {name for name, p in DynTrainer.build_model(cfg).named_parameters() if p.requires_grad}
    assert trainable and all(name.startswith(LAST_LAYERS) for name in trainable)


def test_the_yaml_serves_both_stages() -> None:
    def stage(name: str):
        return build_cfg(YAML, ["FEW_SHOT.BENCHMARK", "digit_scenes", "FEW_SHOT.STAGE", name])

    base, tuned = stage("base"), stage("finetune")
    assert base.MODEL.FREEZE == [] and base.MODEL.ROI_BOX_HEAD.CLASSIFIER == "linear"
    assert tuned.MODEL.FREEZE and tuned.MODEL.ROI_BOX_HEAD.CLASSIFIER == "cosine"
    assert tuned.SOLVER.MAX_ITER < base.SOLVER.MAX_ITER
    assert [cfg.MODEL.ROI_HEADS.NUM_CLASSES for cfg in (base, tuned)] == [7, 10]
