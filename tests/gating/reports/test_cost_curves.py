"""dyn-d2 cost-curves on made-up results."""

import json

import pytest

from dyn_d2.gating.cli import cost_curves


def _training(folder, accuracy: float, gflops: float | None, metric: str = "top1_accuracy"):
    task = "classification" if metric == "top1_accuracy" else "bbox"
    results = {task: {metric: accuracy}} | ({} if gflops is None else {"routes": {"GFLOPs": gflops}})
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"metrics": {"digits_test": results}}))
    return str(folder)


def test_lines_from_the_cheapest_on(tmp_path, capsys):
    actor = [_training(tmp_path / f"actor{i}", 90 + i, 0.02 + 0.01 * i) for i in (2, 0, 1)]
    static = [_training(tmp_path / "static1", 88.5, 0.015)]
    picture = tmp_path / "curves.png"
    assert cost_curves.main(["--line", "actor", *actor, "--line", "static", *static, "--output", str(picture)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[2].strip() for row in rows[-4:]] == ["actor0", "actor1", "actor2", "static1"]
    assert "15" in rows[-1] and "88.5" in rows[-1] and picture.stat().st_size > 5000


def test_what_cannot_be_drawn_is_named(tmp_path):
    def run(*folders: str):
        cost_curves.main(["--line", "a", *folders, "--output", str(tmp_path / "a.png")])

    good = _training(tmp_path / "good", 90, 0.02)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="plain tells no multiply-adds"):
        run(_training(tmp_path / "plain", 90, None))
    with pytest.raises(ValueError, match="judged by AP and top1_accuracy"):
        run(good, _training(tmp_path / "detector", 40, 1.0, "AP"))
    with pytest.raises(SystemExit):
        run()
