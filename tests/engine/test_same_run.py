"""A run that goes on is the one that began: same data, weights, config and schedule, no gap in its log, no dead end."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_detection import CLASSES, tiny_opts, write_boxes

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.output_dir import OutputDirError, check_output_dir
from dyn_d2.data.few_shot.register import apply_few_shot, load_training_records
from dyn_d2.data.few_shot.task import FewShotTask
from dyn_d2.data.fingerprint import data_fingerprint, file_hash, records_hash
from dyn_d2.engine import stages
from dyn_d2.engine.inputs import ChangedInputs
from dyn_d2.engine.stages import DONE, Stage, StageError, run_stage
from dyn_d2.engine.trainer import DynTrainer

from detectron2.data import DatasetCatalog, MetadataCatalog

SHORT = {"SOLVER__MAX_ITER": 4, "SOLVER__STEPS": [3], "SOLVER__CHECKPOINT_PERIOD": 1, "TEST__EVAL_PERIOD": 2}


def train(opts: list[str], resume: bool = False) -> DynTrainer:
    trainer = DynTrainer(build_cfg("", opts))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The folder of a data set and of a whole run of four iterations, evaluated after two and four."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(tiny_opts(write_boxes(folder / "data", 2), folder / "out", **SHORT))
    return folder


@pytest.fixture
def run(unbroken, tmp_path) -> Iterator[Path]:
    """A copy of it: ``out`` may be spoilt, and so may ``data``, which is the same folder as before, for a while."""
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "data").rename(tmp_path / "data")
    (tmp_path / "run" / "data").symlink_to(unbroken / "data")
    yield tmp_path / "run"
    shutil.rmtree(unbroken / "data")
    shutil.move(tmp_path / "data", unbroken / "data")


def opts_of(run: Path, **more) -> list[str]:
    return tiny_opts((run / "data").resolve() / "instances.json", run / "out", **{**SHORT, **more})


def killed_after(run: Path, iteration: int, rows: int) -> None:
    """As a kill leaves it that comes after the checkpoint of ``iteration`` and when ``rows`` rows are written."""
    out = run / "out"
    (out / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")
    for path in out.glob("model_*.pth"):
        if path.stem == "model_final" or int(path.stem.removeprefix("model_")) > iteration:
            path.unlink()
    lines = (out / "metrics.json").read_text().splitlines(keepends=True)
    (out / "metrics.json").write_text("".join(lines[:rows]))
    (out / "results.json").unlink()


def rows(run: Path) -> list[dict]:
    """Of metrics.json by iteration, without what the clock says; Detectron2s differ in the order in which they write
    those of an evaluation and of later losses."""
    found = map(json.loads, (run / "out" / "metrics.json").read_text().splitlines())
    plain = [{key: row[key] for key in row if "time" not in key and key != "eta_seconds"} for row in found]
    return sorted(plain, key=lambda row: row["iteration"])


def model_of(run: Path) -> dict:
    return torch.load(run / "out" / "model_final.pth", weights_only=True)


@pytest.mark.parametrize("iteration, written", [(3, 1), (3, 2), (1, 0), (0, 0)])
def test_a_kill_between_checkpoint_and_row_loses_nothing(unbroken, run, iteration, written) -> None:
    """After the last step model_final.pth is missing; after the second its evaluation."""
    assert [row["iteration"] for row in rows(unbroken)] == [1, 3, 4]
    killed_after(run, iteration, written)
    train(opts_of(run), resume=True)
    whole, resumed = model_of(unbroken), model_of(run)
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    assert (whole["iteration"], whole["trainer"]["iteration"]) == (
        resumed["iteration"],
        resumed["trainer"]["iteration"],
    )
    assert rows(run) == rows(unbroken)
    results = [json.loads((folder / "out" / "results.json").read_text()) for folder in (unbroken, run)]
    assert results[0]["metrics"] == results[1]["metrics"] and results[1]["iteration_evaluated"] == 4


def test_a_noted_checkpoint_that_is_gone(run, caplog) -> None:
    (run / "out" / "model_final.pth").unlink()
    caplog.set_level(logging.WARNING, "dyn_d2")
    train(opts_of(run), resume=True)
    assert "names model_final.pth, which is not there: going on from model_0000003.pth" in caplog.text
    assert model_of(run)["iteration"] == 3


def refused(run: Path, error: type, match: str, **more) -> None:
    with pytest.raises(error, match=match):
        DynTrainer(build_cfg("", opts_of(run, **more))).resume_or_load(resume=True)


def test_a_damaged_checkpoint_names_the_one_before(run) -> None:
    last = run / "out" / "model_final.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    refused(run, CheckpointError, "(?s)model_final.pth.*model_0000003.pth, is whole: `echo model_0000003.pth > ")


def test_weights_alone_are_not_resumed(run) -> None:
    torch.save({"model": model_of(run)["model"]}, run / "out" / "model_final.pth")
    refused(run, CheckpointError, "holds weights only.*leave --resume out")


def test_another_config_is_refused_without_config_yaml(run) -> None:
    assert not (run / "out" / "config.yaml").exists()
    refused(run, OutputDirError, "SOLVER.BASE_LR: 0.01 -> 0.5", SOLVER__BASE_LR=0.5)
    (run / "out" / "config.yaml").unlink()
    refused(run, OutputDirError, "SEED: 7 -> 8", SEED=8)
    # The command that was refused has not left its config for the next one to be compared with.
    cfg = build_cfg("", opts_of(run))
    check_output_dir(cfg, resume=True)
    DynTrainer(cfg).resume_or_load(resume=True)


def test_iterations_that_the_model_has_not_seen(run, caplog) -> None:
    match = "has seen 4 iterations, SOLVER.MAX_ITER is 2: give 4 or more, or write model_0000001.pth into"
    refused(run, CheckpointError, match, SOLVER__MAX_ITER=2, SOLVER__STEPS=[])
    caplog.set_level(logging.WARNING, "dyn_d2")
    DynTrainer(build_cfg("", opts_of(run, SOLVER__MAX_ITER=6))).resume_or_load(resume=True)
    assert "resuming with SOLVER.MAX_ITER 4 -> 6" in caplog.text


def test_a_schedule_that_depends_on_its_end(tmp_path) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data", 2), tmp_path / "out", **SHORT)
    opts += ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"]
    trainer = DynTrainer(build_cfg("", opts))
    trainer.checkpointer.save("model_0000000")
    longer = [*opts, "SOLVER.MAX_ITER", "9"]
    with pytest.raises(
        OutputDirError, match="WarmupPolyLR depends on SOLVER.MAX_ITER, which was 4 and is 9.*CHANGED_INPUTS"
    ):
        DynTrainer(build_cfg("", longer)).resume_or_load(resume=True)
    DynTrainer(build_cfg("", [*longer, "SOLVER.ALLOW_CHANGED_INPUTS", "True"])).resume_or_load(resume=True)


def permute_labels(path: Path) -> None:
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = annotation["category_id"] % len(CLASSES) + 1
    path.write_text(json.dumps(content))


def test_other_data_are_refused_and_can_be_allowed(run, caplog) -> None:
    permute_labels(run / "data" / "instances.json")
    refused(run, ChangedInputs, r"(?s)instances.json: \w{16} -> \w{16}.*SOLVER.ALLOW_CHANGED_INPUTS True")
    trainer = DynTrainer(build_cfg("", opts_of(run, SOLVER__ALLOW_CHANGED_INPUTS=True)))
    trainer.resume_or_load(resume=True)
    assert "going on with other data" in caplog.text
    image = run / "data" / "images" / "001.png"
    image.write_bytes(image.read_bytes() + b" ")
    refused(run, ChangedInputs, "image_root: 2 files, [0-9]+ bytes")


def test_replaced_weights_are_said(run, caplog) -> None:
    weights = run / "start.pth"
    shutil.copy(run / "out" / "model_0000000.pth", weights)
    trainer = DynTrainer(build_cfg("", opts_of(run, MODEL__WEIGHTS=weights)))
    began = trainer.checkpointer.metadata["inputs"]["weights"]
    assert began == {"MODEL.WEIGHTS": file_hash(weights)}
    trainer.iter = 0
    trainer.checkpointer.save("model_0000000")
    shutil.copy(run / "out" / "model_0000003.pth", weights)
    caplog.set_level(logging.WARNING, "dyn_d2")
    trainer = DynTrainer(build_cfg("", opts_of(run, MODEL__WEIGHTS=weights)))
    trainer.resume_or_load(resume=True)
    assert "MODEL.WEIGHTS is another file than the one that this run began with" in caplog.text
    assert trainer.checkpointer.metadata["inputs"]["weights"] == began


def test_checkpoints_of_before_are_resumed(run) -> None:
    content = model_of(run)
    del content["dyn_d2"]["inputs"], content["trainer"]["hooks"]["KeepScalars"]
    torch.save(content, run / "out" / "model_final.pth")
    permute_labels(run / "data" / "instances.json")
    DynTrainer(build_cfg("", opts_of(run))).resume_or_load(resume=True)


def test_fingerprint_of_records(tmp_path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"123")
    record = {"file_name": str(image), "image": torch.zeros(2, 2), "annotations": [{"bbox": [0, 0, 1.0, 1]}]}
    first = records_hash([record])
    (tmp_path / "moved").mkdir()
    moved = {**record, "file_name": shutil.copy(image, tmp_path / "moved")}
    assert records_hash([moved]) == first
    assert records_hash([{**record, "image": torch.ones(2, 2)}]) != first
    assert records_hash([{**record, "annotations": [{"bbox": [0, 0, 1.0, 2]}]}]) != first
    image.write_bytes(b"1234")
    assert records_hash([record]) != first
    DatasetCatalog.register("in_memory", lambda: [record])
    try:
        assert data_fingerprint("in_memory") == {"records": records_hash([record])}
        MetadataCatalog.get("in_memory").image_root = str(tmp_path / "moved")  # says nothing of the objects
        assert data_fingerprint("in_memory")["records"] == records_hash([record])
    finally:
        DatasetCatalog.remove("in_memory")
        MetadataCatalog.remove("in_memory")
    assert data_fingerprint("nowhere") == {}


# ------------------------------------------------------------------------------------------------------------- stages


class OneStage(Stage):
    """That starts from MODEL.WEIGHTS."""

    KEY = "FEW_SHOT.STAGE"

    def initial_weights(self, resume: bool) -> Path | None:
        return None


@pytest.fixture
def stage(tmp_path, monkeypatch) -> OneStage:
    """A stage whose processes only leave weights; it lists how each was called in ``commands``."""
    weights = tmp_path / "start.pth"
    torch.save({"model": {}}, weights)
    cfg = build_cfg("", tiny_opts(write_boxes(tmp_path / "data", 1), tmp_path, MODEL__WEIGHTS=weights))
    found = OneStage("base", tmp_path / "base", cfg)
    found.commands = []

    def process(command: list[str]) -> int:
        found.commands.append("--resume" in command)
        found.folder.mkdir(exist_ok=True)
        torch.save({"model": {"weight": torch.ones(9)}}, found.weights)
        (found.folder / "last_checkpoint").write_text("model_final.pth")
        return 0

    monkeypatch.setattr(stages, "run_process", process)
    run_stage(found, "", [])
    assert found.finished() and found.commands == [False]
    return found


def test_a_stage_without_its_weights_goes_on(stage, monkeypatch) -> None:
    stage.weights.write_bytes(stage.weights.read_bytes()[:-9])
    assert not stage.finished()
    run_stage(stage, "", [])
    assert stage.commands == [False, True] and stage.finished()
    stage.weights.unlink()  # and nothing else is left of it
    run_stage(stage, "", [])
    assert stage.commands == [False, True, False] and stage.finished()
    stage.weights.unlink()
    monkeypatch.setattr(stages, "run_process", lambda command: 0)
    with pytest.raises(StageError, match="ended without .*model_final.pth"):
        run_stage(stage, "", [])
    assert not (stage.folder / DONE).exists()


def test_results_of_other_inputs_are_not_taken(stage, tmp_path) -> None:
    json_file = tmp_path / "data" / "instances.json"
    before = json_file.read_bytes()
    permute_labels(json_file)
    with pytest.raises(
        StageError, match="(?s)other data or weights:.*instances.json: .*ALLOW_CHANGED_INPUTS True to keep"
    ):
        stage.finished()
    json_file.write_bytes(before)
    assert stage.finished()
    torch.save({"model": {"other": torch.ones(1)}}, tmp_path / "start.pth")
    with pytest.raises(StageError, match="MODEL.WEIGHTS: "):
        stage.finished()
    stage.cfg.SOLVER.ALLOW_CHANGED_INPUTS = True
    assert stage.finished()
    stage.cfg.SOLVER.ALLOW_CHANGED_INPUTS = False
    (tmp_path / "start.pth").unlink()  # what is not there any more cannot be compared
    assert stage.finished()


def test_done_json_of_before_and_a_damaged_one(stage) -> None:
    done = json.loads((stage.folder / DONE).read_text())
    del done["inputs"]
    (stage.folder / DONE).write_text(json.dumps(done))
    assert stage.finished()
    for text in ("", "[]", "{}", '{"fingerprint": 3}', '{"fingerprint": "a", "inputs": 3}'):
        (stage.folder / DONE).write_text(text)
        with pytest.raises(StageError, match="done.json is damaged: remove it"):
            stage.finished()


@pytest.mark.parametrize("key, value", [("seed", 5), ("shots", 2), ("unit", "image"), ("benchmark", "voc")])
def test_a_list_of_another_task_is_refused(tmp_path, key, value) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data", 4), tmp_path / "out", FEW_SHOT__STAGE="finetune", FEW_SHOT__SHOTS=1,
                     FEW_SHOT__SHOTS_DIR=tmp_path / "lists")  # fmt: skip
    drawn = build_cfg("", [*opts, "FEW_SHOT.SHOTS_DIR", ""])
    (name,) = drawn.DATASETS.TRAIN
    DatasetCatalog.get(name)
    task = FewShotTask.from_config(drawn)
    path = tmp_path / "lists" / "custom" / "seed0" / "1shot.json"
    path.parent.mkdir(parents=True)
    shutil.copy(task.shots_file, path)
    cfg = build_cfg("", opts)
    load_training_records(FewShotTask.from_config(cfg))
    before = data_fingerprint(name)
    assert before["1shot.json"] == file_hash(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: value}))
    assert data_fingerprint(name) != before
    apply_few_shot(cfg)
    with pytest.raises(ValueError, match=f"1shot.json is the K-shot list of {key} {value!r}, not"):
        load_training_records(FewShotTask.from_config(cfg))
