"""Keys of networks that decide what they compute, and of the policies that decide."""

from dyn_d2.config.applied import OPTIMIZER_KEYS
from dyn_d2.config.keys.training import stage_ranges, stage_solver
from dyn_d2.config.rules import CHANNELS, Rules, choice, each, names, number, positive, positive_share, whole

from detectron2.config import CfgNode as CN

_BIAS = number(-1000, 1000)
RANGES: Rules = {
    "MODEL.GATED.UNIT": choice("block", "group", "channel"),
    "MODEL.GATED.BOTTLENECK": choice("A", "B"),
    "MODEL.GATED.WIDEN": number(0, 16, above=True),
    "MODEL.GATED.WIDEN_LAYERS": choice("W1-High", "W1-Mid", "W4-Low", "W13-All"),
    "MODEL.GATED.WIDTHS": each(whole(1, CHANNELS), 0),
    "MODEL.GATED.GROUPS": whole(1, 1024),
    "MODEL.GATED.WIDTH_MULT": number(0, 16, above=True),
    "MODEL.POLICY.THRESHOLD": number(0, 1, above=True, below=True),
    "MODEL.POLICY.TEMPERATURE": positive(),
    "MODEL.POLICY.TARGET_RATE": positive_share(),
    "MODEL.POLICY.PLAN": names(),
    "MODEL.POLICY.BUDGET.SHARE": number(0, 1),
    "MODEL.POLICY.BUDGET.BY": choice("penalty", "price"),
    "MODEL.POLICY.BUDGET.WEIGHT": number(0),
    "MODEL.POLICY.BUDGET.RATE": number(0),
    "SLIM.LEARN_SHARE": number(0, 1, above=True, below=True),
    "SLIM.IMAGES": whole(1),
    **stage_ranges("SLIM.PLAIN"),
    "MODEL.POLICY.SKIPNET.RELAXATION": choice("hard", "noisy", "soft"),
    "MODEL.POLICY.SKIPNET.ALPHA": number(0),
    "MODEL.POLICY.SKIPNET.BETA": number(0),
    "MODEL.POLICY.SKIPNET.WEIGHT": number(0),
    "MODEL.POLICY.SKIPNET.BASELINE": choice("none", "self_critical"),
    "MODEL.POLICY.SKIPNET.HRL_TEMPERATURE": positive(),
    "MODEL.POLICY.SKIPNET.INIT_BIAS": _BIAS,
    "MODEL.POLICY.DEEPMOE.LAYERS": whole(1, 1000),
    "MODEL.POLICY.DEEPMOE.WIDTH": whole(1, CHANNELS),
    "MODEL.POLICY.DEEPMOE.LAMBDA": number(0),
    "MODEL.POLICY.DEEPMOE.MU": number(0),
    "MODEL.POLICY.DEEPMOE.THRESHOLD": number(0),
    "MODEL.POLICY.DEEPMOE.TARGET_RATE": number(0, 1),
    "MODEL.POLICY.CDB.INIT_BIAS": _BIAS,
    "MODEL.POLICY.CDB.RATES": choice("evaluation", "noisy"),
    "MODEL.POLICY.CDB.WIDTH": whole(1, CHANNELS),
    "MODEL.POLICY.CDB.CATEGORIES": each(whole(0, 100_000), 0),
    "MODEL.POLICY.CDB.CATEGORY_WEIGHTS": each(number(0)),
    "MODEL.POLICY.CDB.NOISE": number(0),
    "MODEL.POLICY.CDB.RESOURCE_WEIGHT": number(0),
    "MODEL.POLICY.AIG.TARGET_RATES": each(positive_share(), 0),
    "MODEL.POLICY.AIG.WIDTH": whole(1, CHANNELS),
    "MODEL.POLICY.AIG.LOSS_WEIGHT": number(0),
    "MODEL.POLICY.RANDOM.SCHEDULE": choice("constant", "linear"),
    "MODEL.POLICY.FIXED.CLOSED": names(),
    "MODEL.POLICY.FIXED.ORDER": choice("last", "even"),
    "MODEL.POLICY.BLOCKDROP.ALPHA": number(0.5, 1, above=True),
    "MODEL.POLICY.BLOCKDROP.PENALTY": number(0),
    "MODEL.POLICY.BLOCKDROP.WEIGHT": number(0),
    "MODEL.POLICY.BLOCKDROP.INIT_BIAS": _BIAS,
    "MODEL.POLICY.BLOCKDROP.CURRICULUM.ITERS": whole(0),
    "MODEL.POLICY.BLOCKDROP.CURRICULUM.PENALTY": number(0),
    "MODEL.POLICY.BLOCKDROP.CURRICULUM.ENTROPY": number(0),
    "SOLVER.GATE_LR_FACTOR": number(0),
    "SOLVER.GATE_WEIGHT_DECAY": number(),
    **stage_ranges("SOLVER.SECOND_STAGE"),
    **stage_ranges("SOLVER.FIXED_STAGE"),
}


