"""The table over methods, splits and seeds, and the pictures of a trained model."""

import json

import numpy as np
import pytest

from dyn_d2.evaluation.aggregate import estimate
from dyn_d2.methods.tafe_net.benchmark import MEAN, Cell, rows
from dyn_d2.methods.tafe_net.cli.benchmark import main, parse
from dyn_d2.methods.tafe_net.cli.draw import main as draw

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.TAFE_NET.FC_DIMS", "[16]", "SOLVER.MAX_ITER", "30", "SOLVER.STEPS", "()",
    "ZERO_SHOT.CUSTOM.FOLDS", "2", "SOLVER.IMS_PER_BATCH", "16", "SOLVER.REFERENCE_BATCH", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Keys of own data whose features are a noisy map of the classes' descriptions."""
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    vectors, mapping = rng.random((len(NAMES), 6)), rng.normal(size=(6, 12))
    (folder / "classes.json").write_text(json.dumps(dict(zip(NAMES, vectors.tolist(), strict=True))))
    for name, each in (("train", 12), ("test", 6)):
        labels = np.repeat(np.arange(len(NAMES)), each)
        features = vectors[labels] @ mapping + 0.1 * rng.normal(size=(len(labels), 12))
        np.savez(folder / f"{name}.npz", features=features.astype(np.float32), labels=np.array(NAMES)[labels])
    files = {"TRAIN": "train.npz", "TEST": "test.npz", "CLASSES": "classes.json"}
    return [word for key, file in files.items() for word in (f"ZERO_SHOT.CUSTOM.{key}", str(folder / file))]


@pytest.fixture(scope="module")
def table(data, tmp_path_factory):
    """A finished table, and its command."""
    output = tmp_path_factory.mktemp("table")
    command = ["--config-file", "TAFENet/voc_crops.yaml", "--unseen", "cat,dog", "--methods", "tafe_net,eszsl"]
    command += ["--seeds", "0-1", "--calibrate", "--choose", "SOLVER.BASE_LR=0.001,0.01", *data, *SMALL]
    command += ["OUTPUT_DIR", str(output)]
    assert main(command) == 0
    return output, command


def test_the_table_has_all_rows_and_says_what_was_chosen(table, monkeypatch) -> None:
    output, command = table
    record = json.loads((output / "benchmark.json").read_text())
    assert set(record["rows"]) == {"unseen1/tafe_net", "unseen1/eszsl"}
    row = record["rows"]["unseen1/tafe_net"]
    values = [record["single"][f"unseen1/tafe_net/seed{seed}"]["H"] for seed in (0, 1)]
    assert row["H"]["mean"] == pytest.approx(np.mean(values)) and row["H"]["seeds"] == 2
    assert record["rows"]["unseen1/eszsl"]["gain"] is None and record["rows"]["unseen1/eszsl"]["H"]["seeds"] == 1
    chosen = record["chosen_on_folds"]["unseen1/tafe_net"]
    assert len(chosen["tried"]) == 2 and chosen["keys"][0] == "SOLVER.BASE_LR"
    assert chosen["metrics"]["H"] == pytest.approx(max(chosen["tried"].values()))
    assert len(record["chosen_on_folds"]["unseen1/eszsl"]["regularisers"]) == 2
    text = (output / "benchmark.md").read_text()
    assert "ESZSL" in text and "Student" in text
    # The same command trains nothing again.
    monkeypatch.setattr("dyn_d2.methods.tafe_net.trainings.DynTrainer", None)
    assert main(command) == 0
    assert json.loads((output / "benchmark.json").read_text())["single"] == record["single"]


def test_a_saved_model_is_evaluated_to_the_numbers_of_the_table(table, data) -> None:
    """With the penalty that was chosen, by the ordinary evaluation."""
    from dyn_d2.checkpoint.model import model_of
    from dyn_d2.config.derive import build_cfg
    from dyn_d2.engine.trainer import DynTrainer

    output, _ = table
    record = json.loads((output / "benchmark.json").read_text())
    folder = output / "tafe_net_unseen1_seed0"
    penalty = record["chosen_on_folds"]["unseen1/tafe_net"]["seen_penalty"]
    cfg = build_cfg(str(folder / "config.yaml"), ["ZERO_SHOT.SEEN_PENALTY", str(penalty)])
    model, _ = model_of(cfg, str(folder / "model_final.pth"))
    results = DynTrainer.test(cfg, model)
    assert results["zero_shot"] == pytest.approx(record["single"]["unseen1/tafe_net/seed0"])


