"""Commands of TAFE-Net, and of classes that are given by a description."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "benchmark descriptions": Command(
        "dyn_d2.methods.tafe_net.cli.benchmark:main", "methods, splits and seeds without examples", Group.EVALUATE
    ),
    "crop-features": Command(
        "dyn_d2.methods.tafe_net.cli.prepare_crops:main", "features of the boxes of a COCO json", Group.DATA
    ),
    "tafe-pictures": Command(
        "dyn_d2.methods.tafe_net.cli.draw:main", "images under descriptions, retrievals", Group.LOOK
    ),
}
