"""Which engine an import of dyn_d2 leads to; each case is a fresh process."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from warm_processes import run_warm

ROOT = Path(__file__).resolve().parents[1]
CHOOSE = """
from dyn_d2.backend import choose_backend
print("chose", choose_backend())
import detectron2
print(detectron2.__file__)
"""


def _real_is_installed() -> bool:
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('detectron2') is None)"
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ""}, cwd="/").returncode == 0


# A process that is forked begins with the paths of this one, among them that of the embedded engine.
AS_IF_FRESH = "import sys; sys.path[:] = [path for path in sys.path if not path.endswith('dyn_d2/embedded')]\n"


def _run(code: str, engine: str | None, path: tuple = ()) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "DYN_D2_BACKEND"}
    env["PYTHONPATH"] = os.pathsep.join([*map(str, path), str(ROOT)])
    if engine is not None:
        env["DYN_D2_BACKEND"] = engine
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(AS_IF_FRESH + code)
        return run_warm([script], "/", env, 300)


@pytest.fixture
def fake_detectron2(tmp_path):
    """An installed Detectron2 of which only the compiled part loads, or does not."""

    def make(broken: bool) -> Path:
        package = tmp_path / "detectron2"
        package.mkdir()
        (package / "__init__.py").write_text("__version__ = '0.6'\n")
        (package / "_C.py").write_text("raise ImportError('undefined symbol: _ZN5torch')\n" if broken else "")
        return tmp_path

    return make


@pytest.mark.slow
def test_embedded_where_nothing_is_installed_or_where_forced():
    forced = _run(CHOOSE, "embedded")
    assert "chose embedded" in forced.stdout and "dyn_d2/embedded/detectron2" in forced.stdout, forced.stderr
    automatic = _run(CHOOSE, None)
    expected = "chose detectron2" if _real_is_installed() else "chose embedded"
    assert expected in automatic.stdout, automatic.stderr


@pytest.mark.slow
def test_forced_embedded_wins_over_an_installed_one(fake_detectron2):
    run = _run(CHOOSE, "embedded", path=(fake_detectron2(broken=False),))
    assert "dyn_d2/embedded/detectron2" in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("engine", "message"),
    [("caffe", "use auto, detectron2 or embedded"), ("detectron2", "no Detectron2 is installed")],
)
def test_wrong_wish_is_one_clear_error(engine, message):
    if engine == "detectron2" and _real_is_installed():
        pytest.skip("a real Detectron2 is installed here")
    run = _run("import dyn_d2", engine)
    assert run.returncode != 0 and message in run.stderr


def test_broken_build_is_named_and_not_silently_replaced(fake_detectron2):
    run = _run("import dyn_d2", None, path=(fake_detectron2(broken=True),))
    assert run.returncode != 0
    assert "undefined symbol" in run.stderr and "DYN_D2_BACKEND=embedded" in run.stderr


def test_imported_too_early_is_an_error(fake_detectron2):
    run = _run("import detectron2, dyn_d2", "embedded", path=(fake_detectron2(broken=False),))
    assert run.returncode != 0 and "import dyn_d2 first" in run.stderr


@pytest.mark.slow
def test_embedded_path_is_appended_not_put_first():
    if importlib.util.find_spec("detectron2") is not None and _real_is_installed():
        pytest.skip("a real Detectron2 is installed here")
    run = _run("import dyn_d2, sys; print(sys.path[-1])", None)
    assert run.stdout.strip().endswith("dyn_d2/embedded"), run.stderr
