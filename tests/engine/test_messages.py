"""What a user gets to see when something given is wrong: one message that names it, before the first iteration."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_detection import tiny_opts, write_boxes
from tool_runs import run_tool, train_net_here


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("good")
    return tiny_opts(write_boxes(folder, 4), folder / "out")


@pytest.fixture(scope="module")
def base(good, tmp_path_factory) -> str:
    """An (untrained) base checkpoint."""
    from dyn_d2.config.derive import build_cfg
    from dyn_d2.engine.trainer import DynTrainer

    trainer = DynTrainer(build_cfg("", [*good, "OUTPUT_DIR", str(tmp_path_factory.mktemp("base"))]))
    trainer.checkpointer.save("base")
    return f"{trainer.cfg.OUTPUT_DIR}/base.pth"


def message(monkeypatch, *arguments: str) -> str:
    """What train_net.py ends with."""
    with pytest.raises(SystemExit) as caught:
        train_net_here(monkeypatch, *arguments)
    assert isinstance(caught.value.code, str) and caught.value.code.startswith("train_net.py: ")
    return caught.value.code


@pytest.mark.parametrize(
    "more, named",
    [
        (["SOLVER.BASE_RL", "1"], ("SOLVER.BASE_RL", "SOLVER.BASE_LR")),
        (["SOLVER.BASE_LR", "fast"], ("SOLVER.BASE_LR", "fast")),
        (["SOLVER.BASE_LR"], ("odd",)),
        (["MODEL.META_ARCHITECTURE", "Nothing"], ("Nothing", "META_ARCH")),
        (["MODEL.WEIGHTS", "/nowhere.pth"], ("/nowhere.pth", "MODEL.WEIGHTS")),
        (["MODEL.KEYPOINT_ON", "True"], ("MODEL.KEYPOINT_ON", "use False")),
        (["MODEL.LOAD_PROPOSALS", "True"], ("MODEL.LOAD_PROPOSALS", "use False")),
        (["MODEL.FREEZE", "['back_bone']"], ("back_bone", "backbone")),
        (["FEW_SHOT.METHOD", "tfa"], ("FEW_SHOT.METHOD", "tfa_cos")),
        (["FEW_SHOT.CUSTOM.NOVEL_CLASSES", "['yelow']"], ("yelow", "yellow")),
        (["FEW_SHOT.STAGE", "finetune", "FEW_SHOT.SHOTS", "50"], ("yellow (3)", "50 shots")),
        (["FEW_SHOT.BENCHMARK", "coco"], ("DETECTRON2_DATASETS", "instances_train2014.json")),
        (["FEW_SHOT.BENCHMARK", "", "DATASETS.TRAIN", "('mine',)"], ("mine", "not registered")),
        (["FEW_SHOT.BENCHMARK", ""], ("DATASETS.TRAIN",)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_keys_values_and_paths(monkeypatch, good, more: list[str], named: tuple[str, ...]) -> None:
    text = message(monkeypatch, *good, *more)
    assert all(part in text for part in named), text


def test_missing_files_are_said_before_the_whole_config_is_logged(monkeypatch, good, tmp_path) -> None:
    message(monkeypatch, *good, "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", "/nowhere.pth")
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "/nowhere.pth" in log and "VIS_PERIOD" not in log


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_number_of_processes(monkeypatch, capsys, tmp_path, given: str) -> None:
    from dyn_d2.engine.stages import train_all

    for command in (lambda: train_net_here(monkeypatch, "--num-gpus", given, "OUTPUT_DIR", str(tmp_path / "out")),
                    lambda: train_all(lambda *_: pytest.fail("planned"), None)):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            command()
        assert caught.value.code == 2 and "--num-gpus: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_device_that_is_not_there(monkeypatch, good) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "MODEL.DEVICE cpu" in message(monkeypatch, *good, "MODEL.DEVICE", "cuda")


def test_config_file_that_is_no_yaml(monkeypatch, good, tmp_path) -> None:
    (tmp_path / "bad.yaml").write_text("MODEL: [1, 2\nSOLVER: {")
    assert "bad.yaml is no valid yaml" in message(monkeypatch, "--config-file", str(tmp_path / "bad.yaml"), *good)
    assert "none.yaml does not exist" in message(monkeypatch, "--config-file", "none.yaml", *good)


def annotation(**values) -> Callable[[dict, Path], None]:
    return lambda content, images: content["annotations"][0].update(values)


def cut_image(content: dict, images: Path) -> None:
    data = (images / "002.png").read_bytes()
    (images / "002.png").write_bytes(data[: len(data) // 2])


DEFECTS = {
    "unknown category": (annotation(category_id=77), ("category_id 77", "check-data --json")),
    "outside": (annotation(bbox=[50, 30, 40, 40]), ("annotation 1", "leaves the image of 64 x 48", "outside (1)")),
    "empty": (annotation(bbox=[5, 5, 0, 9]), ("annotation 1", "width 0", "empty_box (1)")),
    "not finite": (annotation(bbox=[5, float("nan"), 4, 9]), ("annotation 1", "nan", "check-data --json")),
    "unreadable": (cut_image, ("002.png", "unreadable_image (1)")),
    "missing": (lambda content, images: (images / "002.png").unlink(), ("002.png", "missing_image (1)")),
    "size": (lambda content, images: content["images"][0].update(width=99), ("001.png", "is 64 x 48", "99 x 48")),
}


def spoilt(folder: Path, spoil: Callable[[dict, Path], None]) -> list[str]:
    path = write_boxes(folder, 4)
    content = json.loads(path.read_text())
    spoil(content, path.parent / "images")
    path.write_text(json.dumps(content))
    return tiny_opts(path, folder / "out")


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_of_the_data(monkeypatch, tmp_path, defect: str) -> None:
    spoil, named = DEFECTS[defect]
    text = message(monkeypatch, *spoilt(tmp_path, spoil))
    assert all(part in text for part in named), text


@pytest.mark.parametrize("workers", ["0", "1"])
def test_unreadable_image_without_preflight_is_no_skip(monkeypatch, tmp_path, workers: str) -> None:
    opts = [*spoilt(tmp_path, cut_image), "SOLVER.PREFLIGHT", "False", "DATALOADER.NUM_WORKERS", workers]
    text = message(monkeypatch, *opts)
    assert "1 of the 2 images of this batch cannot be used" in text and "002.png" in text and "check-data" in text


@pytest.mark.slow
def test_nan_loss(monkeypatch, good, tmp_path, capsys) -> None:
    text = message(monkeypatch, *good, "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", "1e12", "SOLVER.MAX_ITER", "9",
                   "SOLVER.WARMUP_ITERS", "0", "SOLVER.PREFLIGHT", "False")  # fmt: skip
    assert "Learning rate: 1e+12" in text and "/images/00" in text
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.slow
def test_evaluation_of_another_class_count_in_a_process(good, base) -> None:
    run = run_tool("train_net", "--eval-only", *good, "MODEL.WEIGHTS", base, "FEW_SHOT.STAGE", "finetune",
                   "FEW_SHOT.SHOTS", "1")  # fmt: skip
    assert run.returncode == 1 and "Traceback" not in run.stdout + run.stderr
    assert "3 classes (red, green, blue), but MODEL.ROI_HEADS.NUM_CLASSES is 4" in run.stderr


def test_evaluation_with_missing_parameters(monkeypatch, good, base) -> None:
    text = message(monkeypatch, "--eval-only", *good, "MODEL.WEIGHTS", base, "MODEL.FPN.NORM", "BN")
    assert "missing in the file: backbone.fpn_lateral3.norm" in text and "ALLOW_PARTIAL_WEIGHTS" in text
    assert "set MODEL.WEIGHTS" in message(monkeypatch, "--eval-only", *good)


def test_checkpoint_that_runs_code(monkeypatch, good, tmp_path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for name in ("bomb.pth", "bomb.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps({"model": Bomb()}))
        assert name in message(monkeypatch, *good, "MODEL.WEIGHTS", str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
