"""What each of two processes runs in test_evaluation_loop.py."""

from pathlib import Path

import torch.distributed as dist

import dyn_d2  # noqa: F401  chooses the engine


def evaluate_half(rank: int, folder: str, ready: object) -> None:
    """Evaluate every second image of the small data set; process 0 puts the results into the queue."""
    from small_dataset import SmallDataset, run

    from detectron2.evaluation import COCOEvaluator
    from detectron2.utils import comm

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = Path(folder) / str(rank)
    own.mkdir()
    dataset = SmallDataset(own)
    evaluator = COCOEvaluator(dataset.name, use_fast_impl=False)
    results = run(evaluator, dataset.inputs[rank::2], dataset.outputs[rank::2])
    ready.put((comm.get_rank(), results))
    dist.destroy_process_group()
