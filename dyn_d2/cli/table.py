"""All commands, collected from the ``commands.py`` of the folders, and what ``--help`` says of them."""

import difflib
import runpy
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from dyn_d2.utils.commands import Command, Group

PACKAGE = Path(__file__).resolve().parents[1]
USAGE = "usage: dyn-d2 COMMAND [options]                  dyn-d2 COMMAND --help says more"
WIDTH = 80
_LABEL, _NAME = 10, 15  # columns of --help


@dataclass(frozen=True)
class Table:
    """The commands of this installation.

    Attributes:
        commands: name, of one or two words -> command.
        summaries: first word of names of two words -> its line of ``--help``.
        methods: names that come from methods.
    """

    commands: dict[str, Command]
    summaries: dict[str, str]
    methods: frozenset[str]

    @classmethod
    def read(cls) -> "Table":
        """Collect the tables; nothing but these files is imported.

        Raises:
            ValueError: two folders have a command of one name.
        """
        commands: dict[str, Command] = {}
        summaries: dict[str, str] = {}
        of_methods = set()
        methods = sorted((PACKAGE / "methods").glob("*/commands.py"))
        for path in (PACKAGE / "cli" / "commands.py", PACKAGE / "gating" / "commands.py", *methods):
            content = runpy.run_path(str(path))
            twice = content["COMMANDS"].keys() & commands.keys()
            if twice:
                raise ValueError(f"{path} has commands that are there already: {', '.join(sorted(twice))}.")
            commands |= content["COMMANDS"]
            summaries |= content.get("KINDS", {})
            if path in methods:
                of_methods |= content["COMMANDS"].keys()
        return cls(commands, summaries, frozenset(of_methods))

    def kinds(self, word: str) -> dict[str, Command]:
        """Second word -> command, of all names of two words that begin with ``word``."""
        pairs = ((name.split(), command) for name, command in self.commands.items())
        return {words[1]: command for words, command in pairs if len(words) == 2 and words[0] == word}

    def _lines(self) -> dict[Group, list[tuple[str, str, bool]]]:
        """Group -> (name, summary, is it of a method) of each line of ``--help``."""
        lines: dict[Group, list[tuple[str, str, bool]]] = defaultdict(list)
        for name, command in self.commands.items():
            word, _, kind = name.partition(" ")
            summary, of_method = command.summary, name in self.methods
            if kind:
                kinds = self.kinds(word)
                if kind != next(iter(kinds)):
                    continue
                summary = f"{self.summaries.get(word, command.summary)}: {', '.join(kinds)}"
            lines[command.group].append((word, summary, of_method))
        return lines

    def help(self) -> str:
        """All commands on one screen of 24 lines, by what they are for. Those that methods add to a group share a
        line, so that it stays one screen."""
        text, found = [USAGE, ""], self._lines()
        for group in Group:
            lines = found.get(group, [])
            rows = [(name, summary) for name, summary, of_method in lines if not of_method]
            added = [(name, summary) for name, summary, of_method in lines if of_method]
            if len(added) > 1:
                added = [(", ".join(name for name, _ in added), "; ".join(summary for _, summary in added))]
            for number, (name, summary) in enumerate([*rows, *added]):
                head = f"{group.value if number == 0 else '':{_LABEL}}{name:{_NAME}} "
                text.append(head + textwrap.shorten(summary, WIDTH - len(head), placeholder=" ..."))
        return "\n".join(text)

    def help_of_kinds(self, word: str) -> str:
        """The kinds of a command that has several."""
        kinds = self.kinds(word)
        width = max(map(len, kinds))
        rows = [f"  {kind:{width}}  {command.summary}" for kind, command in kinds.items()]
        return "\n".join([f"usage: dyn-d2 {word} KIND [options]       {self.summaries.get(word, '')}", "", *rows])

    def unknown(self, name: str) -> str:
        """What to say of a name that is no command."""
        words = dict.fromkeys(known for full in self.commands for known in (full, full.partition(" ")[0]))
        near = difflib.get_close_matches(name, words, n=3, cutoff=0.5)
        kinds = self.kinds(name.partition(" ")[0])
        if kinds:
            word, _, kind = name.partition(" ")
            meant = difflib.get_close_matches(kind, kinds, n=1, cutoff=0.5)
            advice = f"did you mean {meant[0]}? There are {', '.join(kinds)}." if meant else f"use {', '.join(kinds)}."
            return f"there is no kind {kind!r} of {word}: {advice}"
        advice = f"did you mean {' or '.join(near)}? " if near else ""
        return f"there is no command {name!r}: {advice}dyn-d2 --help lists all."
