"""Starting a tool: one process, several of one machine (``--num-gpus``), or those that torchrun has started.

However it is started, wrong input ends it with one message (see dyn_d2.utils.errors), and when one process fails or is
killed, the others end with an error instead of waiting for it.
"""

import argparse
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dyn_d2.config.read import read_cfg
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.errors import RESUME, TRACEBACK, UserError, message_of, one_message

from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

# How gloo and NCCL say that another process is gone.
DEFAULT_TIMEOUT = timedelta(minutes=30)
STOPPED = 30.0  # seconds that one of several processes may be stopped
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Timed out waiting", re.IGNORECASE)


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


def processes(text: str) -> int:
    """The value of ``--num-gpus``.

    Raises:
        argparse.ArgumentTypeError: no number of processes.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text} is no number of processes: give 1 (the default, and with MODEL.DEVICE cpu no GPU is used) or more"
        )
    return int(text)


def parse_args(
    parser: argparse.ArgumentParser | None = None, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Read the command line of ``parser`` (default: that of ``make_parser``), or the given arguments.

    Processes of one machine meet at a free port unless ``--dist-url`` names one, so that several jobs can run at once.
    """
    parser = parser or make_parser()
    args = parser.parse_args(arguments)
    try:
        processes(str(args.num_gpus))
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --num-gpus: {error}")
    if args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error(
            f"--num-machines {args.num_machines} --machine-rank {args.machine_rank}: there has to be a machine, "
            "and the first has rank 0"
        )
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
        return run_here(main, args)


def run_here(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """``run`` without torchrun and without an end of this process: what goes wrong is raised.

    Raises:
        UserError: one of several processes failed, or there are not as many GPUs.
        Exception: whatever ``main`` raises in this process.
    """
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()}.")
    if args.num_gpus * args.num_machines == 1:
        return main(args)
    _run_processes(main, args)
    return None


def _run_for_torchrun(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_timeout(args))
    comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
    try:
        result = main(args)
    except RuntimeError as error:
        _explain_lost_contact(error)
        raise
    # Leave together, and only after success: leaving in order would wait for a process that is gone.
    comm.synchronize()
    dist.destroy_process_group()
    return result


def is_lost_contact(error: BaseException | None) -> bool:
    """Whether ``error`` is how gloo or NCCL report that another process is gone."""
    return isinstance(error, RuntimeError) and not isinstance(error, UserError) and bool(_LOST.search(str(error)))


def _explain_lost_contact(error: RuntimeError) -> None:
    if is_lost_contact(error):
        raise ProcessLost(
            f"process {comm.get_rank()} of {comm.get_world_size()} has lost contact with another one, which failed, "
            f"was killed or stands still (SOLVER.PROCESS_TIMEOUT); its own message tells why. {RESUME} "
            f"({str(error).splitlines()[0]})"
        ) from error


def _run_processes(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main`` in processes of their own; where one fails, pass on the message that explains it best."""
    timeout, job = _timeout(args), (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    with tempfile.TemporaryDirectory() as folder, stopped_ones_are_killed(timeout.total_seconds()) as killed:
        try:
            launch(_process, *job, (main, args, folder), timeout)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            left = {kind: sorted(Path(folder).glob(f"{kind}.*")) for kind in ("wrong_input", "lost_contact")}
            if left["wrong_input"]:
                raise UserError(_read(left["wrong_input"][0])) from error
            if killed:
                raise ProcessLost(
                    f"process {killed[0]} of the job was stopped (SIGSTOP) and did not go on for {STOPPED:g} s, so all "
                    f"were ended. {RESUME}"
                ) from error
            if isinstance(error, mp.ProcessRaisedException):  # the processes did not find each other
                raise
            if left["lost_contact"] and not error.signal_name:
                raise ProcessLost(_read(left["lost_contact"][0])) from error
            raise ProcessLost(
                f"process {error.error_index} was ended from outside: {error.signal_name or 'exit'} (status "
                f"{error.exit_code}; SIGKILL is often the system's answer to lack of memory), so the others were "
                f"stopped too. {RESUME}"
            ) from error


def _timeout(args: argparse.Namespace) -> timedelta:
    """How long a process waits for the others, of SOLVER.PROCESS_TIMEOUT."""
    try:
        cfg = read_cfg(getattr(args, "config_file", ""), getattr(args, "opts", None) or [])
        return timedelta(seconds=max(1.0, float(cfg.SOLVER.PROCESS_TIMEOUT)))
    except Exception:  # the processes say better what is wrong with a config
        return DEFAULT_TIMEOUT


@contextmanager
def stopped_ones_are_killed(at_most: float = math.inf) -> Iterator[list[int]]:
    """Inside the block children of this process that are stopped for STOPPED seconds are killed, as nobody can go on
    without them; the list gets their numbers. A job that is stopped as a whole (Ctrl-Z) is left alone.

    Args:
        at_most: seconds, where that is less than STOPPED.
    """
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        since: dict[int, float] = {}
        while not over.wait(1.0):
            stopped = {child.pid for child in mp.active_children() if child.pid and _is_stopped(child.pid)}
            now = time.monotonic()
            since = {pid: since.get(pid, now) for pid in stopped}
            for pid, start in since.items():
                if now - start >= min(STOPPED, at_most) and pid not in killed:
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):  # gone, or no such file system
        return False


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
        kind = "lost_contact" if isinstance(error, ProcessLost) else "wrong_input"
        with atomic_write(Path(folder, f"{kind}.{comm.get_rank()}")) as file:
            file.write(traceback.format_exc() if os.environ.get(TRACEBACK) else message_of(error))
        sys.exit(1)
