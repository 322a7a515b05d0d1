"""Workers for tests whose trainings are fakes: threads of this process, of which one at a time does something."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from dyn_d2.engine.workers import Training, Workers, run_cell


class ThreadWorkers(Workers):
    """Calls ``run`` in place of ``run_cell``."""

    def __init__(self, jobs: int = 1, run=run_cell) -> None:
        self._jobs, self._run = jobs, run
        self._pool, self._lock = ThreadPoolExecutor(jobs), threading.Lock()
        self.stopped = False
        self.beside: list[int] = []

    @property
    def at_a_time(self) -> int:
        return self._jobs

    def submit(self, training: Training, beside: int) -> Future:
        self.beside.append(beside)
        return self._pool.submit(self._run_alone, training)

    def _run_alone(self, training: Training) -> float:
        with self._lock:
            return self._run(training)

    def result(self, future: Future) -> float:
        return future.result()

    def stop(self) -> None:
        self.stopped = True

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
