"""Commands of FSRW and of its relatives."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "vectors export": Command("dyn_d2.methods.fsrw.cli.export_vectors:main", "from support images", Group.LOOK),
    "vectors draw": Command("dyn_d2.methods.fsrw.cli.draw_vectors:main", "a heat map, and a plane", Group.LOOK),
}

KINDS = {"vectors": "class vectors"}
