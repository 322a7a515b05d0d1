"""Training whose process 1 meets an image without numbers in iteration 1; run by test_processes.py."""

import argparse

from dyn_d2.engine.launch import parse_args, run
from dyn_d2.engine.setup import setup
from dyn_d2.engine.trainer import DynTrainer

from detectron2.utils import comm


class SpoiltLoader:
    """The batches of a loader, those of process 1 spoilt from iteration 1 on."""

    def __init__(self, loader) -> None:
        self._loader = loader

    def __iter__(self):
        for number, batch in enumerate(self._loader):
            if comm.get_rank() == 1 and number == 1:
                batch = [{**item, "image": item["image"].float() * float("nan")} for item in batch]
                print("spoilt:", *(item["file_name"] for item in batch), flush=True)
            yield batch


def main(args: argparse.Namespace) -> None:
    trainer = DynTrainer(setup(args))
    trainer.data_loader = SpoiltLoader(trainer.data_loader)
    trainer.train()


if __name__ == "__main__":
    run(main, parse_args())
