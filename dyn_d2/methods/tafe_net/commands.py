"""Commands of TAFE-Net, and of classes that are given by a description."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "prepare crops": Command(
        "dyn_d2.methods.tafe_net.cli.prepare_crops:main", "features of the boxes of a COCO json", Group.DATA
    ),
}
