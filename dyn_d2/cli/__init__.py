"""The console program ``dyn-d2``; ``tools/*.py`` and ``python -m dyn_d2`` are the same commands.

Commands come from tables (see dyn_d2.utils.commands): of the platform, of gating, and of each method. This package
names no method, so that one that is taken out takes its commands along and nothing else.
"""

import importlib
import sys

import dyn_d2
from dyn_d2.utils.commands import Command
from dyn_d2.utils.errors import one_message, run_tool

from .table import Table

__all__ = ["main", "tool"]


def main(argv: list[str] | None = None) -> None:
    """Run the command that ``argv`` names (default: this process's arguments), and exit with its status."""
    with one_message():
        _main(sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> None:
    table = Table.read()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(table.help())
        sys.exit(0)
    if argv[0] == "--version":
        print(f"dyn_d2 {dyn_d2.__version__}")
        sys.exit(0)
    words, kinds = 1, table.kinds(argv[0])
    if kinds:
        if argv[1:2] in ([], ["-h"], ["--help"]):
            print(table.help_of_kinds(argv[0]))
            sys.exit(0)
        words = 2
    name = " ".join(argv[:words])
    if name not in table.commands:
        print(f"dyn-d2: {table.unknown(name)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"dyn-d2 {name}", *argv[words:]]  # what argparse and messages call the program
    _run(table.commands[name])


def tool(name: str) -> None:
    """Run a command as a script of its own, as ``tools/*.py`` do: the process's arguments are the command's."""
    table = Table.read()
    if name not in table.commands:
        sys.exit(f"{sys.argv[0]}: {table.unknown(name)}")
    _run(table.commands[name])


def _run(command: Command) -> None:
    module, _, function = command.function.partition(":")

    def call() -> int | None:
        if command.registers:
            dyn_d2.register()
        return getattr(importlib.import_module(module), function)()

    if command.only_input:
        run_tool(call)
    with one_message():
        call()
    sys.exit(0)
