"""Keys of training and evaluation of any model."""

from dyn_d2.config.rules import Rule, choice, each, number, whole

from detectron2.config import CfgNode as CN

SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR", "HalvingLR")


def stage_solver() -> CN:
    # What one stage has of its own; 0, [], -1 and "" mean as in SOLVER.
    own = {
        "BASE_LR": 0.0,
        "MAX_ITER": 0,
        "STEPS": [],
        "WARMUP_ITERS": -1,
        "LR_SCHEDULER_NAME": "",
        "WEIGHT_DECAY": -1.0,
    }
    return CN(own)


def stage_ranges(node: str) -> dict[str, Rule]:
    """What the keys of ``stage_solver`` may be where they stand in ``node``."""
    rules = {
        "BASE_LR": number(0),
        "MAX_ITER": whole(0),
        "STEPS": each(whole(1), 0, rising=True),
        "WARMUP_ITERS": whole(-1),
        "LR_SCHEDULER_NAME": choice("", *SCHEDULERS),
        "WEIGHT_DECAY": number(0) | choice(-1.0),
    }
    return {f"{node}.{key}": rule for key, rule in rules.items()}


def add_run_keys(cfg: CN) -> None:
    # Keep feature maps with the channels last in memory: often faster, on CPUs and with tensor cores.
    cfg.MODEL.CHANNELS_LAST = False
    # The batch for which rate and schedule were chosen; 0 where nobody knows (no scaling then).
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Scale rate, steps, warm-up and iterations when IMS_PER_BATCH differs from REFERENCE_BATCH.
    cfg.SOLVER.AUTO_SCALE = True
    # Of DATALOADER.SAMPLER_TRAIN "RandomSubsetTrainingSampler": which share of the images is trained on, as SEED
    # chooses. Detectron2 reads the key and has no default for it.
    if "RANDOM_SUBSET_RATIO" not in cfg.DATALOADER:
        cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0
    # Let DDP look for parameters without a gradient; models that skip blocks ask for it themselves.
    cfg.SOLVER.FIND_UNUSED_PARAMETERS = False
    # Check data, checkpoint and head against each other, and try the evaluation on two images, before the first step.
    cfg.SOLVER.PREFLIGHT = True
    # Go on with --resume, or take a stage for done, although data, weights or the whole schedule are others than those
    # it began with.
    cfg.SOLVER.ALLOW_CHANGED_INPUTS = False
    # Seconds that one of several processes waits for the others before it ends; they wait for an evaluation, too.
    cfg.SOLVER.PROCESS_TIMEOUT = 1800
    # Let --eval-only score a model although the checkpoint does not hold all of its parameters.
    cfg.TEST.ALLOW_PARTIAL_WEIGHTS = False


def add_solver_keys(cfg: CN) -> None:
    # "SGD" (Detectron2's), or any other of torch.optim by its name, such as "AdamW", which do not read MOMENTUM.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # What that optimizer takes beside rate and decay, e.g. ["betas=(0.9, 0.95)"].
    cfg.SOLVER.OPTIMIZER_OPTIONS = []
    # A running average of the weights (torch.optim.swa_utils) with this decay, e.g. 0.999: it is what is evaluated, and
    # left as model_ema.pth beside model_final.pth. 0: none.
    cfg.SOLVER.EMA = 0.0
    # Keep the best model by a metric of DATASETS.VAL, such as "bbox/AP", "sem_seg/mIoU" or
    # "classification/top1_accuracy", as model_best.pth, and end with it; "" does not. It is looked at every
    # TEST.EVAL_PERIOD iterations.
    cfg.SOLVER.BEST = CN({"METRIC": "", "MODE": "max"})
    # Stop after so many of these evaluations without a better one; 0 never does.
    cfg.SOLVER.BEST.PATIENCE = 0
    # Where scalars go beside console, metrics.json and TensorBoard: "wandb", "mlflow", and in which project there.
    cfg.SOLVER.WRITERS = []
    cfg.SOLVER.PROJECT = "dyn_d2"
    # Of the parameters of a policy, which decide what is computed: "" for SOLVER.OPTIMIZER, or "Adam" (its rate is
    # SOLVER.BASE_LR times SOLVER.GATE_LR_FACTOR).
    cfg.SOLVER.POLICY_OPTIMIZER = ""
    # For SOLVER.LR_SCHEDULER_NAME "WarmupPolyLR": rate * (1 - iteration / MAX_ITER) ** POLY_LR_POWER, ...
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # ... but not below this share of the rate.
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # The rate of the backbone, gates not counted, as a factor on that of the rest.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # For SOLVER.LR_SCHEDULER_NAME "HalvingLR": iterations in which the rate is halved, continuously.
    cfg.SOLVER.HALVING_ITERS = 10000
