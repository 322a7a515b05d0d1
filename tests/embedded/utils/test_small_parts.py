"""comm, logger, env, file_io, memory, registry, serialize, analysis, collect_env."""

import logging
import pickle
import random

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from dyn_d2.backend import describe_backend

from detectron2.utils import comm
from detectron2.utils.analysis import FlopCountAnalysis, flop_count_operators, parameter_count
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table, log_every_n, log_first_n, setup_logger
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry
from detectron2.utils.serialize import PicklableWrapper

embedded_only = pytest.mark.skipif("embedded" not in describe_backend(), reason="only the embedded engine promises it")


def test_comm_in_one_process():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process() and comm.all_gather(3) == comm.gather(3) == [3]
    comm.synchronize()
    np.random.seed(0)
    expected = np.random.randint(2**31)
    np.random.seed(0)
    assert comm.shared_random_seed() == expected
    losses = {"a": torch.tensor(1.0)}
    assert comm.reduce_dict(losses) is losses


def _worker(rank, file, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    comm.create_local_process_group(1)
    np.random.seed(rank)
    comm.synchronize()
    losses = comm.reduce_dict({"b": torch.tensor(float(rank)), "a": torch.tensor(10.0)})
    torch.save(
        {
            "identity": (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()),
            "all": comm.all_gather({"rank": rank}),
            "gathered": comm.gather("x" * rank, dst=1),
            "seed": comm.shared_random_seed(),
            "losses": {name: value.item() for name, value in losses.items()},
        },
        f"{results}/{rank}.pth",
    )
    torch.distributed.barrier()  # a process that leaves early breaks the other's connection
    torch.distributed.destroy_process_group()


def test_comm_in_two_processes(tmp_path):
    # Forked: a spawned process would spend seconds on imports.
    mp.start_processes(_worker, args=(str(tmp_path / "meet"), str(tmp_path)), nprocs=2, start_method="fork")
    zero, one = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert zero["identity"] == (2, 0, 0, 1) and one["identity"] == (2, 1, 0, 1)
    assert zero["all"] == one["all"] == [{"rank": 0}, {"rank": 1}]
    assert zero["gathered"] == [] and one["gathered"] == ["", "x"]
    assert zero["seed"] == one["seed"]
    assert zero["losses"] == {"a": 10.0, "b": 0.5}


def test_logger_writes_each_line_once(tmp_path, capsys):
    for _ in range(2):
        logger = setup_logger(str(tmp_path), name="h1_once", abbrev_name="h", color=False)
    logger.getChild("part").warning("careful")
    setup_logger(str(tmp_path), distributed_rank=3, name="h1_other").info("from rank 3")
    assert (tmp_path / "log.txt").read_text().count("careful") == 1
    assert "from rank 3" in (tmp_path / "log.txt.rank3").read_text()
    shown = capsys.readouterr().out
    assert shown.count("careful") == 1 and "from rank 3" not in shown


@embedded_only
def test_logger_of_a_second_run_leaves_the_first_file(tmp_path, capsys):
    setup_logger(str(tmp_path / "a"), name="h1_runs").info("first")
    setup_logger(str(tmp_path / "b.log"), name="h1_runs").info("second")
    assert "second" not in (tmp_path / "a" / "log.txt").read_text()
    assert "second" in (tmp_path / "b.log").read_text() and capsys.readouterr().out.count("second") == 1


def test_messages_now_and_then(caplog):
    with caplog.at_level(logging.INFO):
        for index in range(7):
            log_first_n(logging.INFO, f"same place {index}", n=2)
            log_every_n(logging.INFO, f"every third {index}", n=3)
        for _ in range(2):
            log_first_n(logging.INFO, "same words", key="message")
        log_first_n(logging.INFO, "same words", key="message")
    assert [r.getMessage() for r in caplog.records] == [
        "same place 0",
        "every third 0",
        "same place 1",
        "every third 3",
        "every third 6",
        "same words",
    ]
    assert caplog.records[0].name == __name__


def test_small_table():
    assert create_small_table({"AP": 12.34567, "n": 3}).splitlines()[-1].split() == ["|", "12.346", "|", "3", "|"]


def test_seeds_cover_all_generators():
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()

    seed_all_rng(7)
    first = draw()
    seed_all_rng(7)
    assert draw() == first
    seed_all_rng(None)
    assert draw() != first


@embedded_only
def test_a_failed_download_names_file_and_remedy(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("iopath.common.download.request.urlretrieve", fail)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    for path in ("https://example.invalid/m.pkl", "detectron2://a/m.pkl"):
        with pytest.raises(OSError, match=r"Could not download https://.*no route to host.*MODEL\.WEIGHTS"):
            PathManager.get_local_path(path, cache_dir=str(tmp_path))


def test_local_paths(tmp_path):
    with PathManager.open(str(tmp_path / "x.txt"), "w") as file:
        file.write("1")
    assert PathManager.isfile(str(tmp_path / "x.txt")) and PathManager.ls(str(tmp_path)) == ["x.txt"]


@embedded_only
def test_atomic_open_leaves_nothing_behind(tmp_path):
    from detectron2.utils.file_io import atomic_open

    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(KeyError), atomic_open(tmp_path / "f") as file:
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "f").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_out_of_memory_is_retried():
    calls = []

    def hungry(x, *, y):
        calls.append((x, y))
        if len(calls) < 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return x + y

    assert retry_if_cuda_oom(hungry)(torch.ones(2), y=1).tolist() == [2, 2] and len(calls) == 3
    with pytest.raises(RuntimeError, match="other"):
        retry_if_cuda_oom(lambda: (_ for _ in ()).throw(RuntimeError("other")))()


def test_registry_and_pickling():
    registry = Registry("things")
    registry.register(int)
    assert registry.get("int") is int
    with pytest.raises(KeyError, match="b"):
        registry.get("b")
    offset = 3
    wrapped = PicklableWrapper(PicklableWrapper(lambda x: x + offset))
    assert pickle.loads(pickle.dumps(wrapped))(1) == wrapped(1) == 4


class Detector(nn.Module):
    """Takes data dicts and returns nested results, as detectors do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs):
        features = self.conv(torch.stack([x["image"].float() for x in inputs]))
        return {"loss": features.mean()} if self.training else [{"scores": f.mean((1, 2))} for f in features]


def test_counts_of_a_model_with_data_dicts():
    model = Detector()
    inputs = [{"image": torch.zeros(3, 8, 10), "height": 8}]
    assert FlopCountAnalysis(model.eval(), inputs).total() == 8 * 10 * 4 * 3 * 9
    model.train()
    assert flop_count_operators(model, inputs)["conv"] == pytest.approx(8640e-9)
    assert model.training
    assert parameter_count(model)[""] == 4 * 27 + 4 + 6


def test_environment_report():
    report = collect_env_info()
    for name in ("Python", "numpy", "torchvision", torch.__version__):
        assert name in report
