"""Starting a tool: one process, several of one machine (``--num-gpus``), or those that torchrun has started.

However it is started, wrong input ends it with one message (see dyn_d2.utils.errors), and when one process fails or is
killed, the others end with an error instead of waiting for it.
"""

import argparse
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.errors import TRACEBACK, UserError, one_message

from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

# How gloo and NCCL say that another process is gone.
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe", re.IGNORECASE)
RESUME = "--resume goes on from the last checkpoint."


class ProcessLost(UserError):
    """Another process of the job has ended, so that this one cannot go on."""


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's command line: ``--config-file F --num-gpus N --resume --eval-only KEY VALUE ...``.

    Args:
        description: the end of ``--help``.
    """
    parser = default_argument_parser(epilog=description)
    parser.set_defaults(dist_url="auto")
    return parser


def parse_args(parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Read the command line of ``parser`` (default: that of ``make_parser``).

    Processes of one machine meet at a free port unless ``--dist-url`` names one, so that several jobs can run at once.
    """
    parser = parser or make_parser()
    args = parser.parse_args()
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("several machines need --dist-url tcp://FIRST_MACHINE:PORT, the same on all of them (or torchrun)")
    return args


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Call ``main(args)`` in every process of the job and return its result in this one (None if others ran it).

    Wrong input, in whichever process, ends this one with a message and exit status 1.

    Args:
        main: the tool; a function of a module, since other processes have to find it.
        args: from ``parse_args``; under torchrun its ``--num-gpus``, ``--num-machines`` and ``--dist-url`` are not
            used.
    """
    if started_by_torchrun():
        rank = os.environ["RANK"]
        with one_message("" if rank == "0" else f"[process {rank}] "):
            return _run_for_torchrun(main, args)
    with one_message():
        if args.num_gpus * args.num_machines == 1:
            return main(args)
        _run_processes(main, args)
    return None


def _run_for_torchrun(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
    try:
        result = main(args)
    except RuntimeError as error:
        _explain_lost_contact(error)
        raise
    # Leave together, and only after success: an orderly farewell to a process that is gone would wait for it.
    comm.synchronize()
    dist.destroy_process_group()
    return result


def is_lost_contact(error: BaseException | None) -> bool:
    """Whether ``error`` is how gloo or NCCL report that another process is gone."""
    return isinstance(error, RuntimeError) and not isinstance(error, UserError) and bool(_LOST.search(str(error)))


def _explain_lost_contact(error: RuntimeError) -> None:
    if is_lost_contact(error):
        raise ProcessLost(
            f"process {comm.get_rank()} of {comm.get_world_size()} has lost contact with another one, which failed or "
            f"was killed; its own message tells why. {RESUME} ({str(error).splitlines()[0]})"
        ) from error


def _run_processes(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main`` in processes of their own; where one fails, pass on the message that explains it best."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            launch(_process, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (main, args, folder))
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            left = {kind: sorted(Path(folder).glob(f"{kind}.*")) for kind in ("wrong_input", "error", "lost_contact")}
            if left["wrong_input"]:
                raise UserError(_read(left["wrong_input"][0])) from error
            if left["error"]:
                path = left["error"][0]
                sys.exit(f"process {path.suffix[1:]} of {args.num_gpus * args.num_machines}: {_read(path)}")
            if isinstance(error, mp.ProcessRaisedException):  # the processes did not find each other
                raise
            if left["lost_contact"] and not error.signal_name:
                raise ProcessLost(_read(left["lost_contact"][0])) from error
            raise ProcessLost(
                f"process {error.error_index} was ended from outside: {error.signal_name or 'exit'} (status "
                f"{error.exit_code}; SIGKILL is often the system's answer to lack of memory), so the others were "
                f"stopped too. {RESUME}"
            ) from error


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _process(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, folder: str) -> None:
    """``main`` in one of several processes; what goes wrong is left in ``folder``."""
    try:
        try:
            main(args)
        except RuntimeError as error:
            _explain_lost_contact(error)
            raise
    except Exception as error:
        plain = isinstance(error, UserError) and not os.environ.get(TRACEBACK)
        kind = "lost_contact" if isinstance(error, ProcessLost) else "wrong_input" if plain else "error"
        with atomic_write(Path(folder, f"{kind}.{comm.get_rank()}")) as file:
            file.write(str(error) if plain else traceback.format_exc())
        sys.exit(1)
