"""Commands of IDK cascades."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "calibrate": Command(
        "dyn_d2.methods.idk_cascade.cli:main", "a cheap model before an expensive one", Group.EVALUATE
    ),
    "cross-calibrate": Command(
        "dyn_d2.methods.idk_cascade.cross_cli:main", "the same of ready models, by cross-fitting", Group.EVALUATE
    ),
}
