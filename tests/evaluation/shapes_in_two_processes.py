"""What each of two processes runs in test_shape_quality.py."""

import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dyn_d2  # noqa: E402, F401  chooses the engine


def evaluate_half(rank: int, folder: str, file: str, groups: dict, inputs: list, outputs: list, ready: object) -> None:
    """Process 0 has the first image, process 1 the others; each puts its results into the queue."""
    from dyn_d2.evaluation import ShapeQualityEvaluator

    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("shapes", {}, file, folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    evaluator = ShapeQualityEvaluator("shapes", groups)
    for i, (given, output) in enumerate(zip(inputs, outputs, strict=True)):
        if (i > 0) == bool(rank):
            evaluator.process([given], [output])
    ready.put((rank, evaluator.evaluate()))
    dist.destroy_process_group()
