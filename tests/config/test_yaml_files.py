"""What a yaml says in another way than was meant is refused with file and line, on either Detectron2."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from yaml_mutations import draw, outcome

from dyn_d2.config.read import read_cfg


def message(folder: Path, content: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(content)
    with pytest.raises((ValueError, KeyError)) as caught:
        read_cfg(str(path))
    assert name in str(caught.value)
    return str(caught.value)


NAMES = "FEW_SHOT: {CUSTOM: {BASE_CLASSES: [nut, %s]}}\n"


@pytest.mark.parametrize(
    "written, kind", [("no", "true or false"), ("7", "a number"), ("2024-01-31", "a date"), ("~", "nothing")]
)
def test_names_that_are_read_as_something_else(tmp_path, written, kind) -> None:
    text = message(tmp_path, "SEED: 3\n" + NAMES % written)
    assert f'line 2: FEW_SHOT.CUSTOM.BASE_CLASSES: {written} is read as {kind}; quote it: "{written}"' in text
    (tmp_path / "mine.yaml").write_text(NAMES % f'"{written}"')
    assert read_cfg(str(tmp_path / "mine.yaml")).FEW_SHOT.CUSTOM.BASE_CLASSES == ["nut", written]


@pytest.mark.parametrize("written, quoted", [("2007", "'\"2007\"'"), ("off", '"off"'), ("2024-01-31", '"2024-01-31"')])
def test_text_that_is_read_as_something_else(tmp_path, written, quoted) -> None:
    assert f"quote it: {quoted}" in message(tmp_path, f"FEW_SHOT: {{CUSTOM: {{NAME: {written}}}}}\n")
    (tmp_path / "mine.yaml").write_text(f"FEW_SHOT: {{CUSTOM: {{NAME: {quoted}}}}}\n")
    assert read_cfg(str(tmp_path / "mine.yaml")).FEW_SHOT.CUSTOM.NAME == written


@pytest.mark.parametrize(
    "content, named",
    [
        ("MODEL: {MASK_ON: true}\nSEED: 3\nMODEL: {DEVICE: cpu}\n", ("line 3", "MODEL is given twice", "line 1")),
        ("SOLVER:\n  BASE_LR: 0.1\n  BASE_LR: 0.2\n", ("line 3", "SOLVER.BASE_LR is given twice", "line 2")),
        ("SEED: 3\n5: 1\n", ("line 2", "the key '5' is read as a number")),
        ("SEED: 3\nno: 1\n", ("line 2", "the key 'no' is read as true or false")),
        ("~: 1\n", ("line 1", "the key '~' is read as nothing")),
        ("[a]: 1\n", ("line 1", "cannot be a key")),
        ("SEED: 3\nMODEL: {WEIGHTS: !!python/name:os.system x}\n", ("line 2", "MODEL.WEIGHTS has the tag")),
        ("INPUT: {MIN_SIZE_TRAIN: !mine [1]}\n", ("line 1", "INPUT.MIN_SIZE_TRAIN has the tag !mine")),
        ("SEED: " + "[" * 5000, ("line 1", "more than 50")),
        ("SEED: " + "{a: " * 5000, ("more than 50",)),
        ("SEED: &a [*a]\n", ("line 1", "has no end")),
        ("a: &a {b: *a}\n", ("has no end",)),
        ("x: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"y{i}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n"
         for i in range(8)), ("written out",)),
        ("MODEL: 5\n", ("line 1", "MODEL is a section of keys, not 5")),
        ("MODEL:\n", ("MODEL is a section of keys, not nothing",)),
        ("OUTPUT_DIR:\n", ("OUTPUT_DIR: empty is read as nothing",)),
        ("_BASE_: 5\n", ("_BASE_ has to be the path",)),
        ("_BASE_: mine.yaml\n", ("is based on", "its own _BASE_")),
        ("SEED: 2024-99-99\n", ("read as a date",)),
        ("SEED: 3\nSOLVER: {MAX_ITER: 1:30}\n", ("line 2", "SOLVER.MAX_ITER: 1:30 is read as a time")),
        ("SOLVER: {STEPS: [010]}\n", ("line 1", "SOLVER.STEPS: 010 is read as a number to base 8")),
        ("SOLVER: {BASE_LR: 0.1#why}\n", ("SOLVER.BASE_LR: 0.1#why has a # in it",)),
        ("SEED: '" + "-" * 9999 + "1'\n", ("line 1", "SEED is too deep or long")),
        ("SEED: " + "1" * 5000, ("line 1", "SEED is too deep or long")),
        ("<<: {_BASE_: mine.yaml}\n", ("line 1", "not in what << brings")),
        ("SEED: 1\n<<: {5: 6}\n", ("line 2", "the key '5' is read as a number")),
        ("<<: [{SEED: 1}, {SEED: 2}]\n", ("line 1", "<< brings SEED twice")),
        ("MODEL: {MASK_ON: True}\n<<: {MODEL: {DEVICE: cpu}}\n", ("line 1", "MODEL stands here and in what <<")),
        ("SEED: 1\n<<: 5\n", ("line 2", "<< takes a section")),
        ("SEED: 1\nOUTPUT_DIR: a\x00b\n", ("line 2: the character U+0000",)),
        ("", ("holds no keys",)),
        ("- 1\n", ("holds no keys",)),
        ("SEED: 3\nMODEL: [1, 2\nSOLVER: {", ("is no valid yaml: line ",)),
        ("SEED: 'x'\n", ("SEED is x: use a whole number",)),
        ("SOLVER: {STEPS: 5}\n", ("SOLVER.STEPS is 5: use a list",)),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_one_message_with_file_and_line(tmp_path, content, named) -> None:
    text = message(tmp_path, content)
    assert all(part in text for part in named), text


def test_a_base_is_looked_at_too(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text("SEED: 1\nSEED: 2\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(ValueError, match="base.yaml, line 2: SEED is given twice"):
        read_cfg(str(tmp_path / "mine.yaml"))
    (tmp_path / "base.yaml").write_text("_BASE_: ./mine.yaml\n")
    with pytest.raises(ValueError, match="mine.yaml is based on .*base.yaml is based on .*mine.yaml: a config"):
        read_cfg(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("written", ["nowhere.yaml", "'a\\0b'", "x" * 5000, "ftp://x/y.yaml", "."])
def test_a_base_that_is_not_there(tmp_path, written) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"SEED: 1\n_BASE_: {written}\n")
    with pytest.raises(FileNotFoundError, match="mine.yaml, line 2: _BASE_ .* does not exist"):
        read_cfg(str(path))


def test_no_text_at_all(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00SEED: 3")
    with pytest.raises(ValueError, match="mine.yaml is no valid yaml: it is no text in UTF-8"):
        read_cfg(str(tmp_path / "mine.yaml"))


def test_anchors_and_merge_keys_are_fine(tmp_path) -> None:
    content = "SOLVER: {STEPS: &s [3, 4]}\nFEW_SHOT: {FINETUNE: &f {STEPS: *s}, NOVEL: {<<: *f, MAX_ITER: 5}}\n"
    (tmp_path / "mine.yaml").write_text(content)
    cfg = read_cfg(str(tmp_path / "mine.yaml"))
    assert cfg.SOLVER.STEPS == (3, 4) and cfg.FEW_SHOT.NOVEL.STEPS == [3, 4] and cfg.FEW_SHOT.NOVEL.MAX_ITER == 5


@pytest.mark.parametrize(
    "opts, named",
    [
        (["SOLVER.BASE_LR=0.1"], "write SOLVER.BASE_LR 0.1"),
        (["SEED", "3", "SOLVER.BASE_LR"], "SOLVER.BASE_LR has no value"),
        (["SOLVER.BASE_LR", "SOLVER.MAX_ITER", "3"], "SOLVER.BASE_LR has no value: SOLVER.MAX_ITER, another key"),
        (["SOLVER.STEPS", "[1,", "2]", "SEED", "3"], "'2]' after SOLVER.STEPS [1, is no key"),
        (["SEED", "3", "x"], "'x' after SEED 3 has no partner"),
        (["SEED", "3", "--resume"], "--resume after SEED 3: flags come first"),
        (["SEED", "3", "--shots", "5"], "--shots after SEED 3: flags come first"),
        (["SEED", "three"], "SEED is three: use a whole number"),
        (["SOLVER.BASE_LR", "x1"], "SOLVER.BASE_LR is x1: use a number with a point"),
        (["OUTPUT_DIR", "7"], "OUTPUT_DIR is 7: use text"),
        (["MODEL", "7"], "MODEL is 7: it is a section"),
    ],
)
def test_command_line(opts, named) -> None:
    with pytest.raises(ValueError) as caught:
        read_cfg("", opts)
    assert named in str(caught.value)


def test_a_whole_number_stands_for_a_number_with_a_point() -> None:
    cfg = read_cfg("", ["MODEL.GATED.WIDEN", "3", "SOLVER.BASE_LR", 1, "SEED", "3", "OUTPUT_DIR", "out"])
    assert cfg.MODEL.GATED.WIDEN == 3.0 and isinstance(cfg.SOLVER.BASE_LR, float) and cfg.SEED == 3


_PIECES = st.sampled_from(
    ["MODEL", "SOLVER", "SEED", "STEPS", "no", "1", "~", ":", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "&a ",
     "*a", "!!int ", "!x ", "'", '"', "_BASE_: ", "<<: ", "2024-01-01", "1e999", ".nan", "0x1", "\t", "|", ">", "---\n",
     "\x00"]
)  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(_PIECES, max_size=14).map("".join))
def test_any_text_is_read_or_refused_by_name(tmp_path_factory, content) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(content)
    try:
        read_cfg(str(path))
    except (ValueError, KeyError, FileNotFoundError) as error:
        assert not isinstance(error, yaml.YAMLError)
        assert (
            "fuzz.yaml" in str(error) or "Non-existent config key" in str(error) or "unknown config key" in str(error)
        )


@pytest.mark.timeout(120)
@settings(max_examples=70, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_damaged_files_are_read_as_meant_or_refused_by_name(tmp_path_factory, seed) -> None:
    assert outcome(draw(seed), tmp_path_factory.mktemp("damaged")) == "right"
