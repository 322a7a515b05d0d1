"""Configs: defaults, merging, messages, and building from a config."""

import pytest
import yaml

from dyn_d2.backend import describe_backend

import detectron2.config as config_module
from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

embedded_only = pytest.mark.skipif("embedded" not in describe_backend(), reason="a message of the embedded engine")


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_every_default_survives_dump_and_load():
    cfg = get_cfg()
    loaded = get_cfg()
    loaded.merge_from_other_cfg(CfgNode(yaml.safe_load(cfg.dump())))
    assert yaml.safe_load(loaded.dump()) == yaml.safe_load(cfg.dump())
    assert {k: type(v) for k, v in leaves(loaded)} == {k: type(v) for k, v in leaves(cfg)}


def test_configs_are_independent():
    one, other = get_cfg(), get_cfg()
    one.MODEL.RPN.IOU_THRESHOLDS.append(0.9)
    one.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 5
    assert other.MODEL.RPN.IOU_THRESHOLDS == [0.3, 0.7]
    assert other.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION == one.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION == 14


def test_base_files_are_relative_and_are_overridden(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, "base.yaml", "SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\nVERSION: 2\n")
    leaf = write(tmp_path / "deep", "leaf.yaml", "_BASE_: ../base.yaml\nSOLVER: {STEPS: '(3, 5)', MAX_ITER: 9}\n")
    cfg = get_cfg()
    cfg.merge_from_file(leaf)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.5, 9, (3, 5))


def test_options_are_read_as_literals_of_the_right_type():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", "[1, 2]", "MODEL.WEIGHTS", "a.pth", "SOLVER.BASE_LR", "0.1"])
    assert cfg.SOLVER.STEPS == (1, 2) and cfg.MODEL.WEIGHTS == "a.pth" and cfg.SOLVER.BASE_LR == 0.1
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR"):
        cfg.merge_from_list(["SOLVER.BASE_LR", "fast"])


@embedded_only
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"),
        ("MODEL.ROI_HEAD.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("BASE_LR", "SOLVER.BASE_LR"),
        ("MODEL.maskon", "MODEL.MASK_ON"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(tmp_path, wrong, right):
    with pytest.raises(KeyError) as by_list:
        get_cfg().merge_from_list([wrong, 1])
    tree = 1
    for part in reversed(wrong.split(".")):
        tree = {part: tree}
    file = write(tmp_path, "wrong.yaml", yaml.safe_dump({**tree, "VERSION": 2}))
    with pytest.raises(KeyError) as by_file:
        get_cfg().merge_from_file(file)
    assert f"'{wrong}'" in str(by_list.value) and f"'{right}'" in str(by_list.value)
    # In a file the message names the first node that is unknown, which may lie above the key.
    assert file in str(by_file.value) and "'MODEL.ROI_HEADS'" in str(by_file.value) or right in str(by_file.value)


@embedded_only
def test_other_broken_files_get_one_clear_message(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "absent.yaml"))
    for name, text in (("empty.yaml", ""), ("list.yaml", "[1, 2]"), ("text.yaml", "hello")):
        with pytest.raises(ValueError, match=name):
            get_cfg().merge_from_file(write(tmp_path, name, text))
    for text in ("VERSION: 1\n", "MODEL: {WEIGHT: x.pkl}\n"):
        with pytest.raises(ValueError, match="VERSION 1"):
            get_cfg().merge_from_file(write(tmp_path, "old.yaml", text))
    with pytest.raises(ValueError, match="pairs"):
        get_cfg().merge_from_list(["SOLVER.MAX_ITER"])


@embedded_only
@pytest.mark.parametrize("name", ["LazyConfig", "LazyCall", "instantiate", "upgrade_config"])
def test_what_is_left_out_says_so(name):
    with pytest.raises(ImportError, match=f"{name}.*leaves out"):
        getattr(config_module, name)


def test_new_keys_where_they_are_allowed(tmp_path):
    cfg = CfgNode({"A": {"B": 1}, "VERSION": 2}, new_allowed=True)
    cfg.A.set_new_allowed(True)
    cfg.merge_from_file(write(tmp_path, "new.yaml", "A: {C: {D: 3}}\nVERSION: 2\n"))
    assert cfg.A.C.D == 3 and cfg.A.B == 1
    retired = get_cfg()
    retired.register_deprecated_key("OLD")
    retired.register_renamed_key("OTHER", "SEED")
    retired.merge_from_list(["OLD", 1])
    with pytest.raises(KeyError, match="renamed to SEED"):
        retired.merge_from_list(["OTHER", 1])


def test_frozen_and_global():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    set_global_cfg(cfg)
    assert global_cfg.GLOBAL.HACK == 1.0


class Layer:
    @configurable
    def __init__(self, size, *, scale=2, mode="a"):
        self.values = (size, scale, mode)

    @classmethod
    def from_config(cls, cfg, size):
        return {"size": size, "scale": cfg.SEED}


class Wide(Layer):
    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        return {"size": 100, **kwargs}


def test_configurable_constructor():
    cfg = get_cfg()
    assert Layer(3).values == (3, 2, "a")
    assert Layer(cfg, 3).values == (3, -1, "a")
    assert Layer(cfg, size=3, mode="b").values == (3, -1, "b")
    assert Layer(cfg=cfg, size=3, scale=7).values == (3, 7, "a")
    assert Wide(cfg, mode="c").values == (100, 2, "c")


def test_configurable_function():
    @configurable(from_config=lambda cfg: {"a": cfg.SEED})
    def add(a, b=1):
        return a + b

    assert add(5) == 6 and add(get_cfg()) == 0 and add(get_cfg(), b=4) == 3 and add(cfg=get_cfg(), a=9) == 10


def test_configurable_needs_a_translation():
    class Without:
        @configurable
        def __init__(self):
            pass

    class WrongName:
        @configurable
        def __init__(self):
            pass

        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises((TypeError, AttributeError), match="from_config"):
        Without(get_cfg())
    with pytest.raises(TypeError, match="cfg"):
        WrongName(get_cfg())
