"""Keys that a plain DefaultTrainer does not read are noticed in its first step; the page shows how to apply them."""

import re
from pathlib import Path

import pytest
import torch
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.config.applied import KeyNotApplied
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.utils.errors import UserError

from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

PAGE = Path(__file__).parents[2] / "docs" / "your_own_trainer.md"
FREEZE = {"MODEL__FREEZE": ["backbone.bottom_up"]}
GATED = {"MODEL__META_ARCHITECTURE": "DynamicRCNN", "MODEL__BACKBONE__NAME": "build_gated_fpn_backbone",
         "MODEL__POLICY__NAME": "skipnet_rnn", "MODEL__ROI_HEADS__NAME": "StandardROIHeads"}  # fmt: skip
MASKS = {"MODEL__MASK_ON": True, "MODEL__ROI_MASK_HEAD__NAME": "PartialMaskHead", "FEW_SHOT__STAGE": "joint",
         "MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": True, "MODEL__ROI_MASK_HEAD__CONV_DIM": 8,
         "MODEL__ROI_MASK_HEAD__NUM_CONV": 1}  # fmt: skip


class Plain(DefaultTrainer):
    """As Detectron2 has it, on data that its loader knows."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None) -> DatasetEvaluator:
        return DynTrainer.build_evaluator(cfg, dataset_name, output_folder)


def page_trainer() -> type[DefaultTrainer]:
    """The class of the page."""
    source = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    names: dict = {"DefaultTrainer": DefaultTrainer}
    exec(source[source.index("from dyn_d2.engine.trainer") : source.index("trainer = MyTrainer")], names)  # our page
    return names["MyTrainer"]


def cfg_of(folder: Path, **more):
    data = folder / "data" / "instances.json"
    opts = tiny_opts(data if data.is_file() else write_boxes(folder / "data", 4), folder / "out", **more)
    cfg = build_cfg("", [*opts, "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"])
    cfg.DATASETS.TEST = ()
    return cfg


@pytest.mark.parametrize(
    "key, more",
    [
        ("MODEL.FREEZE: .*freeze", FREEZE),
        ("SOLVER.OPTIMIZER: .*DynTrainer.build_optimizer", {"SOLVER__OPTIMIZER": "Adam"}),
        ("SOLVER.BACKBONE_LR_FACTOR", {"SOLVER__BACKBONE_LR_FACTOR": 0.1}),
        ("SOLVER.GATE_LR_FACTOR", {**GATED, "SOLVER__GATE_LR_FACTOR": 0.1}),
        ("INPUT.PARTIAL_MASKS: .*PartialMaskMapper", {**MASKS, "INPUT__PARTIAL_MASKS__CLASSES": ["red", "green"]}),
    ],
    ids=["freeze", "optimizer", "backbone", "gates", "masks"],
)  # fmt: skip
def test_a_key_that_was_not_applied_is_named(key, more, tmp_path) -> None:
    cfg = cfg_of(tmp_path, **more)
    trainer = Plain(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(KeyNotApplied, match=f"(?s)not applied.*{key}.*DynTrainer applies"):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.endswith("weight"))


@pytest.mark.parametrize(
    "more",
    [
        {},
        FREEZE,
        {**GATED, **FREEZE, "SOLVER__GATE_LR_FACTOR": 0.1},
        {**MASKS, "INPUT__PARTIAL_MASKS__CLASSES": ["red"], "SOLVER__BACKBONE_LR_FACTOR": 0.1},
    ],
    ids=["none", "freeze", "gates", "masks"],
)
def test_the_trainer_of_the_page_applies_them(more, tmp_path) -> None:
    cfg = cfg_of(tmp_path, **more)
    trainer = page_trainer()(cfg)
    frozen = {n: p.clone() for n, p in trainer.model.backbone.bottom_up.named_parameters() if not p.requires_grad}
    assert bool(frozen) == ("MODEL__FREEZE" in more)
    trainer.train()
    now = dict(trainer.model.backbone.bottom_up.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())


def test_backbones_in_models_of_detectron2_notice(tmp_path) -> None:
    more = {"MODEL__ROI_HEADS__NAME": "StandardROIHeads", "MODEL__BACKBONE__NAME": "build_gated_fpn_backbone"}
    trainer = Plain(cfg_of(tmp_path, **more, **FREEZE))
    with pytest.raises(KeyNotApplied, match="MODEL.FREEZE"):
        trainer.train()


def test_a_classifier_that_no_head_reads(tmp_path) -> None:
    cosine = {**GATED, "MODEL__ROI_BOX_HEAD__CLASSIFIER": "cosine"}
    with pytest.raises(ValueError, match="CLASSIFIER is 'cosine': StandardROIHeads does not read it; .*DynROIHeads"):
        cfg_of(tmp_path, **cosine)
    cfg = cfg_of(tmp_path, **GATED)
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = "cosine"
    with pytest.raises(KeyNotApplied, match="CLASSIFIER: set MODEL.ROI_HEADS.NAME to DynROIHeads"):
        Plain(cfg).train()


def test_a_loader_of_another_training_does_not_count(tmp_path) -> None:
    masks = {**MASKS, "INPUT__PARTIAL_MASKS__FRACTION": 0.5}
    ours = DynTrainer.build_train_loader(cfg_of(tmp_path, **masks))
    assert next(iter(ours))
    del ours
    with pytest.raises(KeyNotApplied, match="INPUT.PARTIAL_MASKS"):
        Plain(cfg_of(tmp_path, **masks)).train()


def test_keys_at_their_defaults_need_nothing(tmp_path) -> None:
    Plain(cfg_of(tmp_path)).train()


@pytest.mark.parametrize("position", [0, 1])
def test_partly_masked_records_in_the_stock_mapper_name_ours(position, tmp_path) -> None:
    cfg = cfg_of(tmp_path, **MASKS)
    record = {"file_name": next(str(p) for p in (tmp_path / "data" / "images").iterdir()), "image_id": 1}
    square = {"bbox": [0.0, 0, 9, 9], "bbox_mode": 0, "category_id": 0, "segmentation": [[0.0, 0, 9, 0, 9, 9]]}
    record["annotations"] = [square, {**square}]
    assert len(DatasetMapper(cfg, is_train=True)(record)["instances"].gt_masks) == 2
    del record["annotations"][position]["segmentation"]
    with pytest.raises(ValueError, match=r"\.png: 1 of its 2 objects have a mask, .*PartialMaskMapper"):
        DatasetMapper(cfg, is_train=True)(record)


def test_boxes_alone_in_a_mask_head_name_our_mapper(tmp_path) -> None:
    cfg = cfg_of(tmp_path, **MASKS)
    heads = build_model(cfg).roi_heads.train()
    found = Instances((32, 32), gt_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]])), gt_classes=torch.zeros(1).long())
    found.proposal_boxes = found.gt_boxes
    with pytest.raises(UserError, match="no masks.*PartialMaskMapper"):  # as Detectron2's mapper makes of boxes alone
        heads.mask_head(torch.zeros(1, 16, 14, 14), [found])
