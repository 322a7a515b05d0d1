"""What each of two processes runs in test_routes.py."""

import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dyn_d2  # noqa: E402, F401  chooses the engine


def evaluate_half(rank: int, folder: str, inputs: list, outputs: list, ready: object) -> None:
    """Process 0 has two batches, process 1 the third; each puts its results into the queue."""
    from dyn_d2.evaluation.routes import RouteEvaluator

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    evaluator = RouteEvaluator("digits_test", folder)
    for number in ((0, 1), (2,))[rank]:
        evaluator.process(inputs[number], outputs[number])
    ready.put((rank, evaluator.evaluate()))
    dist.destroy_process_group()