def add_keys(cfg: CN) -> None:
    _add_gated_keys(cfg)
    _add_policy_keys(cfg)
    _add_skipnet_keys(cfg)
    _add_deepmoe_keys(cfg)
    _add_cdb_keys(cfg)
    _add_baseline_policy_keys(cfg)
    _add_blockdrop_keys(cfg)
    _add_stage_keys(cfg)
    _add_slim_keys(cfg)


def _add_gated_keys(cfg: CN) -> None:
    cfg.MODEL.GATED = CN()
    # What can be switched off: "block" (SkipNet), "group" (CDB) or "channel" (DeepMoE).
    cfg.MODEL.GATED.UNIT = "block"
    # Whether the first block of the first stage of a ResNet is a unit too (BlockDrop); SkipNet always runs it.
    cfg.MODEL.GATED.FIRST_BLOCK = False
    # Bottleneck block of DeepMoE: "A" gates the outputs of its 1x1 and 3x3 convolution, "B" that of the 3x3 one. With
    # "B" networks of basic blocks (ResNet-18, 34, 6n+2) have bottlenecks B in their places, as wide as their trunk.
    cfg.MODEL.GATED.BOTTLENECK = "A"
    # How many times as many gated channels as the plain network DeepMoE has: 1 is "narrow", 2 "wide".
    cfg.MODEL.GATED.WIDEN = 1.0
    # Which convolutions of VGG16 that widens: "W1-High", "W1-Mid", "W4-Low" or "W13-All", the rows of Table 3.4.
    cfg.MODEL.GATED.WIDEN_LAYERS = "W13-All"
    # Channels of the 13 convolutions of VGG16, in place of the two keys above; [] for them.
    cfg.MODEL.GATED.WIDTHS = []
    # N of CDB: groups of a block.
    cfg.MODEL.GATED.GROUPS = 2
    # Backbone below build_gated_fpn_backbone and build_gated_retinanet_fpn_backbone.
    cfg.MODEL.GATED.BOTTOM_UP = "build_gated_resnet_backbone"
    # Width of MobileNetV2, 1.0 or 1.4.
    cfg.MODEL.GATED.WIDTH_MULT = 1.0


def _add_policy_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY = CN()
    # What decides: "all_open" (the plain network), "skipnet_ffgate1", "skipnet_ffgate2", "skipnet_rnn", "deepmoe",
    # "cdb", "convnet_aig", "blockdrop", "random_skip", "fixed", or one that a method brings (dyn_d2/methods).
    cfg.MODEL.POLICY.NAME = "all_open"
    # Stage of its training: "sp" or "hrl" of SkipNet, "joint" or "finetune" of DeepMoE, "pretrain" or "joint" of
    # BlockDrop, "learn" of ConvNet-AIG and CDB; "" for the first. Last "fixed" (not DeepMoE, whose "finetune" is that):
    # the policy stays as it is and decides as in evaluation, and the network trains on the routes that this gives.
    cfg.MODEL.POLICY.STAGE = ""
    # Which of them dyn-d2 stages trains, in their order; [] for those of the paper, without "fixed". With "hrl" first,
    # that stage may start from new gates.
    cfg.MODEL.POLICY.PLAN = []
    # SkipNet, ConvNet-AIG, CDB, BlockDrop: what the probability of a unit has to exceed to run in evaluation; SkipNet's
    # stage "sp" trains with it too. Where images stop early: what the probability of going on has to exceed.
    cfg.MODEL.POLICY.THRESHOLD = 0.5
    # Of the sigmoid of SkipNet's gates and of the Gumbel soft-max of ConvNet-AIG.
    cfg.MODEL.POLICY.TEMPERATURE = 1.0
    # Share to run, in (0, 1]: r and e of CDB, t of ConvNet-AIG, of units for random_skip and fixed.
    cfg.MODEL.POLICY.TARGET_RATE = 0.7
    # Share of the multiply-adds, gates included, that policies with probabilities are drawn to while they learn: 0 for
    # no budget. BY "penalty": WEIGHT * (share - SHARE)^2; "price": a price of computation that changes by RATE * (share
    # - SHARE) in each step.
    cfg.MODEL.POLICY.BUDGET = CN({"SHARE": 0.0, "BY": "penalty", "WEIGHT": 10.0, "RATE": 0.05})


