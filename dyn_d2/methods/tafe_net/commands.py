"""Commands of TAFE-Net, and of classes that are given by a description."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "benchmark descriptions": Command(
        "dyn_d2.methods.tafe_net.cli.benchmark:main", "methods, splits and seeds without examples", Group.EVALUATE
    ),
    "prepare crops": Command(
        "dyn_d2.methods.tafe_net.cli.prepare_crops:main", "features of the boxes of a COCO json", Group.DATA
    ),
    "tafe embeddings": Command(
        "dyn_d2.methods.tafe_net.cli.draw:embeddings_main", "images under several descriptions", Group.LOOK
    ),
    "tafe retrievals": Command(
        "dyn_d2.methods.tafe_net.cli.draw:retrievals_main", "the best images of unseen classes", Group.LOOK
    ),
}

KINDS = {"tafe": "a trained TAFE-Net"}
