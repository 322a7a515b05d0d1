"""Training in stages: each one has a process and a folder of its own, and starts from the one before.

A finished stage leaves ``done.json`` in its folder, with a hash of its config and fingerprints of data and weights. A
stage for which these are unchanged, and whose weights are there and can be opened, is skipped; one that was killed goes
on from its last checkpoint. engine/few_shot.py and gating/stages.py say which stages there are.
"""

import argparse
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dyn_d2.checkpoint.files import FINAL, is_whole, tagged
from dyn_d2.checkpoint.validate import are_inputs
from dyn_d2.config.output_dir import NEUTRAL_KEYS, differing_keys, differing_results, is_below
from dyn_d2.config.read import as_yaml, flatten, read_cfg, read_yaml
from dyn_d2.data.fingerprint import forget_fingerprints
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode

from .inputs import ALLOW, changed, inputs_of, listed
from .launch import processes
from .needs import say_needs

logger = logging.getLogger(__name__)

TRAIN = ("-m", "dyn_d2", "train")  # of a process that trains one stage, wherever the package lies
DONE = "done.json"


class StageError(UserError):
    """A stage failed, or its folder holds the result of another config."""


@dataclass
class Stage:
    """One training run of a procedure.

    Attributes:
        KEY: the config key that names the stage, where there is one.
        name: value of that key.
        folder: where it trains.
        cfg: its config.
        parents: stages whose weights it starts from.
    """

    KEY: ClassVar[str]

    name: str
    folder: Path
    cfg: CfgNode
    parents: list["Stage"] = field(default_factory=list)

    @property
    def weights(self) -> Path:
        """The model that the stage leaves."""
        return self.folder / FINAL

    def opts(self) -> list[str]:
        """The KEY VALUE pairs that make the stage's config from the procedure's."""
        return [self.KEY, self.name]

    def later_keys(self) -> tuple[str, ...]:
        """Keys that only the stages after this one read."""
        return ()

    def initial_weights(self, resume: bool) -> Path | None:
        """The file to start from, made here where it has to be made; None: MODEL.WEIGHTS of the config.

        Args:
            resume: the stage has been started before.
        """
        raise NotImplementedError

    def check_data(self) -> None:
        """Whether there is enough data for the stage; called before the first one starts.

        Raises:
            ValueError, FileNotFoundError: there is not.
        """

    def fingerprint(self) -> str:
        """Hash of all keys that the result depends on, those of the stages before included."""
        skipped = NEUTRAL_KEYS + self.later_keys()
        keys = {key: value for key, value in flatten(as_yaml(self.cfg)).items() if not is_below(key, skipped)}
        start = [parent.fingerprint() for parent in self.parents] or self.cfg.MODEL.WEIGHTS
        text = json.dumps([keys, start], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def inputs(self) -> dict[str, Any]:
        """What the result depends on beside keys: data, files, and the weights that the stage starts from."""
        weights = {str(parent.weights): str(parent.weights) for parent in self.parents} or None
        return inputs_of(self.cfg, (*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST), weights)

    def finished(self) -> bool:
        """Whether the folder holds this stage's result, with weights that can be opened.

        Raises:
            StageError: it holds that of another config or of other inputs, or done.json is damaged.
        """
        path = self.folder / DONE
        if not path.is_file():
            return False
        done = _read_done(path)
        if done["fingerprint"] != self.fingerprint():
            self._require_same_keys()
        if not is_whole(self.weights):
            return False
        inputs = self.inputs()
        lines = [*changed(done.get("inputs", {}), inputs), *self._other_start(done.get("inputs", {}), inputs)]
        if lines and not self.cfg.SOLVER.ALLOW_CHANGED_INPUTS:
            raise StageError(
                f"{self.folder} holds stage {self.name} of other data or weights:{listed(lines)}\nChoose another "
                f"OUTPUT_DIR or remove that folder to train anew, or give {ALLOW} True to keep the old result."
            )
        return True

    def _other_start(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        """What differs in MODEL.WEIGHTS where a fingerprint does not tell: none, or an address."""
        saved, label = self.folder / "config.yaml", "MODEL.WEIGHTS"
        told = label in old.get("weights", {}) and label in new["weights"]
        if self.parents or told or not saved.is_file():
            return []
        before, now = flatten(read_yaml(str(saved))).get(label, ""), self.cfg.MODEL.WEIGHTS
        return [] if before == now else [f"{label}: {before or 'none'} -> {now or 'none'}"]

    def _require_same_keys(self) -> None:
        """Compare key by key: the hash is another one, too, where this version has keys that the older one lacked. The
        stages before are compared by themselves, and their weights are among the inputs."""
        saved, keys = self.folder / "config.yaml", ["compare its config.yaml"]
        if saved.is_file():
            keys = differing_keys(read_yaml(str(saved)), self.cfg, NEUTRAL_KEYS + self.later_keys())
        if keys:
            raise StageError(
                f"{self.folder} holds stage {self.name} of another config:{listed(keys)}\nChoose another "
                "OUTPUT_DIR, or remove that folder."
            )

    def other_results(self) -> list[str]:
        """Keys with which the results in the folder would be others, as ``KEY: old -> new``."""
        saved = self.folder / "config.yaml"
        return differing_results(read_yaml(str(saved)), self.cfg) if saved.is_file() else []

    def require_same_results(self) -> None:
        """For a finished stage whose results are wanted.

        Raises:
            StageError: they were taken with other keys of TEST.
        """
        if keys := self.other_results():
            raise StageError(
                f"{self.folder} holds results of stage {self.name} that were taken in another way:{listed(keys)}\n"
                "Choose another OUTPUT_DIR, or remove that folder; dyn-d2 evaluate --weights "
                f"{self.weights} takes results of that model with other keys of TEST."
            )


def _read_done(path: Path) -> dict[str, Any]:
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(done["fingerprint"], str) and are_inputs(done.get("inputs", {})):
            return done
    except (AttributeError, ValueError, KeyError, RecursionError, TypeError):
        pass
    raise StageError(f"{path} is damaged: remove it, and the same command goes on from the stage's last checkpoint.")


def run_process(command: list[str]) -> int:
    """Run a command with this process's output and return its exit status."""
    return subprocess.run(command, check=False).returncode


def run_stage(
    stage: Stage,
    config_file: str,
    opts: Iterable[str],
    launcher: Iterable[str] = (),
    train: Callable[[list[str]], None] | None = None,
) -> None:
    """Train ``stage`` in a process of its own, unless its result is there; go on where it was killed.

    Args:
        stage: its config was made from ``config_file`` and ``opts``.
        launcher: options of ``dyn-d2 train`` such as ``--num-gpus 2``.
        train: called with the arguments of ``dyn-d2 train`` in place of that process.

    Raises:
        StageError: the process failed, or the folder holds another config's result.
    """
    if stage.finished():
        logger.info(f"stage {stage.name}: done already, {stage.weights}")
        return
    resume = tagged(stage.folder) is not None
    if (stage.folder / DONE).is_file():
        logger.warning(f"{stage.folder} lacks the weights that its {DONE} speaks of: training goes on")
        (stage.folder / DONE).unlink()
    forget_fingerprints()
    inputs = stage.inputs()
    start = stage.initial_weights(resume)
    derived: list[Any] = [*stage.opts(), "OUTPUT_DIR", stage.folder]
    derived += ["MODEL.WEIGHTS", start] if start else []
    arguments = [*launcher, *(["--resume"] if resume else [])]
    arguments += ["--config-file", config_file] if config_file else []
    arguments += [*opts, *map(str, derived)]
    command = [sys.executable, *TRAIN, *arguments]
    logger.info(f"stage {stage.name}: {'going on' if resume else 'starting'} in {stage.folder}\n  {' '.join(command)}")
    if train:
        train(arguments)
    else:
        _train_in_a_process(stage, command)
    if not is_whole(stage.weights):
        raise StageError(f"stage {stage.name} ended without {stage.weights}: see {stage.folder}/log.txt.")
    done = {"stage": stage.name, "fingerprint": stage.fingerprint(), "weights": FINAL, "inputs": inputs}
    write_json(stage.folder / DONE, done)


def _train_in_a_process(stage: Stage, command: list[str]) -> None:
    status = run_process(command)
    if status != 0:
        raise StageError(
            f"stage {stage.name} ended with status {status}; its messages are above and in {stage.folder}/log.txt. "
            "The same command goes on from the last checkpoint."
        )


def run_stages(stages: list[Stage], config_file: str, opts: list[str], launcher: Iterable[str] = ()) -> Stage:
    """Run all of ``stages`` in order and return the last one.

    Raises:
        StageError: from ``run_stage``.
    """
    for stage in stages:
        if not (stage.folder / DONE).is_file():
            stage.check_data()  # before the stages ahead of it take hours
    if stages[-1].finished():
        stages[-1].require_same_results()
    for number, stage in enumerate(stages, 1):
        logger.info(f"stage {number} of {len(stages)}: {stage.name}")
        run_stage(stage, config_file, opts, launcher)
    return stages[-1]


Plan = Callable[[str, list[str]], list[Stage]]  # (yaml file, KEY VALUE pairs) -> the stages, in order


def train_stages(plan: Plan, config_file: str, opts: Iterable[str], launcher: Iterable[str] = ()) -> Stage:
    """Train what ``plan`` makes of a config, and return the last stage.

    Raises:
        StageError: one of them failed, or its folder holds another config's result.
    """
    opts = list(opts)
    return run_stages(plan(config_file, opts), config_file, opts, launcher)


def train_all(plan: Plan, description: str | None) -> int:
    """A command that trains in stages: reads ``--config-file FILE --num-gpus N KEY VALUE ...``, trains all of them, and
    says where the result is.

    Args:
        plan: of the stages.
        description: the beginning of ``--help``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="name of a config, or your own yaml")
    parser.add_argument("--num-gpus", type=processes, default=1, help="processes of the machine, one for each GPU")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, as for dyn-d2 train")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"[{Path(sys.argv[0]).stem}] %(message)s", stream=sys.stdout)
    say_needs(read_cfg(args.config_file, args.opts))
    last = train_stages(plan, args.config_file, args.opts, ["--num-gpus", str(args.num_gpus)])
    logger.info(f"model: {last.weights}\nresults: {last.folder / 'results.json'}")
    return 0
