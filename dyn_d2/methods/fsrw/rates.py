"""Rate and weight decay of each method: one yaml serves FSRW and the detectors that it is compared with. And what
DarkNet counts in images, scaled to the batch.

The authors divide FSRW's rate and multiply its decay by how many (image, class) pairs count in the losses. The plain
YOLOv2 has neither.
"""

from dyn_d2.config.derive import SetKey
from dyn_d2.data.few_shot.stages import FINETUNE, is_fine_tuning
from dyn_d2.method import few_shot_methods

from detectron2.config import CfgNode


def derive(cfg: CfgNode, set_key: SetKey) -> None:
    """FEW_SHOT.METHOD and STAGE -> SOLVER.BASE_LR, WEIGHT_DECAY and WEIGHT_DECAY_NORM, by FEW_SHOT.YOLO or
    MODEL.REWEIGHTING.FINETUNE_DECAY; MODEL.YOLO.PRIOR_ITERS and RAMP as ``config.derive.scale_to_batch`` scales the
    schedule."""
    _scale_to_batch(cfg, set_key)
    few = cfg.FEW_SHOT
    if not few.BENCHMARK or not few.METHOD:
        return
    detector, decay = few_shot_methods()[few.METHOD].detector, -1.0
    if detector == "YOLOv2":
        keys, decay = few.YOLO, few.YOLO.WEIGHT_DECAY
        rate = keys.FINETUNE_LR or keys.BASE_LR if is_fine_tuning(cfg) else keys.BASE_LR
        if rate:
            set_key("SOLVER.BASE_LR", rate, "FEW_SHOT.YOLO")
    elif detector == "FSRW" and few.STAGE == FINETUNE:
        decay = cfg.MODEL.REWEIGHTING.FINETUNE_DECAY
    if decay >= 0:
        for key in ("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM"):
            set_key(key, decay, f"method {few.METHOD}, stage {few.STAGE}")


def _scale_to_batch(cfg: CfgNode, set_key: SetKey) -> None:
    solver, yolo = cfg.SOLVER, cfg.MODEL.YOLO
    reference, batch = solver.REFERENCE_BATCH, solver.IMS_PER_BATCH
    if not solver.AUTO_SCALE or reference in (0, batch):
        return
    why = f"batch {reference} -> {batch}"
    set_key("MODEL.YOLO.PRIOR_ITERS", round(yolo.PRIOR_ITERS * reference / batch), why)
    set_key("MODEL.YOLO.RAMP", [round(iteration * reference / batch) for iteration in yolo.RAMP], why)
