"""What each of two processes runs in test_concept_levels.py."""

import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dyn_d2  # noqa: E402, F401  chooses the engine


def evaluate_half(rank: int, folder: str, records: list, metadata: dict, outputs: list, ready: object) -> None:
    """Process 0 has the first image, process 1 the others; each puts its results into the queue."""
    from dyn_d2.evaluation import ConceptLevelEvaluator

    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.register("levels_test", lambda: records)
    MetadataCatalog.get("levels_test").set(**metadata)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    evaluator = ConceptLevelEvaluator("levels_test", folder)
    for i, (given, output) in enumerate(zip(records, outputs, strict=True)):
        if (i > 0) == bool(rank):
            evaluator.process([given], [output])
    ready.put((rank, evaluator.evaluate()))
    dist.destroy_process_group()
