"""The program dyn-d2: one screen of help without torch, names that are nearly right, and commands of methods that go
with their folders."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tool_runs import ROOT, TIMEOUT, environment
from warm_processes import run_warm

from dyn_d2.cli import commands, main, table
from dyn_d2.cli.table import Table
from dyn_d2.utils.commands import Group

SCRIPTS = [*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")]
FACES = [path for path in SCRIPTS if "dyn_d2.cli" in path.read_text()]


def _main(capsys, *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    return caught.value.code, *capsys.readouterr()


def test_help_fits_a_screen_and_names_all(capsys) -> None:
    status, text, _ = _main(capsys, "--help")
    lines = text.splitlines()
    assert status == 0 and len(lines) <= 32 and max(map(len, lines)) <= 80
    known = Table.read().commands
    assert all(re.search(rf"(?<![\w-]){word}(?![\w-])", text) for name in known for word in name.split())
    assert [group.value for group in Group if re.search(rf"^{group.value}  ", text, re.M)] == [g.value for g in Group]
    assert _main(capsys) == (0, text, "")


def test_help_does_not_import_torch() -> None:
    code = "import sys; sys.argv[0] = '-m'; sys.orig_argv[:] = ['python', '-m', 'dyn_d2']; del sys.argv[1:]\n"
    code += "from dyn_d2.cli.table import Table; Table.read().help()\n"
    code += "assert not {'torch', 'numpy', 'detectron2'} & sys.modules.keys(), 'too much is imported'"
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_command_can_be_imported_and_has_a_short_line() -> None:
    for name, command in Table.read().commands.items():
        module, _, function = command.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        assert len(command.summary) <= 50, name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "did you mean train?"),
        (["surgry"], "did you mean surgery"),
        (["few_shot"], "few-shot"),
        (
            ["prepare", "digits"],
            "there is no kind 'digits' of prepare: did you mean digit-scenes? There are digit-scenes",
        ),
        (["prepare", "digitscenes"], "there is no kind 'digitscenes' of prepare: did you mean digit-scenes?"),
        (["prepare", "xyzzy"], "there is no kind 'xyzzy' of prepare: use digit-scenes, crops"),
        (["xyzzy"], "dyn-d2 --help lists all"),
    ],
)
def test_unknown_commands(capsys, argv, said) -> None:
    status, _, text = _main(capsys, *argv)
    assert status == 2 and said in text and len(text.splitlines()) == 1


def test_kinds_and_version(capsys) -> None:
    status, text, _ = _main(capsys, "prepare")
    assert status == 0 and "few-shot" in text and "semantic" in text
    assert _main(capsys, "prepare", "--help") == (0, text, "")
    assert re.match(r"dyn_d2 \d+\.\d+", _main(capsys, "--version")[1])


def test_a_command_gets_its_arguments_and_status(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dyn-d2"])
    status, text, _ = _main(capsys, "configs", "tfa/lvis")
    assert (status, text) == (0, "TFA/lvis.yaml\n")
    status, _, _ = _main(capsys, "configs", "no such config")
    assert status == "dyn-d2 configs: no config has 'no such config' in its name."
    assert "usage: dyn-d2 prepare few-shot" in _main(capsys, "prepare", "few-shot", "--help")[1]


def test_methods_take_their_commands_along(tmp_path, monkeypatch, capsys) -> None:
    """Each method in turn is taken out of a copy of the tables."""
    package = table.PACKAGE
    tables = [p.relative_to(package) for p in package.rglob("commands.py") if "utils" not in p.parts]
    for path in tables:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(table.PACKAGE / path, tmp_path / path)
    whole = Table.read()
    monkeypatch.setattr(table, "PACKAGE", tmp_path)
    assert Table.read() == whole
    for folder in (tmp_path / "methods").iterdir():
        folder.rename(tmp_path / "gone")
        rest = Table.read()
        gone = whole.commands.keys() - rest.commands.keys()
        assert gone and all(f"methods.{folder.name}." in whole.commands[name].function for name in gone)
        assert not [c for c in rest.commands.values() if f"methods.{folder.name}." in c.function]
        (tmp_path / "gone").rename(folder)
    assert whole.methods and set(commands.COMMANDS) & whole.methods == set()


def test_two_commands_of_one_name_are_refused(tmp_path, monkeypatch) -> None:
    for folder in ("cli", "gating", "methods/one"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(table.PACKAGE / "cli" / "commands.py", tmp_path / folder)
    monkeypatch.setattr(table, "PACKAGE", tmp_path)
    with pytest.raises(ValueError, match="are there already: .*train"):
        Table.read()


@pytest.mark.parametrize("face", FACES, ids=lambda path: path.name)
def test_faces_are_small_and_executable(face: Path) -> None:
    text = face.read_text()
    name = re.search(r'    tool\("(.*)"\)', text).group(1)
    assert text.startswith("#!/usr/bin/env python3\n") and len(text.splitlines()) < 12 and face.stat().st_mode & 0o111
    if name not in Table.read().commands:  # whether each command has one is tested below
        pytest.skip("the method that it belongs to is not here")


def test_every_command_has_a_face() -> None:
    named = {re.search(r'    tool\("(.*)"\)', face.read_text()).group(1) for face in FACES}
    assert Table.read().commands.keys() - named == {"evaluate", "configs", "doctor"}


def test_a_face_and_the_module_answer_the_same(tmp_path) -> None:
    faces = ([str(ROOT / "tools" / "compare_results.py")], ["-m", "dyn_d2", "compare"])
    runs = [run_warm([*face, "RUN", "OTHER"], tmp_path, environment(), TIMEOUT) for face in faces]
    assert runs[0].returncode == runs[1].returncode == 2
    assert "RUN" in runs[0].stderr and runs[0].stderr == runs[1].stderr
