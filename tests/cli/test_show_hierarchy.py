"""dyn-d2 show-tree: every concept is in the picture, shares are those of counting, misfits end the command."""

import numpy as np
import pytest
import yaml
from own_folders import write_label_folder
from PIL import Image
from tool_runs import run_tool

from dyn_d2.cli import show_tree
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.data.semantic.label_maps import write_label_map
from dyn_d2.evaluation.tree_figures import draw_tree, pixel_shares, tree_rows
from dyn_d2.hierarchy import Hierarchy, load_hierarchy, save_hierarchy

from detectron2.data import DatasetCatalog, MetadataCatalog

CHILDREN = {"all": ["animal", "food"], "animal": ["cat", "fish"], "food": ["bread", "fish"], "fish": ["tuna", "eel"]}
TREE = Hierarchy(CHILDREN, {"sea": {"tuna": "tuna", "eel": "eel", "cat": "cat"}, "shop": {"meal": "food"}}, "zoo")
NAME = "show_hierarchy_test"


@pytest.fixture
def dataset(tmp_path):
    maps = [np.array([[0, 0, 0, 2]], np.uint8), np.array([[2, 2, 255, 0]], np.uint8)]
    records = []
    for i, classes in enumerate(maps):
        write_label_map(tmp_path / f"{i}.png", classes)
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png")})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(stuff_classes=["tuna", "eel", "cat"], label_set="sea", ignore_label=255)
    save_hierarchy(TREE, tmp_path / "zoo.yaml")
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_rows_hold_every_concept_once_and_every_link():
    for tree in (TREE, load_hierarchy("universal"), load_hierarchy("cifar100")):
        rows = tree_rows(tree)
        assert sorted(row.concept for row in rows if not row.again) == sorted(tree.concepts)
        assert len(rows) == 1 + sum(len(below) for below in tree.children.values())
    assert [row.concept for row in tree_rows(TREE) if row.again] == ["fish"]


def test_all_names_are_written():
    figure = draw_tree(TREE, dict.fromkeys(TREE.concepts, 0.25))
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words.count("25 %") == len(tree_rows(TREE)) and words.count("fish (see above)") == 1
    assert set(TREE.concepts) <= set(words)


def test_shares_are_those_of_counting():
    shares = pixel_shares(TREE, "sea", {"tuna": 6, "eel": 0, "cat": 2})
    assert shares == pytest.approx(
        {"all": 1, "animal": 1, "food": 0.75, "fish": 0.75, "tuna": 0.75, "eel": 0, "cat": 0.25}
    )


def test_a_data_set_is_counted_and_drawn(dataset, capsys):
    main = show_tree.main
    assert main([str(dataset / "zoo.yaml"), "--dataset", NAME, "--output", str(dataset / "zoo.png")]) == 0
    said = capsys.readouterr().out
    assert "2 label maps, 12.5 % of the pixels are ignored" in said and "absent: eel" in said
    assert "57.1429 %  animal > fish > tuna" in said
    assert Image.open(dataset / "zoo.png").size[0] > 300
    assert main([str(dataset / "zoo.yaml"), "--dataset", NAME, "--images", "1"]) == 0
    assert "1 label maps, 0.0 %" in capsys.readouterr().out


def test_misfits_are_told(dataset):
    main, tree = show_tree.main, str(dataset / "zoo.yaml")
    with pytest.raises(ValueError, match="data set no_such_set, not registered"):
        main([tree, "--dataset", "no_such_set"])
    with pytest.raises(ValueError, match="does not fit 'shop': classes that have no concept: 'tuna', 'eel'"):
        main([tree, "--dataset", NAME, "--label-set", "shop"])
    write_label_map(dataset / "1.png", np.array([[3]], np.uint8))
    with pytest.raises(ValueError, match="1.png holds 3"):
        main([tree, "--dataset", NAME])
    del MetadataCatalog.get(NAME).label_set
    with pytest.raises(ValueError, match="add --label-set, one of sea, shop"):
        main([tree, "--dataset", NAME])
    with pytest.raises(ValueError, match="digits_train has no stuff_classes"):
        main([tree, "--dataset", "digits_train", "--label-set", "sea"])
    with pytest.raises(SystemExit):
        main([tree, "--dataset", NAME, "--images", "-1"])


def test_data_of_a_config_can_be_checked(tmp_path, capsys):
    folder = write_label_folder(tmp_path / "labels")
    custom = {"FORMAT": "semantic", "ROOT": str(folder), "TREE": str(folder / "tree.yaml"), "NAME": "tree_test"}
    custom |= {"TRAIN": "labels", "TRAIN_IMAGES": "images"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": custom}}))
    asked = [str(folder / "tree.yaml"), "--dataset", "named_train", "--config-file", str(tmp_path / "mine.yaml")]
    try:
        assert show_tree.main([*asked, "--opts", "DATASETS.CUSTOM.NAME", "named"]) == 0
        assert "named_train: 6 label maps" in capsys.readouterr().out
    finally:
        forget("named_train")


@pytest.mark.slow
def test_a_broken_tree_ends_with_one_message(tmp_path):
    (tmp_path / "tree.yaml").write_text("concepts: {a: [b], b: [a]}")
    run = run_tool("show_hierarchy", str(tmp_path / "tree.yaml"))
    assert run.returncode == 1 and "is a cycle" in run.stderr and "Traceback" not in run.stderr
