"""What ends with a message, and what keeps its traceback."""

import logging

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


@pytest.mark.parametrize("error", [KeyError("name"), TypeError("not callable at all"), AssertionError()])
def test_what_looks_like_a_bug_keeps_its_traceback(error) -> None:
    with pytest.raises(type(error)) as caught, one_message(), wrong_input():
        raise error
    assert caught.value is error


def test_a_missing_package_of_an_extra_names_the_command() -> None:
    error = ModuleNotFoundError("No module named 'cityscapesscripts'", name="cityscapesscripts.helpers")
    with pytest.raises(UserError, match=r"Cityscapes.*pip install 'dyn_d2\[cityscapes\]'"), wrong_input():
        raise error
    other = ModuleNotFoundError("No module named 'flask'", name="flask")
    with pytest.raises(ModuleNotFoundError) as caught, wrong_input():
        raise other
    assert caught.value is other


def test_outside_of_input_only_user_errors_are_plain(monkeypatch) -> None:
    with pytest.raises(ValueError), one_message():
        raise ValueError("too many values to unpack")
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


def test_log_file_has_the_message_too(tmp_path) -> None:
    handler = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger("dyn_d2").addHandler(handler)
    try:
        with pytest.raises(SystemExit), one_message():
            raise UserError("wrong checkpoint")
    finally:
        logging.getLogger("dyn_d2").removeHandler(handler)
    assert (tmp_path / "log.txt").read_text() == "wrong checkpoint\n"
