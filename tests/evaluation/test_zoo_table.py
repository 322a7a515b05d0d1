"""The table of models: a row for the seeds of a model, with their mean and interval."""

import json
from pathlib import Path

import pytest

from dyn_d2.cli.zoo_table import main
from dyn_d2.evaluation.aggregate import estimate
from dyn_d2.evaluation.zoo_measured import rows_measured
from dyn_d2.evaluation.zoo_table import Row, read_words, rows_of, rows_of_cards, to_markdown
from dyn_d2.utils.errors import UserError


def _record(folder: Path, value: float, iterations: int = 100, **tasks) -> Path:
    folder.mkdir(parents=True)
    metrics = {"digits_test": {"classification": {"top1_accuracy": value}, **tasks}}
    record = {"metrics": metrics, "iterations": iterations, "train_sets": ["digits_train"], "seed": 1}
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def test_seeds_are_one_row_and_other_trainings_another(tmp_path) -> None:
    routes = {"routes": {"GFLOPs": 0.25}}
    for seed, value in enumerate((90.0, 92.0, 94.0)):
        _record(tmp_path / f"skipnet_seed{seed}", value, **routes)
    _record(tmp_path / "longer" / "skipnet_seed0", 97.0, 500)
    (tmp_path / "skipnet_seed1" / "model_final.pth").write_bytes(b"0" * 1_500_000)
    long, short = sorted(rows_of([tmp_path], {"skipnet": "dyn-d2 train"}), key=lambda row: -row.iterations)
    assert (short.name, short.values, short.gflops) == ("skipnet", [90.0, 92.0, 94.0], [0.25] * 3)
    # t(0.975, 2) is 4.303, s is 2
    assert short.cells() == (
        "skipnet", "`dyn-d2 train`", "digits_test", "classification top1_accuracy", "3", "92.0 ± 5.0", "0.25", "-",
        "100", "1.5", "-",
    )  # fmt: skip
    assert long.cells()[4:10] == ("1", "97.0", "-", "-", "500", "-")


def test_seeds_that_draw_other_shots_are_one_row_and_metrics_are_chosen(tmp_path) -> None:
    for seed, value in enumerate((20.0, 22.0)):
        folder = _record(tmp_path / f"tfa_cos_5shot_seed{seed}", 0.0)
        metrics = {"voc_all": {"bbox": {"AP": 9.0, "nAP50": value, "bAP50": 50.0}}}
        record = {"metrics": metrics, "iterations": 30, "train_sets": [f"voc_5shot_seed{seed}_train"], "seed": seed}
        (folder / "results.json").write_text(json.dumps(record))
    (row,) = rows_of([tmp_path])
    assert (row.metric, row.values) == ("bbox AP", [9.0, 9.0])
    base, novel = rows_of([tmp_path], metrics=["bbox/nAP50", "bbox/bAP50", "bbox/APr"])
    assert (base.metric, base.values) == ("bbox bAP50", [50.0, 50.0])
    assert (novel.metric, novel.values) == ("bbox nAP50", [20.0, 22.0])
    other = tmp_path / "other_rule" / "tfa_cos_5shot_seed1"
    _record(other, 0.0)
    (other / "results.json").write_text(json.dumps(record | {"few_shot": {"seed": 1, "max_objects": 3}}))
    again = tmp_path / "again" / "tfa_cos_5shot_seed1"
    _record(again, 0.0)
    (again / "results.json").write_text(json.dumps(record))
    rows = rows_of([tmp_path], metrics=["bbox/nAP50"])
    assert sorted(sorted(row.values) for row in rows) == [[20.0, 22.0], [22.0], [22.0]]  # no row has a seed twice
    with pytest.raises(UserError, match=r"no results.json of segm/AP in"):
        rows_of([tmp_path], metrics=["segm/AP"])
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--metrics", "nAP50"])


def test_models_in_different_places_are_never_seeds_of_one(tmp_path) -> None:
    for share, value in ((50, 60.0), (80, 80.0)):
        for seed in (0, 1):
            _record(tmp_path / f"slim_{share}" / f"seed{seed}" / "fixed", value + seed)
        _record(tmp_path / f"slim_{share}" / "seed0" / "fixed" / "validation", 99.0)  # what a checkpoint was chosen by
    for part in ("a", "b"):
        _record(tmp_path / part / "plain", 70.0)
    found = {row.name: row.values for row in rows_of([tmp_path])}
    assert found == {
        "slim_50/fixed": [60.0, 61.0], "slim_80/fixed": [80.0, 81.0], "a/plain": [70.0], "b/plain": [70.0]
    }  # fmt: skip
    assert [row.name for row in rows_of([tmp_path / "a" / "plain", tmp_path / "a"])] == ["plain"]  # once


