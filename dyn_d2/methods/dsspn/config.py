"""Keys of DSSPN."""

from dyn_d2.config.rules import CHANNELS, Rules, choice, each, text, whole

from detectron2.config import CfgNode as CN

RANGES: Rules = {
    "MODEL.DSSPN.TREE": text(filled=True),
    "MODEL.DSSPN.WIDTH": whole(1, CHANNELS),
    "MODEL.DSSPN.BOTTLENECK": whole(1, CHANNELS),
    "MODEL.DSSPN.TRANSITION_CHANNELS": whole(1, CHANNELS),
    "MODEL.DSSPN.RATES": each(whole(1, 1000)),
    "MODEL.DSSPN.BLOCK": choice("concat", "sum", "parent"),
    "MODEL.DSSPN.LOSS": choice("bce", "softmax"),
    "MODEL.DSSPN.OUTSIDE": choice("ignore", "negative"),
    "MODEL.DSSPN.LOSS_AVERAGE": choice("position", "neuron"),
}


def add_keys(cfg: CN) -> None:
    # Read by the semantic head "DSSPNHead".
    cfg.MODEL.DSSPN = CN()
    # The concept tree: a name (dyn-d2 show-tree lists them) or a yaml file.
    cfg.MODEL.DSSPN.TREE = "universal"
    # k, width of a neuron.
    cfg.MODEL.DSSPN.WIDTH = 48
    # Channels of a neuron's 1x1 convolution. This and k_0 are lost in our copy of the paper; with 256 and 64 the head
    # of the universal tree has the 11.7 million parameters that Table 6 leaves for it.
    cfg.MODEL.DSSPN.BOTTLENECK = 256
    # k_0, width of the transition.
    cfg.MODEL.DSSPN.TRANSITION_CHANNELS = 64
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
