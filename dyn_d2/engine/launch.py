"""Starting a tool: one process, several of one machine (``--num-gpus``), or those that torchrun has started."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm


def parse_args(description: str | None = None) -> argparse.Namespace:
    """Detectron2's command line: ``--config-file F --num-gpus N --resume --eval-only KEY VALUE ...``."""
    parser = default_argument_parser(epilog=description)
    return parser.parse_args()


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Call ``main(args)`` in every process of the job and return its result in this one (None if others ran it).

    Args:
        main: the tool.
        args: from Detectron2's ``default_argument_parser``; under torchrun its ``--num-gpus``, ``--num-machines`` and
            ``--dist-url`` are not used.
    """
    if not started_by_torchrun():
        return launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
        return main(args)
    finally:
        dist.destroy_process_group()
