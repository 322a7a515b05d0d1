"""What ends with a message, and what keeps its traceback."""

import errno
import logging
import os

import pytest

from dyn_d2.utils.errors import UserError, one_message, run_tool, wrong_input


@pytest.mark.parametrize(
    "error",
    [
        ValueError("rate is wrong"),
        FileNotFoundError("no such file"),
        KeyError("no key x"),
        AssertionError("an odd number"),
        UserError("wrong checkpoint"),
    ],
)
def test_wrong_input_ends_with_its_message(error, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["tools/some.py"])

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == f"some.py: {error.args[0]}"


@pytest.mark.parametrize("size", [10, 10**6])
def test_nobody_reads_the_output_any_more(monkeypatch, size) -> None:
    """As ``dyn-d2 configs | head``: neither a message nor a complaint of the interpreter at its end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(SystemExit) as caught:
            run_tool(lambda: print("x" * size))
        assert caught.value.code == (141 if size > 10**5 else None)


@pytest.mark.parametrize(
    "error", [KeyError("name"), TypeError("not callable at all"), RecursionError(), AssertionError()]
)
def test_what_looks_like_a_bug_says_so_and_leaves_its_traceback(error, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("dyn_d2"), "handlers", [])  # those of other tests have files
    monkeypatch.setattr("sys.argv", ["tools/some.py"])
    with pytest.raises(SystemExit) as caught, one_message(), wrong_input():
        raise error
    (file,) = tmp_path.iterdir()
    text = caught.value.code
    assert text.startswith(f"some.py: {type(error).__name__}: ") and "\n" not in text
    assert f"a defect of dyn_d2, please report it with the traceback, which is in {file}" in text
    assert "Traceback" in file.read_text() and type(error).__name__ in file.read_text()


def no_room() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", "/data/out/model_0000001.pth")


@pytest.mark.parametrize(
    "error, told",
    [
        (no_room(), "No space left on device: /data/out/model_0000001.pth: make room. --resume goes on"),
        (
            OSError(errno.EROFS, "Read-only file system", "/out/log"),
            "Read-only file system: /out/log: make it writable",
        ),
        (MemoryError(), "there is no more memory: lower SOLVER.IMS_PER_BATCH"),
        (
            RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed. "),
            "DataLoader worker (pid 123) is killed by signal: Killed: a process that loads images was killed",
        ),
        (RuntimeError("CUDA out of memory. Tried it"), "CUDA out of memory. Tried it: lower SOLVER.IMS"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "as on a full disk"),
        (FileExistsError(errno.EEXIST, "File exists", "/out"), "File exists: '/out'"),
    ],
)
def test_what_the_machine_refuses_is_no_defect(error, told) -> None:
    for inside in (False, True):
        with pytest.raises(SystemExit) as caught, one_message():
            if inside:
                with wrong_input():
                    raise error
            raise error
        assert told in caught.value.code and "defect" not in caught.value.code


def test_an_error_behind_that_of_torch_is_told() -> None:
    with pytest.raises(SystemExit) as caught, one_message():
        try:
            raise no_room()
        except OSError as error:
            raise RuntimeError("unknown") from error
    assert "No space left on device: /data/out/model_0000001.pth" in caught.value.code


def test_a_missing_package_of_an_extra_names_the_command() -> None:
    error = ModuleNotFoundError("No module named 'cityscapesscripts'", name="cityscapesscripts.helpers")
    with pytest.raises(UserError, match=r"Cityscapes.*pip install 'dyn_d2\[cityscapes\]'"), wrong_input():
        raise error
    other = ModuleNotFoundError("No module named 'flask'", name="flask")
    with pytest.raises(ModuleNotFoundError) as caught, wrong_input():
        raise other
    assert caught.value is other


def test_outside_of_input_only_user_errors_are_plain(monkeypatch) -> None:
    with pytest.raises(SystemExit) as caught, one_message():
        raise ValueError("too many values to unpack")
    assert "defect of dyn_d2" in caught.value.code
    monkeypatch.setenv("DYN_D2_TRACEBACK", "1")
    with pytest.raises(UserError), one_message(), wrong_input():
        raise ValueError("rate is wrong")


def test_status_and_interruption(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool(lambda: 3)
    assert caught.value.code == 3
    with pytest.raises(SystemExit) as caught, one_message():
        raise KeyboardInterrupt
    assert caught.value.code == 130 and "interrupted" in capsys.readouterr().err
    with pytest.raises(SystemExit), one_message():
        raise KeyboardInterrupt("go on by --resume")
    assert capsys.readouterr().err.endswith(": interrupted: go on by --resume\n")


def test_log_file_has_the_message_too(tmp_path) -> None:
    handler = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger("dyn_d2").addHandler(handler)
    try:
        with pytest.raises(SystemExit), one_message():
            raise UserError("wrong checkpoint")
    finally:
        logging.getLogger("dyn_d2").removeHandler(handler)
    assert (tmp_path / "log.txt").read_text() == "wrong checkpoint\n"