def test_trainings_that_have_not_ended_and_undefined_values_are_left_out(tmp_path, caplog) -> None:
    for seed, (value, done) in enumerate(((80.0, 100), (20.0, 10), (82.0, 30), (None, 100))):
        folder = _record(tmp_path / f"plain_seed{seed}", value)
        record = json.loads((folder / "results.json").read_text()) | {"iteration_evaluated": done}
        (folder / "results.json").write_text(json.dumps(record))
    (tmp_path / "plain_seed2" / "model_final.pth").write_bytes(b"")  # it was stopped early
    (row,) = rows_of([tmp_path])
    assert row.values == [80.0, 82.0]
    assert "plain_seed1/results.json is left out: its training was at iteration 10 of 100" in caplog.text


def test_cards_of_shipped_models_are_rows_too(tmp_path) -> None:
    card = {"command": "dyn-d2 few-shot", "data": "boxes", "metric": "bbox nAP50", "values": [50.0], "iterations": 3}
    (row,) = rows_of_cards({"small": card}, {"small": 900_000})
    assert row.cells() == (
        "small",
        "`dyn-d2 few-shot`",
        "boxes",
        "bbox nAP50",
        "1",
        "50.0",
        "-",
        "-",
        "3",
        "0.9",
        "small",
    )
    assert "| small" in to_markdown([row])


def test_the_command_writes_a_page(tmp_path, capsys) -> None:
    _record(tmp_path / "a", 90.0)
    assert main([str(tmp_path), "--output", str(tmp_path / "MODEL_ZOO.md")]) == 0
    assert "| a " in (tmp_path / "MODEL_ZOO.md").read_text()
    with pytest.raises(UserError, match="none does not exist"):
        rows_of([tmp_path / "none"])
    (tmp_path / "a" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="is no record of an evaluation"):
        rows_of([tmp_path])


def test_words_of_ones_own_are_on_the_page(tmp_path) -> None:
    _record(tmp_path / "run" / "a", 90.0)
    (row,) = rows_of([tmp_path / "run"])
    words, page = tmp_path / "words.yaml", tmp_path / "page.md"
    words.write_text(f"about: What it covers.\ndata: {{{row.data}: ten pictures}}\ncommands: {{a: dyn-d2 train}}\n")
    assert main([str(tmp_path / "run"), "--commands", str(words), "--output", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# Models\n\nWhat it covers.\n\nMade by") and "| ten pictures" in text
    assert f"| {row.data} " not in text and "`dyn-d2 train`" in text
    words.write_text("a: dyn-d2 train\n")
    assert read_words(words).commands == {"a": "dyn-d2 train"}
    words.write_text("commands: {a: b}\nmodels: {}\n")
    with pytest.raises(UserError, match="sections commands, models: about, data, commands, measured are known"):
        read_words(words)


def test_the_page_of_this_repository_is_what_the_tool_writes(tmp_path) -> None:
    root = Path(__file__).resolve().parents[2]
    page = tmp_path / "page.md"
    assert main(["--commands", str(root / "docs" / "results" / "zoo.yaml"), "--output", str(page)]) == 0
    assert page.read_text() == (root / "MODEL_ZOO.md").read_text()


def _measured(tmp_path: Path, **changed) -> list[Row]:
    numbers = {"one": {"a/0": {"top1": 0.5}, "a/1": {"top1": 0.7}, "b/0": {"top1": 0.1}}, "cost": [2.0, 4.0]}
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    model = {"command": "dyn-d2 train", "at": ["one", "a/*", "top1"], "scale": 100, "gflops": ["cost", "*"], "ms": 7}
    group = {"file": "numbers.json", "metric": "classification top1", "data": "ten", "models": {"a": model | changed}}
    return rows_measured([group], tmp_path)


def test_numbers_that_are_kept_in_a_file_are_rows(tmp_path) -> None:
    (row,) = _measured(tmp_path, iterations=9)
    assert (row.name, row.how, row.data, row.iterations) == ("a", "dyn-d2 train", "ten", 9)
    assert row.metric == "classification top1"
    assert row.values == [50.0, pytest.approx(70.0)] and row.gflops == [2.0, 4.0] and row.milliseconds == [7.0]
    assert row.cells()[4:9] == ("2", str(estimate(row.values)), "3", "7", "9")
    (last,) = _measured(tmp_path, gflops=["cost", 1])
    assert last.gflops == [4.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"at": ["one", "c/*", "top1"]}, "numbers.json, at of a: there is no number at one > c/\\* > top1"),
        ({"at": ["one", "a/0"]}, "there is no number at one > a/0"),
        ({"time": 3}, "a of 'measured' has the fields .*'time'.* knows"),
    ],
)
def test_a_way_that_leads_nowhere_is_named(tmp_path, changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _measured(tmp_path, **changed)
    with pytest.raises(UserError, match="a group of 'measured' has the fields \\['file'\\]"):
        rows_measured([{"file": "numbers.json"}], tmp_path)
    with pytest.raises(UserError, match="none.json, which 'measured' names, cannot be read"):
        rows_measured([{"file": "none.json", "metric": "m", "data": "d", "models": {}}], tmp_path)
