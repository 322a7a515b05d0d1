"""Compiling kernels: once, by one process, and never the reason for a failure."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tool_runs import environment

from dyn_d2.ops import build, channel_conv, message_passing, region_depthwise
from dyn_d2.ops.__main__ import main as ops_main

# No header of torch: compiles in a moment.
SOURCE = 'extern "C" int answer() { return 42; }\n'
needs_compiler = pytest.mark.skipif(not channel_conv.load(), reason="no compiler on this machine")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(build.COMPILE_VARIABLE, raising=False)
    build.load_kernel.cache_clear()
    yield tmp_path / "cache"
    build.load_kernel.cache_clear()


def write(folder: Path, text: str) -> tuple[Path]:
    (folder / "answer.cpp").write_text(text)
    return (folder / "answer.cpp",)


@pytest.mark.slow
@needs_compiler
def test_two_processes_at_once_compile_once(tmp_path, cache):
    sources = write(tmp_path, SOURCE)
    # What a build that was killed has left behind, with torch's lock file, which would be waited for without end.
    folder = cache / f"answer-{build._fingerprint(sources)}"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "answer.so").write_text("half a library")
    # Without the package around it, whose import takes longer than all the rest.
    program = (
        "import logging, pathlib, runpy, sys; logging.basicConfig(level=logging.INFO)\n"
        "load_kernel = runpy.run_path(sys.argv[1])['load_kernel']\n"
        "assert load_kernel('answer', (pathlib.Path(sys.argv[2]),))"
    )
    command = [sys.executable, "-c", program, build.__file__, str(sources[0])]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    logs = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], logs
    assert sorted("Compiled answer" in log for log in logs) == [False, True]


def test_a_compiler_error_is_one_warning(tmp_path, caplog):
    sources = write(tmp_path, "this is no C++")
    with caplog.at_level(logging.WARNING):
        assert not build.load_kernel("answer", sources) and not build.load_kernel("answer", sources)
    assert len(caplog.records) == 1 and "slower torch code runs instead" in caplog.text
    assert len(caplog.text) < 600


def test_no_compiler_at_all(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert not build.load_kernel("answer", write(tmp_path, SOURCE))
    assert "answer is not compiled" in caplog.text


def test_all_operators_are_compiled_on_request(monkeypatch, capsys):
    for operator in (channel_conv, region_depthwise):
        monkeypatch.setattr(operator, "load", lambda: True)
    monkeypatch.setattr(message_passing, "load", lambda device="cpu": True)
    assert ops_main() == 0 and "message_passing: compiled" in capsys.readouterr().out
    monkeypatch.setattr(message_passing, "load", lambda device="cpu": False)
    assert ops_main() == 1 and "message_passing: not compiled, slower torch code" in capsys.readouterr().out


@pytest.mark.slow
def test_command_without_a_compiler_says_why_once_for_each_operator(tmp_path):
    env = {**environment(), "PATH": str(tmp_path), build.CACHE_VARIABLE: str(tmp_path / "cache"), "CXX": "no-compiler"}
    run = subprocess.run([sys.executable, "-m", "dyn_d2.ops"], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "RuntimeWarning" not in run.stderr
    for name in ("channel_conv", "message_passing"):
        assert run.stderr.count(f"{name} is not compiled, slower torch code runs instead (") == 1


def test_switched_off(tmp_path, monkeypatch, cache):
    monkeypatch.setenv(build.COMPILE_VARIABLE, "0")
    assert not build.load_kernel("answer", write(tmp_path, SOURCE)) and not cache.exists()


def test_cache_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv(build.CACHE_VARIABLE, "/proc/nowhere")
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = build._cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(OSError, match=build.CACHE_VARIABLE):
        build._cache_folder()


def test_another_source_or_torch_is_another_library(tmp_path, monkeypatch):
    before = build._fingerprint(write(tmp_path, SOURCE))
    assert before == build._fingerprint(write(tmp_path, SOURCE)) != build._fingerprint(write(tmp_path, SOURCE + "\n"))
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert before != build._fingerprint(write(tmp_path, SOURCE))
