"""Keys of semantic segmentation."""

from detectron2.config import CfgNode as CN


def add_layer_cascade_keys(cfg: CN) -> None:
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
    # IRNet, for build_cascade_inception_resnet_backbone.
    cfg.MODEL.INCEPTION_RESNET = CN()
    # How many A, B and C blocks: 5, 10, 5 in the paper; the published weights are of 10, 20, 10.
    cfg.MODEL.INCEPTION_RESNET.BLOCKS = [5, 10, 5]
    # "BN", "FrozenBN" or "".
    cfg.MODEL.INCEPTION_RESNET.NORM = "FrozenBN"


def add_segmentation_keys(cfg: CN) -> None:
    # Dilation of the 3x3 convolutions of res4, 1 or 2; 2 keeps the stride at 8 and wants RES5_DILATION 4 (DeepLab).
    cfg.MODEL.RESNETS.RES4_DILATION = 1
    # Training: resize by a random factor of this range, before the crop (INPUT.CROP); [] does not. In place of
    # INPUT.MIN_SIZE_TRAIN.
    cfg.INPUT.RANDOM_SCALE = []
    # Training: a batch holds images of one set of DATASETS.TRAIN, larger sets more often (DSSPN, sec. 3.4).
    cfg.DATALOADER.ONE_DATASET_PER_BATCH = False
    # For SOLVER.LR_SCHEDULER_NAME "WarmupPolyLR": rate * (1 - iteration / MAX_ITER) ** POLY_LR_POWER, ...
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # ... but not below this share of the rate.
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # The rate of the backbone, gates not counted, as a factor on that of the rest.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0


def add_dsspn_keys(cfg: CN) -> None:
    # Read by the semantic head "DSSPNHead".
    cfg.MODEL.DSSPN = CN()
    # The concept tree: a name (tools/show_hierarchy.py lists them) or a yaml file.
    cfg.MODEL.DSSPN.TREE = "universal"
    # k, width of a neuron.
    cfg.MODEL.DSSPN.WIDTH = 48
    # Channels of a neuron's 1x1 convolution (its number is lost in our copy of the paper).
    cfg.MODEL.DSSPN.BOTTLENECK = 256
    # k_0, width of the transition (lost too; with 256 it alone would be larger than the whole head of Table 6).
    cfg.MODEL.DSSPN.TRANSITION_CHANNELS = 128
    # Dilations of the transition.
    cfg.MODEL.DSSPN.RATES = [6, 12, 18]
    # What a neuron inherits: "concat" (dense block), "sum" (of its ancestors) or "parent" (no dense block).
    cfg.MODEL.DSSPN.BLOCK = "concat"
    # Run the neurons that an image needs only; False: all of them, everywhere ("fixed structure" of Table 5).
    cfg.MODEL.DSSPN.DYNAMIC = True
    # "bce" (each child by itself) or "softmax" (siblings compete).
    cfg.MODEL.DSSPN.LOSS = "bce"
    # Leave the children that a data set does not define out of its losses (sec. 3.4).
    cfg.MODEL.DSSPN.CONCEPT_MASKING = True
    # Pixels outside of a neuron's concept: "ignore", or "negative" for all of its children.
    cfg.MODEL.DSSPN.OUTSIDE = "ignore"
    # Divide the sum of the losses by the labelled positions of the batch ("position"), or the loss of each neuron by
    # the positions that it learns from ("neuron": small regions count as much as large ones).
    cfg.MODEL.DSSPN.LOSS_AVERAGE = "position"
