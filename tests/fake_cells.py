"""Stand-ins for trainings, in a module that workers of another process can import: each leaves a file."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from dyn_d2.engine.workers import Training


@dataclass
class FakeStage:
    """As far as a queue looks at a stage."""

    folder: Path
    parents: list["FakeStage"] = field(default_factory=list)

    def finished(self) -> bool:
        return (self.folder / "model").is_file()

    def require_same_results(self) -> None:
        """They are."""

    def tries(self) -> list[str]:
        """Who has tried to train it."""
        return (self.folder / "tries").read_text().split()


def training_of(stage: FakeStage, cell: str = "") -> Training:
    """Nothing of it is read but the folder."""
    return Training(None, "", (), stage.folder)


def _try(training: Training, who: str) -> None:
    training.folder.mkdir(exist_ok=True)
    with open(training.folder / "tries", "a") as file:
        file.write(f"{who}\n")


def in_a_process(training: Training, threads: int | None = None) -> float:
    """Leaves the number of its process; a folder whose name begins with "long" takes for ever."""
    _try(training, str(os.getpid()))
    if training.folder.name.startswith("long"):
        time.sleep(300)
    (training.folder / "model").touch()
    return float(threads or 0)


def on_a_node(training: Training, threads: int | None = None, patience: float = 0.0) -> float:
    """Leaves the name of its node of Ray; on the node that the file "doomed" names it takes for ever."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    _try(training, node)
    if training.folder.name.startswith("long") or node == (training.folder.parent / "doomed").read_text():
        time.sleep(300)
    (training.folder / "model").touch()
    return 1.0
