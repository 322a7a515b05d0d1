"""Keys of Layer Cascade and of its backbones."""

from dyn_d2.config.rules import Rules, each, number, share, whole

from detectron2.config import CfgNode as CN

RANGES: Rules = {
    "MODEL.LAYER_CASCADE.THRESHOLDS": each(share()),
    "MODEL.LAYER_CASCADE.TRAIN_THRESHOLDS": each(share()),
    "MODEL.LAYER_CASCADE.INITIAL_ITERS": whole(0),
    "MODEL.LAYER_CASCADE.STAGE_WEIGHTS": each(number(0)),
    "MODEL.LAYER_CASCADE.DROPOUT": number(0, 1, below=True),
    "MODEL.LAYER_CASCADE.ASPP": each(whole(1, 1000), 0),
    "MODEL.INCEPTION_RESNET.BLOCKS": each(whole(1, 1000), 3, 3),
}


def add_keys(cfg: CN) -> None:
    # Read by the semantic head "LayerCascadeHead" over build_cascade_..._backbone.
    cfg.MODEL.LAYER_CASCADE = CN()
    # rho, in evaluation: pixels whose confidence exceeds it are final. A value for each stage but the last, or one for
    # all of them; at 1 all pixels pass all stages.
    cfg.MODEL.LAYER_CASCADE.THRESHOLDS = [0.985]
    # The same in training; at 1 it is deep supervision, the paper's initial training.
    cfg.MODEL.LAYER_CASCADE.TRAIN_THRESHOLDS = [0.985]
    # Iterations of initial training, in which all pixels pass all stages, before TRAIN_THRESHOLDS hold.
    cfg.MODEL.LAYER_CASCADE.INITIAL_ITERS = 0
    # Factors of the losses of the stages.
    cfg.MODEL.LAYER_CASCADE.STAGE_WEIGHTS = [1.0, 1.0, 1.0]
    # Dilations of 3x3 convolutions whose sum is the hidden layer of the last classifier (ASPP); [] for one without.
    cfg.MODEL.LAYER_CASCADE.ASPP = []
    # Share of the hidden values of each classifier that are dropped in training ("DSN + Dropout" of the paper).
    cfg.MODEL.LAYER_CASCADE.DROPOUT = 0.0
    # IRNet, for build_cascade_inception_resnet_backbone.
    cfg.MODEL.INCEPTION_RESNET = CN()
    # How many A, B and C blocks: 5, 10, 5 in the paper; the published weights are of 10, 20, 10.
    cfg.MODEL.INCEPTION_RESNET.BLOCKS = [5, 10, 5]
    # "BN", "FrozenBN" or "".
    cfg.MODEL.INCEPTION_RESNET.NORM = "FrozenBN"