def _add_skipnet_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.SKIPNET = CN()
    # Stage "sp": "hard" (rounded, gradient of the probability, Eq. 2.7), "noisy" (the same after logistic noise, so
    # that gates far from the threshold are tried too) or "soft" (the probability, Table 2.3).
    cfg.MODEL.POLICY.SKIPNET.RELAXATION = "hard"
    # alpha of Eq. 2.5: what skipping everything is worth against the loss, in stage "hrl".
    cfg.MODEL.POLICY.SKIPNET.ALPHA = 1.0
    # beta, weight of the loss in the return; 1: as Eq. 2.5 has it, 0: alpha / N (the relaxed reward).
    cfg.MODEL.POLICY.SKIPNET.BETA = 1.0
    # Weight of the REINFORCE term, 1 in Eq. 2.6; with 0.01 the policy does not move in any published schedule.
    cfg.MODEL.POLICY.SKIPNET.WEIGHT = 1.0
    # Whether the loss of the task trains the network in stage "hrl" (hybrid); without, REINFORCE alone does, also what
    # the gates read ("RL" of Fig. 2.14).
    cfg.MODEL.POLICY.SKIPNET.SUPERVISED = True
    # Subtracted from the return: "none" or "self_critical" (the return of the greedy path, at a second forward pass).
    cfg.MODEL.POLICY.SKIPNET.BASELINE = "none"
    # The last layer of the gates is divided by it once, when stage "hrl" starts; 0.05 in the authors' ImageNet code.
    cfg.MODEL.POLICY.SKIPNET.HRL_TEMPERATURE = 1.0
    # Logit of new gates; positive: blocks run at the start, as pre-trained weights expect.
    cfg.MODEL.POLICY.SKIPNET.INIT_BIAS = 0.0


def _add_deepmoe_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.DEEPMOE = CN()
    # Layers of the embedding network: 4 for CIFAR, 5 for ImageNet.
    cfg.MODEL.POLICY.DEEPMOE.LAYERS = 4
    # Width of the embedding.
    cfg.MODEL.POLICY.DEEPMOE.WIDTH = 128
    # lambda of Eq. 3.7, weight of the sum of all gates.
    cfg.MODEL.POLICY.DEEPMOE.LAMBDA = 0.001
    # mu of Eq. 3.7, weight of the classification loss of the embedding; 0 for tasks without image labels.
    cfg.MODEL.POLICY.DEEPMOE.MU = 0.0
    # In evaluation, gates up to this value are closed as well.
    cfg.MODEL.POLICY.DEEPMOE.THRESHOLD = 0.0
    # Whether the embedding goes through a soft-max over its dimensions, the "latent mixture weights" of Sec. 3.1.
    cfg.MODEL.POLICY.DEEPMOE.SOFTMAX = False
    # Share of the channels that is to run: LAMBDA is asked in full where a tenth more runs, and nothing where this many
    # do; 0 for LAMBDA all the time.
    cfg.MODEL.POLICY.DEEPMOE.TARGET_RATE = 0.0


def _add_cdb_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.CDB = CN()
    # d, width of the controllers.
    cfg.MODEL.POLICY.CDB.WIDTH = 32
    # Controllers hear of the one before them (Eq. 6; "CA" of Table 5).
    cfg.MODEL.POLICY.CDB.CONTEXT = True
    # Controllers learn to tell categories apart (Eq. 7; "CS" of Table 5); needs image labels.
    cfg.MODEL.POLICY.CDB.CATEGORY = True
    # Category of each class, from 0; [] for superclass_of of the training set's metadata, else each class its own.
    cfg.MODEL.POLICY.CDB.CATEGORIES = []
    # alpha_l of Eq. 8 for each stage; stages after the last use the last.
    cfg.MODEL.POLICY.CDB.CATEGORY_WEIGHTS = [0.0001, 0.001, 0.01, 0.1]
    # Standard deviation of the noise of Eq. 9.
    cfg.MODEL.POLICY.CDB.NOISE = 1.0
    # What running has ahead of not running in the scores of new controllers; positive for a trained network.
    cfg.MODEL.POLICY.CDB.INIT_BIAS = 0.0
    # alpha_2 of Eq. 15, weight of the execution and FLOPs losses.
    cfg.MODEL.POLICY.CDB.RESOURCE_WEIGHT = 1.0
    # Whose rates Eq. 10 to 14 draw to TARGET_RATE: those of the decisions that evaluation would take, or those with the
    # noise of Eq. 9 ("noisy"), which are nearer to a half.
    cfg.MODEL.POLICY.CDB.RATES = "evaluation"


