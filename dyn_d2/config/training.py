"""Keys of training and evaluation of any model."""

from detectron2.config import CfgNode as CN


def stage_solver() -> CN:
    # What one stage has of its own; 0, [], -1 and "" mean as in SOLVER.
    return CN({"BASE_LR": 0.0, "MAX_ITER": 0, "STEPS": [], "WARMUP_ITERS": -1, "LR_SCHEDULER_NAME": ""})


def add_run_keys(cfg: CN) -> None:
    # Keep feature maps with the channels last in memory: often faster, on CPUs and with tensor cores.
    cfg.MODEL.CHANNELS_LAST = False
    # The batch for which rate and schedule were chosen; 0 where nobody knows (no scaling then).
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Scale rate, steps, warm-up and iterations when IMS_PER_BATCH differs from REFERENCE_BATCH.
    cfg.SOLVER.AUTO_SCALE = True
    # Let DDP look for parameters without a gradient; models that skip blocks ask for it themselves.
    cfg.SOLVER.FIND_UNUSED_PARAMETERS = False
    # Check data, checkpoint and head against each other, and try the evaluation on two images, before the first step.
    cfg.SOLVER.PREFLIGHT = True
    # Let --eval-only score a model although the checkpoint does not hold all of its parameters.
    cfg.TEST.ALLOW_PARTIAL_WEIGHTS = False


def add_stage_keys(cfg: CN) -> None:
    # SOLVER keys of every training stage of a policy after its first (MODEL.POLICY.STAGE), so that one yaml serves all.
    cfg.SOLVER.SECOND_STAGE = stage_solver()
    # The rate of the policy's parameters, as a factor on that of the others.
    cfg.SOLVER.GATE_LR_FACTOR = 1.0
    # The weight decay of the policy's parameters; negative: as the others.
    cfg.SOLVER.GATE_WEIGHT_DECAY = -1.0
