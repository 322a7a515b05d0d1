"""Commands of TFA."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {"demo-few-shot": Command("dyn_d2.methods.tfa.cli:main", "from nothing to a table, in minutes", Group.TRAIN)}