def test_pictures_and_their_numbers(table, tmp_path, capsys) -> None:
    weights = ["--weights", str(table[0] / "tafe_net_unseen1_seed0" / "model_final.pth"), "--output", str(tmp_path)]
    assert draw([*weights, "--classes", "ant,cat", "--each", "4", "--count", "3"]) == 0
    pairs = json.loads((tmp_path / "embeddings.json").read_text())["pairs"]
    assert len(pairs) == 16 and (tmp_path / "embeddings.png").stat().st_size > 1000
    assert {(pair["class"], pair["task"]) for pair in pairs} == {(a, b) for a in ("ant", "cat") for b in ("ant", "cat")}
    found = json.loads((tmp_path / "retrievals.json").read_text())["retrievals"]
    assert set(found) == {"cat", "dog"} and all(len(row) == 3 for row in found.values())
    for name, row in found.items():
        assert [item["right"] for item in row] == [item["class"] == name for item in row]
        assert row[0]["share"] >= row[1]["share"] >= row[2]["share"]
    assert (tmp_path / "retrievals.png").stat().st_size > 1000 and "of 6 best images of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--classes names cow"):
        draw([*weights, "--classes", "cow"])
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml beside"):
        draw(["--weights", str(tmp_path / "x.pth")])


def test_splits_are_averaged_and_paired_by_hand() -> None:
    values = {("a", 0): 10, ("a", 1): 14, ("b", 0): 30, ("b", 1): 30}
    found = {Cell("tafe_net", split, seed): {"H": float(value)} for (split, seed), value in values.items()}
    found |= {Cell("eszsl", split, seed): {"H": 8.0} for split in "ab" for seed in (0, 1)}
    made = {(row.split, row.method): row for row in rows(found, ("H",))}
    one = made["a", "tafe_net"]
    assert one.metrics["H"].mean == 12 and one.metrics["H"].half_width == pytest.approx(
        12.706 * 2**1.5 / 2**0.5, rel=1e-3
    )
    assert one.gain.mean == 4 and one.gain.half_width == one.metrics["H"].half_width
    mean = made[MEAN, "tafe_net"]
    assert mean.metrics["H"] == estimate([12.0, 30.0]) and mean.gain == estimate([4.0, 22.0])
    assert made["b", "tafe_net"].metrics["H"].half_width == 0 and made[MEAN, "eszsl"].gain is None


def test_what_the_command_refuses(data, tmp_path, capsys) -> None:
    config = ["--config-file", "TAFENet/digit_numbers.yaml"]
    for words, message in (
        (["--methods", "tafe"], "unknown method tafe: use tafe_net"),
        (["--sets", "a", "--unseen", "b"], "two ways to name splits"),
        (["--jobs", "0"], "--jobs: 0 has to be a number of at least 1"),
        (["--choose", "SOLVER.BASE_LR"], "invalid setting value"),
    ):
        with pytest.raises(SystemExit):
            parse([*config, *words])
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="eszsl has something to choose, but number_attributes_1 has no folds"):
        main([*config, "--methods", "eszsl", "--sets", "number_attributes_1", "OUTPUT_DIR", str(tmp_path)])
    for words, message in (
        (["ZERO_SHOT.CLASSES", "more.json"], "adds classes that have no images here"),
        (["--calibrate", *data, "ZERO_SHOT.SEEN_PENALTY", "4.0"], "and --calibrate chooses it: give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            options = [word for word in words if word.startswith("--")]
            main([*config, *options, "--sets", "number_attributes_1", *(w for w in words if w not in options)])


def test_the_penalty_of_the_config_holds_where_none_is_chosen(table, data, tmp_path) -> None:
    output, command = table
    base = [word for word in command if word != "--calibrate"]
    at = base.index("--choose")
    base = [*base[:at], *base[at + 2 :]][:-2]
    found = {}
    for penalty in ("0.0", "1000.0"):
        folder = tmp_path / penalty
        assert main([*base, "OUTPUT_DIR", str(folder), "ZERO_SHOT.SEEN_PENALTY", penalty]) == 0
        single = json.loads((folder / "benchmark.json").read_text())["single"]
        found[penalty] = single["unseen1/tafe_net/seed0"]
    assert found["1000.0"]["s"] == 0 and found["1000.0"]["u"] == pytest.approx(found["0.0"]["T1"])
