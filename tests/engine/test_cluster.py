"""Tables on Ray: what is not there is said, and a node that is lost costs nothing but a second try."""

import os
import socket
import threading
import time
from pathlib import Path

import fake_cells
import pytest
from fake_cells import FakeStage, training_of

from dyn_d2.engine import cluster
from dyn_d2.engine.cluster import RayWorkers
from dyn_d2.engine.job_queue import run_pending
from dyn_d2.engine.stages import StageError
from dyn_d2.utils.errors import UserError

TESTS = Path(__file__).resolve().parents[1]


class FakeRayWorkers(RayWorkers):
    run = staticmethod(fake_cells.on_a_node)
    patience = 0.0


def test_without_ray(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "ray", None)
    with pytest.raises(UserError, match=r"trainings on a cluster .* need the package ray: pip install 'dyn_d2\[ray\]'"):
        RayWorkers("local")


def test_no_cluster_at_an_address() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="--cluster head: use local, auto, or HOST:PORT, such as"):
        RayWorkers("head")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UserError, match=f"--cluster {address} does not answer .Connection refused.: start the cluster"):
        RayWorkers(address)


def test_what_fits_into_a_machine() -> None:
    assert cluster._fits({"CPU": 8.0, "GPU": 2.0}, 2, 0) == 4 and cluster._fits({"CPU": 8.0, "GPU": 2.0}, 2, 1) == 2
    assert cluster._fits({"CPU": 8.0}, 2, 1) == 0 and cluster._fits({"CPU": 1.0}, 2, 0) == 0


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes of one core each; its workers can import these tests."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("DYN_D2_OF_TEST", "yes")  # of a name that is passed on to workers
        health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
        small = {"num_cpus": 1, "object_store_memory": 80 << 20}
        nodes = Cluster(initialize_head=True, head_node_args={"_system_config": health, **small})
        nodes.add_node(**small)
        yield nodes
        nodes.shutdown()


@pytest.mark.slow
def test_more_than_the_cluster_has(two_nodes) -> None:
    with pytest.raises(UserError, match="--cores 1 and --num-gpus 2 .* are 1 cores, 0 GPUs. Ask for less, or add"):
        RayWorkers(two_nodes.address, gpus=2)
    with pytest.raises(UserError, match=r"--cores 2 and .* are 1 cores, 0 GPUs. Ask for less\.$"):
        RayWorkers(two_nodes.address, cores=2)


@pytest.mark.slow
def test_a_node_is_killed(two_nodes, tmp_path) -> None:
    """Cells on the node that lives are done once, those of the other again; what was stopped leaves nothing behind."""
    (lost,) = two_nodes.worker_nodes
    (tmp_path / "doomed").write_text(lost.node_id)
    base = FakeStage(tmp_path / "base")
    plans = {name: [base, FakeStage(tmp_path / name, [base])] for name in ("a", "b", "c")}
    base.folder.mkdir()
    (base.folder / "model").touch()  # it is done: nobody may do it again

    def kill() -> None:
        while not any(lost.node_id in path.read_text() for path in tmp_path.glob("*/tries")):
            time.sleep(0.1)
        two_nodes.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run_pending(plans, training_of, lambda: FakeRayWorkers(two_nodes.address))
    killer.join(60)
    tries = [plans[name][-1].tries() for name in plans]
    assert sorted(map(len, tries)) == [1, 1, 2] and all(lost.node_id != nodes[-1] for nodes in tries)
    assert not (base.folder / "tries").exists()

    with FakeRayWorkers(two_nodes.address) as workers:
        endless = FakeStage(tmp_path / "long")
        future = workers.submit(training_of(endless), 1)
        while not (endless.folder / "tries").is_file():
            time.sleep(0.1)
        workers.stop()
        with pytest.raises(StageError, match="The same command goes on from here"):
            workers.result(future)
    assert len(endless.tries()) == 1 and not endless.finished()
