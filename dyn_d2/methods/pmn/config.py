"""Keys of PMN."""

from dyn_d2.config.rules import CHANNELS, Rules, choice, each, number, share, whole

from detectron2.config import CfgNode as CN

RANGES: Rules = {
    "MODEL.POLICY.PMN.ACTIONS": choice("levels", "modules", "stop", "fixed", "random", "distribute"),
    "MODEL.POLICY.PMN.MODULES": whole(0, 1000),
    "MODEL.POLICY.PMN.STAGES": whole(0, 10),
    "MODEL.POLICY.PMN.HOPS": whole(1, 1000),
    "MODEL.POLICY.PMN.OFF_LEVEL_WEIGHT": share(),
    "MODEL.POLICY.PMN.WEIGH": choice("logits", "probabilities"),
    "MODEL.POLICY.PMN.OUTPUT": choice("classes", "concepts"),
    "MODEL.POLICY.PMN.WIDTH": whole(1, CHANNELS),
    "MODEL.POLICY.PMN.ALPHA": number(0.5, 1, above=True),
    "MODEL.POLICY.PMN.STOP_ALPHA": number(0.5, 1, above=True),
    "MODEL.POLICY.PMN.LAMBDA": number(0),
    "MODEL.POLICY.PMN.WEIGHT": number(0),
    "MODEL.POLICY.PMN.TRAIN_ON": choice("sampled", "both"),
    "MODEL.POLICY.PMN.INIT_BIAS": number(-1000, 1000),
    "MODEL.POLICY.PMN.PRETRAIN": choice("last", "all"),
    "MODEL.SEM_SEG_HEAD.ASPP_RATES": each(whole(1, 1000)),
}


def add_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.PMN = CN()
    # The concept tree: name of a shipped one or a yaml file; "" for one level above all classes.
    cfg.MODEL.POLICY.PMN.TREE = ""
    # Data set of the tree whose labels are the classes; "" for the name of the tree.
    cfg.MODEL.POLICY.PMN.LABELS = ""
    # What is decided: "levels" (PMN), "modules" ("Policy-adaptive" of Table 1), "stop" ("Policy"), or nothing: "fixed",
    # "random" or "distribute".
    cfg.MODEL.POLICY.PMN.ACTIONS = "levels"
    # Modules that the last three run; 0 for all.
    cfg.MODEL.POLICY.PMN.MODULES = 0
    # Stages, from the end, whose blocks are modules: 2 in segmentation, 0 (all) in classification.
    cfg.MODEL.POLICY.PMN.STAGES = 0
    # How many steps down the tree the graph search looks (Table 4: 1).
    cfg.MODEL.POLICY.PMN.HOPS = 2
    # Later modules may take levels that were taken before (Table 4: "w/o overlap").
    cfg.MODEL.POLICY.PMN.OVERLAP = True
    # beta of Eq. 6 for classes outside of the levels that a module took; 1.0 is "w/o weighting" of Table 4.
    cfg.MODEL.POLICY.PMN.OFF_LEVEL_WEIGHT = 0.8
    # What beta multiplies: "logits" (the formula) or "probabilities".
    cfg.MODEL.POLICY.PMN.WEIGH = "logits"
    # What F of Eq. 6 predicts: "classes", or "concepts" (those above the classes too, as in the paper; the score of a
    # class is the sum along the way to it).
    cfg.MODEL.POLICY.PMN.OUTPUT = "classes"
    # Width of the LSTM and of its input.
    cfg.MODEL.POLICY.PMN.WIDTH = 512
    # alpha of Eq. 12 for levels, and of Eq. 11 for going on. With 0.8 for the latter, a sampled path is longer than k
    # modules with probability 0.8^k at most.
    cfg.MODEL.POLICY.PMN.ALPHA = 0.8
    cfg.MODEL.POLICY.PMN.STOP_ALPHA = 0.8
    # lambda of Eq. 7: what stopping early is worth against accuracy.
    cfg.MODEL.POLICY.PMN.LAMBDA = 0.5
    # Weight of the policy gradient.
    cfg.MODEL.POLICY.PMN.WEIGHT = 1.0
    # Which predictions the network learns from: the "sampled" ones, or "both" (the greedy ones too).
    cfg.MODEL.POLICY.PMN.TRAIN_ON = "sampled"
    # Logit of going on, at the start.
    cfg.MODEL.POLICY.PMN.INIT_BIAS = 0.0
    # Which modules predict in stage "pretrain": the "last" (the paper; the others start stage "joint" at chance then),
    # or "all", each with a loss of its own.
    cfg.MODEL.POLICY.PMN.PRETRAIN = "last"
    # Rates of the atrous convolutions of PMNHead.
    cfg.MODEL.SEM_SEG_HEAD.ASPP_RATES = [6, 12, 18, 24]
