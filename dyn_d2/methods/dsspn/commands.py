"""Commands of DSSPN."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "concept-surgery": Command("dyn_d2.methods.dsspn.cli:main", "fit a DSSPN to another concept tree", Group.WEIGHTS)
}
