"""Keys of networks of many paths."""

from dyn_d2.config.rules import CHANNELS, PIXELS, Rules, choice, each, number, whole

from detectron2.config import CfgNode as CN

RANGES: Rules = {
    "MODEL.MULTIPATH.TOPOLOGY": choice("chain", "tree", "static"),
    "MODEL.MULTIPATH.SPLITS": whole(0, 16),
    "MODEL.MULTIPATH.DEPTH": whole(0, 1000),
    "MODEL.MULTIPATH.SIDE": whole(1, PIXELS),
    "MODEL.MULTIPATH.SCALES": each(whole(1, 16)),
    "MODEL.MULTIPATH.CHANNELS": each(whole(1, CHANNELS)),
    "MODEL.MULTIPATH.WEIGHT_PENALTY": number(0),
    "MODEL.POLICY.PATHS.WIDTHS": each(whole(1, CHANNELS), 0),
    "MODEL.POLICY.PATHS.TEMPERATURE": number(0),
    "MODEL.POLICY.PATHS.HALVING": whole(1),
    "MODEL.POLICY.PATHS.COMPUTE_WEIGHT": number(0),
    "MODEL.POLICY.PATHS.COMPUTE_WEIGHTS": each(number(0), 0),
    "MODEL.POLICY.PATHS.COMPUTE_SCALE": number(0, above=True),
    "MODEL.POLICY.PATHS.DECISION_WEIGHT": number(0),
    "MODEL.POLICY.PATHS.REGRESSION_WEIGHT": number(0),
}


def add_keys(cfg: CN) -> None:
    # "Deciding How to Decide": read by build_multipath_backbone and the meta-architecture "MultiPathClassifier".
    cfg.MODEL.MULTIPATH = CN()
    # "chain" (after each layer an exit and the next one), "tree" (the first levels have an exit and two copies of what
    # follows), or "static" (a chain whose only exit is at its end: the baseline, with MODEL.POLICY.NAME all_open).
    cfg.MODEL.MULTIPATH.TOPOLOGY = "chain"
    # Levels of a tree that split in two.
    cfg.MODEL.MULTIPATH.SPLITS = 3
    # Levels of layers; 0 for as many as there are CHANNELS.
    cfg.MODEL.MULTIPATH.DEPTH = 0
    # Side of the finest scale, in pixels; each further one is half as large.
    cfg.MODEL.MULTIPATH.SIDE = 32
    # Of the layers of each level: how many scales, and channels of each scale.
    cfg.MODEL.MULTIPATH.SCALES = [4, 4, 3, 3, 2, 2, 1, 1]
    cfg.MODEL.MULTIPATH.CHANNELS = [16, 16, 32, 32, 64, 64, 128, 128]
    # k_l2, weight of the squared weights, which are counted by the share of images that use them. Takes the place of
    # SOLVER.WEIGHT_DECAY.
    cfg.MODEL.MULTIPATH.WEIGHT_PENALTY = 0.0001
    # Multiply the gradients of each part by 1 / sqrt(mean p^2): the throughput-adjusted learning rate (TALR).
    cfg.MODEL.MULTIPATH.ADJUST_RATES = True
    cfg.MODEL.POLICY.PATHS = CN()
    # Widths of the hidden layers of a router.
    cfg.MODEL.POLICY.PATHS.WIDTHS = [16, 16]
    # tau at the start; 0 for 1 (actor) or 0.1 (critics).
    cfg.MODEL.POLICY.PATHS.TEMPERATURE = 0.0
    # Iterations in which tau is halved.
    cfg.MODEL.POLICY.PATHS.HALVING = 20000
    # k_cpt, what a multiply-add costs: 0 to 6.4e-8 in the authors' code.
    cfg.MODEL.POLICY.PATHS.COMPUTE_WEIGHT = 1e-8
    # Several k_cpt: each image of a training step draws one, and the routers see it, so that one network serves all of
    # them. Evaluation takes COMPUTE_WEIGHT for all images. [] for COMPUTE_WEIGHT in training too.
    cfg.MODEL.POLICY.PATHS.COMPUTE_WEIGHTS = []
    # alpha, what k_cpt is multiplied by as an input of the routers.
    cfg.MODEL.POLICY.PATHS.COMPUTE_SCALE = 1e7
    # k_dec of the actor: keeps scores small, decisions soft.
    cfg.MODEL.POLICY.PATHS.DECISION_WEIGHT = 0.01
    # k_cre of the critics: weight of their regression.
    cfg.MODEL.POLICY.PATHS.REGRESSION_WEIGHT = 0.001
    # Critics regress wrong answers (0 or 1) in place of the cross entropy.
    cfg.MODEL.POLICY.PATHS.CLASS_ERROR = False
