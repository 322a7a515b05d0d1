"""The embedded Detectron2 computes what a real Detectron2 computes: same parameters, outputs, losses and gradients.

Each backend runs in processes of its own, since both are named ``detectron2``; see model_parity_worker.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dyn_d2.backend import EMBEDDED_PATH

HERE = Path(__file__).parent
WORKER = HERE / "model_parity_worker.py"
MODELS = ["faster_rcnn_fpn", "faster_rcnn_c4", "mask_rcnn_fpn", "retinanet", "semantic_fpn"]
BACKENDS = ["detectron2", "embedded"]


def _environment(backend: str) -> dict[str, str]:
    """The environment of a process that imports this checkout and runs ``backend``."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [path for path in paths if Path(path).resolve() != EMBEDDED_PATH]
    root = str(HERE.parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *paths]), "DYN_D2_BACKEND": backend}


def _python(backend: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=_environment(backend), capture_output=True, text=True, check=False)


def _run(backend: str, *arguments: str) -> None:
    done = _python(backend, str(WORKER), *arguments)
    assert done.returncode == 0, f"the worker of the {backend} backend failed:\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Path]:
    """Folder of results of each backend, each with the checkpoints of the other loaded."""
    if _python("detectron2", "-c", "import detectron2._C").returncode != 0:
        pytest.skip("no real Detectron2 can be imported here: nothing to compare the embedded Detectron2 with")
    folders = {backend: tmp_path_factory.mktemp(backend) for backend in BACKENDS}
    _run("detectron2", str(folders["detectron2"]))
    _run("embedded", str(folders["embedded"]), "--load", str(folders["detectron2"]))
    _run("detectron2", str(folders["detectron2"]), "--load", str(folders["embedded"]))
    return folders


@pytest.fixture(scope="module", params=MODELS)
def pair(request, results) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the real and what the embedded Detectron2 computed for one model."""
    name = f"{request.param}.npz"
    return tuple(dict(np.load(results[backend] / name)) for backend in BACKENDS)


def _part(computed: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in computed.items() if key.startswith(f"{prefix}/")}


def _assert_close(pair, prefix: str, atol: float = 1e-4, rtol: float = 0.0) -> None:
    real, embedded = (_part(computed, prefix) for computed in pair)
    assert real.keys() == embedded.keys() and real
    for key, value in real.items():
        np.testing.assert_allclose(embedded[key], value, atol=atol, rtol=rtol, err_msg=key)


def test_both_backends_ran(pair) -> None:
    real, embedded = (Path(str(computed["backend"])) for computed in pair)
    assert embedded.is_relative_to(EMBEDDED_PATH) and not real.is_relative_to(EMBEDDED_PATH)


def test_parameters_have_the_same_names_shapes_and_order(pair) -> None:
    # The order matters too: optimizers store their state by position.
    real, embedded = pair
    assert real["keys"].tolist() == embedded["keys"].tolist()
    assert real["trained"].tolist() == embedded["trained"].tolist()


def test_one_seed_gives_the_same_initial_weights(pair) -> None:
    _assert_close(pair, "initial", atol=1e-6)


def test_outputs_agree(pair) -> None:
    # The rtol is that of float32: a box coordinate of 640 has no digit at 1e-5.
    _assert_close(pair, "output", rtol=1e-6)
    if _part(pair[0], "raw"):
        _assert_close(pair, "raw", rtol=1e-6)


def test_outputs_are_worth_comparing(pair) -> None:
    """Saturated scores or a single detection would agree whatever the backends do."""
    for key, value in _part(pair[0], "output").items():
        if key.endswith("scores"):
            assert len(np.unique(value[value < 0.9999])) > 10, key
        if key.endswith("pred_masks"):
            assert 0.01 < value.mean() < 0.99, key


def test_losses_agree(pair) -> None:
    _assert_close(pair, "loss", rtol=1e-5)


def test_gradients_agree(pair) -> None:
    _assert_close(pair, "gradient", atol=1e-7, rtol=1e-3)


def test_logged_scalars_agree(pair) -> None:
    if not _part(pair[0], "scalar"):
        pytest.skip("this model logs nothing in its forward pass")
    _assert_close(pair, "scalar", atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoint_of_the_other_backend_loads(results, backend: str, name: str) -> None:
    report = json.loads((results[backend] / f"{name}_loaded.json").read_text())
    assert report == {"missing": [], "unexpected": [], "different": []}
