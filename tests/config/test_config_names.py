"""Configs are found by name in any folder, a file that exists wins, and bases may be names too."""

from pathlib import Path

import pytest

from dyn_d2.config.names import config_names, configs_folder, find_config
from dyn_d2.config.read import read_cfg


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_config_has_a_name() -> None:
    names = config_names()
    assert len(names) > 20 and not [name for name in names if name.startswith("_BASE_")]
    assert all(Path(find_config(name)) == configs_folder() / name for name in names)


@pytest.mark.parametrize("name", ["TFA/digit_scenes.yaml", "TFA/digit_scenes", "configs/TFA/digit_scenes.yaml"])
def test_ways_to_say_it(name) -> None:
    cfg = read_cfg(name)
    assert cfg.FEW_SHOT.BENCHMARK == "digit_scenes" and cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"


def test_a_file_that_exists_wins(tmp_path) -> None:
    (tmp_path / "TFA").mkdir()
    (tmp_path / "TFA" / "digit_scenes.yaml").write_text("SOLVER: {MAX_ITER: 3}\n")
    assert read_cfg("TFA/digit_scenes.yaml").SOLVER.MAX_ITER == 3
    assert read_cfg("TFA/digit_scenes").SOLVER.MAX_ITER != 3  # no such file, so a name


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="digit_scene.yaml does not exist.*did you mean TFA/digit_scenes.yaml"):
        find_config("TFA/digit_scene.yaml")
    with pytest.raises(FileNotFoundError, match="did you mean TFA/custom"):
        find_config("TFA/costum")
    with pytest.raises(FileNotFoundError, match="dyn-d2 configs lists"):
        find_config("zzzzzzzzzzzzzzzzz")


def test_bases_by_name(tmp_path) -> None:
    own = tmp_path / "sub" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("_BASE_: TFA/digit_scenes.yaml\nSOLVER: {MAX_ITER: 3}\n")
    cfg, base = read_cfg(str(own)), read_cfg("TFA/digit_scenes")
    assert cfg.SOLVER.MAX_ITER == 3
    base.SOLVER.MAX_ITER = 3
    assert cfg.dump() == base.dump()
    (tmp_path / "sub" / "TFA").mkdir()  # a file beside it wins
    (tmp_path / "sub" / "TFA" / "digit_scenes.yaml").write_text("SEED: 5\n")
    assert read_cfg(str(own)).SEED == 5
    own.write_text("_BASE_: nothing.yaml\n")
    with pytest.raises(FileNotFoundError, match="_BASE_ .*nothing.yaml does not exist"):
        read_cfg(str(own))
    own.write_text("_BASE_: TFA/digit_scenes.yaml\nSOLVERS: {MAX_ITER: 3}\n")
    with pytest.raises(KeyError, match="SOLVERS"):
        read_cfg(str(own))
