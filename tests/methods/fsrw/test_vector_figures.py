"""Pictures of class vectors and of learning speed, and the numbers in them."""

import json

import numpy as np
import pytest
import torch

from dyn_d2.cli import convergence
from dyn_d2.evaluation.convergence import draw_convergence, read_curve, training_seconds
from dyn_d2.methods.fsrw.cli import draw_vectors
from dyn_d2.methods.fsrw.figures import by_variance, draw_heat_map, draw_plane, plane, principal_plane
from dyn_d2.methods.fsrw.reweighting import ClassVectors


def clusters(classes: int = 4, each: int = 6) -> ClassVectors:
    centres = 8 * torch.randn(classes, 12)
    return ClassVectors.mean_of({f"class {i}": c + torch.randn(each, 12) for i, c in enumerate(centres)})


def test_features_are_ordered_by_variance():
    values = np.array([[0.0, 1, 5, 2], [0, 2, -5, 2.5], [0, 3, 5, 2]])
    assert by_variance(values).tolist() == [2, 1, 3, 0]
    vectors = ClassVectors(list("abc"), torch.tensor(values))
    axis = draw_heat_map(vectors).axes[0]
    assert axis.images[0].get_array().tolist() == values[:, [2, 1, 3, 0]].tolist()
    assert [label.get_text() for label in axis.get_yticklabels()] == list("abc")


def test_principal_plane_keeps_distances_of_flat_points():
    flat = np.random.default_rng(0).normal(size=(5, 2))
    points = (
        np.concatenate([flat, np.zeros((5, 3))], axis=1) @ np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    )
    projected = principal_plane(points)
    apart = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (flat, projected)]
    np.testing.assert_allclose(*apart, atol=1e-9)
    assert principal_plane(np.ones((1, 4))).tolist() == [[0, 0]]


def test_plane_keeps_clusters_together():
    vectors = clusters()
    points, method = plane(torch.cat(vectors.samples).numpy())
    assert method == "t-SNE" and points.shape == (24, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    label = np.arange(24) // 6
    assert (label[distances.argmin(1)] == label).mean() > 0.9
    assert plane(np.eye(3))[1] == "principal components"


def test_means_stand_among_their_samples(tmp_path):
    axis = draw_plane(clusters(), novel=["class 3"]).axes[0]
    assert [text.get_text() for text in axis.texts] == [f"class {i}" for i in range(4)]
    assert len({text.get_color() for text in axis.texts}) == 2
    clusters(2).save(tmp_path / "a.npz")
    arguments = [str(tmp_path / "a.npz"), "--output", str(tmp_path / "pictures"), "--novel"]
    assert draw_vectors.main([*arguments, "class 1"]) == 0
    assert all((tmp_path / "pictures" / name).stat().st_size > 1000 for name in ("heat_map.png", "plane.png"))
    with pytest.raises(ValueError, match="names class 9"):
        draw_vectors.main([*arguments, "class 9"])


def run(folder, values: dict[int, float]):
    folder.mkdir()
    rows = [
        {"iteration": i - 1, "total_loss": 1.0} | ({"bbox/nAP50": v} if v is not None else {})
        for i, v in values.items()
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_seconds_of_training_leave_out_the_evaluations(tmp_path):
    rows = [
        {"iteration": 19, "time": 0.5},
        {"iteration": 19, "bbox/nAP50": 1.0},
        {"iteration": 39, "time": 0.25},
        {"iteration": 44, "time": 2.0},
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training_seconds(tmp_path) == 20 * 0.5 + 20 * 0.25 + 5 * 2.0


def test_curves_are_what_was_evaluated(tmp_path):
    fast = run(tmp_path / "fast", {10: 5.0, 15: None, 20: 20.0})
    slow = run(tmp_path / "slow", {10: 1.0, 20: float("nan"), 30: 40.0})
    assert read_curve(fast) == {10: 5.0, 20: 20.0} and read_curve(slow) == {10: 1.0, 30: 40.0}
    lines = draw_convergence({name: {"nAP50": read_curve(tmp_path / name)} for name in ("fast", "slow")}).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.125, 0.5], [0.025, 1.0]]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert convergence.main([f"a={fast}", f"b={slow}", "--absolute", "--output", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").stat().st_size > 1000
    rows = [{"iteration": 9, "total_loss": 1.0}, {"iteration": 10, "bbox/nAP50": 7.0}]  # as a run's last lines are
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended" / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    assert read_curve(tmp_path / "ended") == {10: 7.0}
    with pytest.raises(ValueError, match=r"no AP of boxes \(there: nAP50\)"):
        read_curve(fast, "AP")
    with pytest.raises(FileNotFoundError, match="no OUTPUT_DIR"):
        read_curve(tmp_path)


def test_folders_have_names_of_their_own(tmp_path, monkeypatch):
    for name in ("a/seed0", "b/seed0", "b/x=1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        run(tmp_path / name, {10: 5.0})
    folders = [str(tmp_path / name) for name in ("a/seed0", "b/seed0", "b/x=1")]
    assert convergence.main([*folders, "--output", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert list(convergence.named_folders(folders)) == ["a/seed0", "b/seed0", "x=1"]
    found = convergence.named_folders([*folders[1:], f"mine={folders[2]}"])
    assert found == {"seed0": folders[1], "x=1": folders[2], "mine": folders[2]}
    monkeypatch.chdir(tmp_path / "a" / "seed0")
    assert list(convergence.named_folders([".", "../../b/seed0/"])) == ["a/seed0", "b/seed0"]
    with pytest.raises(ValueError, match="two runs are called mine"):
        convergence.named_folders(["mine=a", "mine=b"])
    with pytest.raises(ValueError, match="5 runs are given"):
        convergence.named_folders(["a"] * 5)
    with pytest.raises(ValueError, match="mine has no folder"):
        convergence.named_folders(["mine="])
    with pytest.raises(FileNotFoundError, match="no OUTPUT_DIR"):
        convergence.main(["nothing"])