def _add_baseline_policy_keys(cfg: CN) -> None:
    # ConvNet-AIG.
    cfg.MODEL.POLICY.AIG = CN()
    # t of each block; [] for TARGET_RATE.
    cfg.MODEL.POLICY.AIG.TARGET_RATES = []
    # Width of the gates' hidden layer.
    cfg.MODEL.POLICY.AIG.WIDTH = 16
    # Weight of the rate loss.
    cfg.MODEL.POLICY.AIG.LOSS_WEIGHT = 1.0

    # How the rate changes with depth: "constant" or "linear"; TARGET_RATE is the mean of both.
    cfg.MODEL.POLICY.RANDOM = CN({"SCHEDULE": "constant"})

    cfg.MODEL.POLICY.FIXED = CN()
    # Names of units to close, "*" and "?" allowed; [] closes by TARGET_RATE.
    cfg.MODEL.POLICY.FIXED.CLOSED = []
    # Which are closed by TARGET_RATE: "last" or "even" (evenly spread).
    cfg.MODEL.POLICY.FIXED.ORDER = "last"


def _add_blockdrop_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.BLOCKDROP = CN()
    # Bounds the probabilities that are sampled from.
    cfg.MODEL.POLICY.BLOCKDROP.ALPHA = 0.8
    # gamma, the negative reward of a wrong answer; 5 or 10 in the authors' code.
    cfg.MODEL.POLICY.BLOCKDROP.PENALTY = 5.0
    # Weight of the policy gradient.
    cfg.MODEL.POLICY.BLOCKDROP.WEIGHT = 1.0
    # Logit of new probabilities.
    cfg.MODEL.POLICY.BLOCKDROP.INIT_BIAS = 0.0
    # The first ITERS steps of stage "joint" decide about more and more blocks, from the last one on, with a gamma and a
    # weight of the entropy of their own.
    cfg.MODEL.POLICY.BLOCKDROP.CURRICULUM = CN({"ITERS": 0, "PENALTY": 1.0, "ENTROPY": 0.1})


def _add_slim_keys(cfg: CN) -> None:
    # dyn-d2 slim: which share of SOLVER.MAX_ITER gates learn; for the rest they are fixed. The rate is constant in the
    # first part and falls to 0 along a cosine in the second; STEPS and LR_SCHEDULER_NAME are not used.
    cfg.SLIM = CN({"LEARN_SHARE": 0.33})
    # On how many training images the threshold is set to the budget; their labels are not looked at.
    cfg.SLIM.IMAGES = 512
    # SOLVER keys of the training without gates that comes first where MODEL.WEIGHTS is empty.
    cfg.SLIM.PLAIN = stage_solver()


OPTIMIZER_KEYS.update({"SOLVER.GATE_LR_FACTOR": 1.0, "SOLVER.GATE_WEIGHT_DECAY": -1.0})


def _add_stage_keys(cfg: CN) -> None:
    # SOLVER keys of every training stage of a policy after its first (MODEL.POLICY.STAGE), so that one yaml serves all.
    # With WEIGHT_DECAY go WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS, where they were the same (and not 0).
    cfg.SOLVER.SECOND_STAGE = stage_solver()
    # The same of stage "fixed", for which SECOND_STAGE does not hold.
    cfg.SOLVER.FIXED_STAGE = stage_solver()
    # The rate of the policy's parameters, as a factor on that of the others.
    cfg.SOLVER.GATE_LR_FACTOR = 1.0
    # The weight decay of the policy's parameters; negative: as the others.
    cfg.SOLVER.GATE_WEIGHT_DECAY = -1.0
