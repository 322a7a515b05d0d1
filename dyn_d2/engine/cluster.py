"""The trainings of a table on a cluster: each is a task of Ray with its cores and GPUs.

Ray (Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications") places the tasks, and runs those
again whose process or machine is lost; these go on from their last checkpoint in OUTPUT_DIR, which all machines share.
"""

import logging
import math
import os
import socket
from collections.abc import Mapping
from concurrent.futures import Future, wait
from importlib import import_module
from typing import Any

from dyn_d2.utils.errors import UserError
from dyn_d2.utils.extras import how_to_install, is_missing

from .launch import ProcessLost
from .stages import StageError
from .workers import GOES_ON, Training, Workers

ray: Any = None if is_missing("ray") else import_module("ray")  # of the extra "ray"

logger = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
RETRIES = 3  # of a training whose process or machine is lost
REACHABLE = 5.0  # seconds in which a cluster has to answer
PASSED_ON = ("DETECTRON2_DATASETS", "FVCORE_CACHE", "TORCH_HOME", "HF_HOME", "DYN_D2_")  # or how such names begin


class RayWorkers(Workers):
    """Tasks of Ray. CPU trainings share processes; those on GPUs have one each, as Ray gives a process other GPUs the
    next time."""

    patience = 60.0  # a shared file system shows what others have written only after a while

    def __init__(self, address: str, cores: int = 1, gpus: int = 0) -> None:
        """
        Args:
            address: "local" for a new cluster of this machine, "auto" for the one that this machine is part of, or
                HOST:PORT.
            cores, gpus: of each training.

        Raises:
            UserError: Ray is not installed, there is no such cluster, or none of its machines has as much.
        """
        if ray is None:
            raise UserError(f"{how_to_install('ray')}.")
        self._cores, self._gpus = cores, gpus
        self._running: dict[Future[float], Any] = {}  # -> Ray's name of the task
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(address)
        try:
            self._require_room()
        except UserError:
            self._disconnect()
            raise
        logger.info(
            f"Ray: machines: {len(_machines())}, trainings at a time: {self.at_a_time}, each with cores: {cores}, "
            f"GPUs: {gpus}; the log of a training is log.txt in its folder"
        )

    def _require_room(self) -> None:
        if self.at_a_time:
            return
        wanted, largest = {"CPU": self._cores, "GPU": self._gpus}, {}
        for name in wanted:
            largest[name] = max((machine.get(name, 0) for machine in _machines()), default=0)
        less = "Ask for less" + (", or add MODEL.DEVICE cpu to train without" if self._gpus > largest["GPU"] else "")
        raise UserError(
            f"--cores {self._cores} and --num-gpus {self._gpus} of each training: no machine of the cluster has both; "
            f"the most that one has are {largest['CPU']:g} cores, {largest['GPU']:g} GPUs. {less}."
        )

    @property
    def at_a_time(self) -> int:
        return sum(_fits(machine, self._cores, self._gpus) for machine in _machines())

    @property
    def ahead(self) -> int:
        """One waits, which is what tells a cluster that it should grow."""
        return 1

    def submit(self, training: Training, beside: int) -> "Future[float]":
        passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        task = ray.remote(self.run).options(
            name=training.folder.name,
            num_cpus=self._cores,
            num_gpus=self._gpus,
            max_retries=RETRIES,
            retry_exceptions=[ProcessLost],
            runtime_env={"env_vars": passed_on} if passed_on else None,
        )
        reference = task.remote(training, self._cores, self.patience)
        future = reference.future()
        self._running[future] = reference
        return future

    def result(self, future: "Future[float]") -> float:
        del self._running[future]
        try:
            return future.result()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            first = (str(error).splitlines() or [""])[0]
            raise StageError(
                f"a training was lost {RETRIES + 1} times with its process or machine, often for lack of memory: "
                f"{type(error).__name__}: {first} {GOES_ON}"
            ) from None

    def stop(self) -> None:
        for reference in self._running.values():
            ray.cancel(reference, force=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                wait(self._running)
        except BaseException:  # Ctrl-C while waiting
            self.stop()
            raise
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._ours:
            ray.shutdown()


def _connect(address: str) -> None:
    """
    Raises:
        UserError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray tells its makers of each cluster
    if address not in (LOCAL, AUTO):
        _require_answer(address)
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        quietly["include_dashboard"] = False
    try:
        ray.init(address=address, **quietly)
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        what = "there is no cluster of Ray." if isinstance(error, ConnectionError) else first
        raise UserError(
            f"--cluster {address}: {what} A cluster is started by 'ray start --head' on its first machine and 'ray "
            "start --address HOST:6379' on the others; --cluster local needs none."
        ) from error


def _require_answer(address: str) -> None:
    """
    Raises:
        UserError: no HOST:PORT, or nobody listens there. Ray itself would try for minutes.
    """
    host, _, port = address.rpartition("://")[2].partition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--cluster {address}: use local, auto, or HOST:PORT, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host, int(port)), REACHABLE).close()
    except OSError as error:
        raise UserError(
            f"--cluster {address} does not answer ({error.strerror or error}): start the cluster ('ray start --head' "
            "on its first machine prints the address), or use --cluster local."
        ) from error


def _machines() -> list[Mapping[str, float]]:
    """The resources of each machine that lives."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(machine: Mapping[str, float], cores: int, gpus: int) -> int:
    """How many trainings a machine can do at a time."""
    counts = [machine.get(name, 0) / wanted for name, wanted in (("CPU", cores), ("GPU", gpus)) if wanted]
    return math.floor(min(counts))
