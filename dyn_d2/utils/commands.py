"""How a folder of the package tells which commands it adds to the program ``dyn-d2``.

A folder with commands holds a file ``commands.py`` with a table ``COMMANDS``: name -> :class:`Command`. The program
reads these files alone, without importing the folders that they lie in, so that ``dyn-d2 --help`` needs no torch. They
import nothing but this module.
"""

from argparse import REMAINDER, ArgumentParser, ArgumentTypeError
from enum import Enum
from typing import NamedTuple


class Group(Enum):
    """What somebody wants to do, in the order of ``--help``."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    LOOK = "look at"
    DATA = "data"
    WEIGHTS = "weights"
    HERE = "set-up"


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        function: ``module:function``, imported when the command runs. It reads ``sys.argv[1:]`` where it gets no
            arguments, and returns the exit status or None.
        summary: a line of ``--help``, at most 50 characters.
        group: where ``--help`` shows it.
        only_input: everything that goes wrong with one of Python's own errors is the fault of what was given, and ends
            in one message (see dyn_d2.utils.errors). False for what trains, which tells both apart itself.
        registers: needs data sets and models, so that ``import dyn_d2`` has to have done its work.
    """

    function: str
    summary: str
    group: Group
    only_input: bool = True
    registers: bool = True


def score(text: str) -> float:
    """A score of the command line; a percentage, which nothing would reach, is refused."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text} is no score: give a number from 0 to 1")
    return value


def add_picture_options(parser: ArgumentParser, output: str, top: int) -> None:
    """The options of commands that draw what a model finds: which model, how much of it, and where it goes."""
    parser.add_argument("--weights", required=True, help="a checkpoint")
    parser.add_argument("--config-file", default="", help="only for checkpoints that dyn_d2 did not write")
    parser.add_argument("--output", default=output, help="folder for what is written (default: %(default)s)")
    parser.add_argument("--threshold", type=score, default=0.5, help="least score of detections that are drawn, 0 to 1")
    parser.add_argument("--top", type=int, default=top, help="how many to draw where none reaches the threshold")
    parser.add_argument("--opts", nargs=REMAINDER, default=[], help="KEY VALUE pairs that change the config")
