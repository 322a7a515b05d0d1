"""Class splits: counts of the published benchmarks, order, and what is refused."""

from dataclasses import replace

import pytest

from dyn_d2.data.few_shot import BENCHMARKS, FewShotBenchmark, get_benchmark, register_benchmark, split_classes
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.data.few_shot.splits import lvis_v0_5_rare

from detectron2.data import DatasetCatalog, MetadataCatalog


def lvis_without_files() -> FewShotBenchmark:
    forget("lvis_names")
    DatasetCatalog.register("lvis_names", list)
    MetadataCatalog.get("lvis_names").set(thing_classes=[f"thing {number}" for number in range(1230)])
    return replace(BENCHMARKS["lvis"], train_sets=("lvis_names",), test_sets=("lvis_names",))


@pytest.mark.parametrize(
    ("name", "splits", "base", "novel"), [("voc", 3, 15, 5), ("coco", 1, 60, 20), ("lvis", 1, 776, 454)]
)
def test_published_splits_have_the_published_size(name: str, splits: int, base: int, novel: int) -> None:
    benchmark = BENCHMARKS[name] if name != "lvis" else lvis_without_files()
    assert benchmark.splits == tuple(range(1, splits + 1))
    for number in benchmark.splits:
        split = benchmark.split(number)
        assert (len(split.base), len(split.novel)) == (base, novel)
        assert not set(split.base) & set(split.novel)
        assert split.classes == benchmark.classes()
        for part in (split.base, split.novel):
            assert list(part) == sorted(part, key=benchmark.classes().index)


def test_coco_novel_classes_have_the_ids_of_voc_classes() -> None:
    ids = {
        position: number
        for number, position in MetadataCatalog.get("coco_2014_train").thing_dataset_id_to_contiguous_id.items()
    }
    benchmark = BENCHMARKS["coco"]
    novel = [ids[benchmark.classes().index(name)] for name in benchmark.split(1).novel]
    assert novel == [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72]


def test_lvis_rare_positions_are_in_range_and_ascending() -> None:
    rare = lvis_v0_5_rare()
    assert len(rare) == 454 and list(rare) == sorted(set(rare)) and rare[0] == 0 and rare[-1] == 1227


def test_digit_scenes_novel_classes_of_the_splits_are_disjoint() -> None:
    novel = [BENCHMARKS["digit_scenes"].novel[number] for number in (1, 2, 3)]
    assert all(len(names) == 3 for names in novel) and len({name for names in novel for name in names}) == 9


def test_a_split_keeps_the_order_of_the_data_set_whatever_the_order_of_the_lists() -> None:
    split = split_classes(["a", "b", "c", "d", "e"], novel=["d", "a"], base=["e", "b"])
    assert (split.classes, split.base, split.novel) == (("a", "b", "d", "e"), ("b", "e"), ("a", "d"))
    assert split.subset("all") == split.classes and split.subset("novel") == split.novel


@pytest.mark.parametrize(
    ("novel", "base", "message"),
    [
        (["dgo"], None, "did you mean 'dog'"),
        (["dog"], ["dog", "cat"], "'dog' is both a base and a novel class"),
        (["dog", "dog"], None, "listed twice"),
        ([], ["dog"], "no novel class"),
        (["cat", "dog"], None, "no base class"),
    ],
)
def test_unusable_splits_are_refused(novel: list, base: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_classes(["cat", "dog"], novel, base)


def test_unknown_names_say_what_is_known(few_shot_cfg) -> None:
    with pytest.raises(ValueError, match="'vox' is unknown. Known: voc, coco, lvis, digit_scenes, custom"):
        get_benchmark(few_shot_cfg(BENCHMARK="vox"))
    with pytest.raises(ValueError, match="FEW_SHOT.SPLIT=4"):
        BENCHMARKS["voc"].split(4)
    with pytest.raises(ValueError, match="already"):
        register_benchmark(FewShotBenchmark("voc", ("a",), ("b",)))


def test_custom_benchmark_lists_every_missing_key_and_file(few_shot_cfg, tmp_path) -> None:
    cfg = few_shot_cfg(BENCHMARK="custom")
    with pytest.raises(ValueError, match="TRAIN_JSON.*BASE_CLASSES.*NOVEL_CLASSES"):
        get_benchmark(cfg)
    for key in ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES"):
        cfg.FEW_SHOT.CUSTOM[key] = str(tmp_path / key)
    cfg.FEW_SHOT.CUSTOM.BASE_CLASSES, cfg.FEW_SHOT.CUSTOM.NOVEL_CLASSES = ["cat"], ["dog"]
    with pytest.raises(FileNotFoundError, match="TRAIN_JSON.*TEST_IMAGES"):
        get_benchmark(cfg)


def test_a_voc_folder_is_a_custom_benchmark(few_shot_cfg, tmp_path) -> None:
    folder, box = tmp_path / "cells", "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = {"a": ["red", "white"], "b": ["white"], "c": ["red", "plate"]}
    (folder / "Annotations").mkdir(parents=True)
    for image, names in objects.items():
        inner = "".join(f"<object><name>{name}</name>{box}</object>" for name in names)
        size = "<size><width>20</width><height>10</height></size>"
        (folder / "Annotations" / f"{image}.xml").write_text(f"<annotation>{size}{inner}</annotation>")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "mine.txt").write_text("a\nb\n")
    (lists / "test.txt").write_text("c\n")
    custom = {"NAME": "cells", "VOC_FOLDER": str(folder), "VOC_TRAIN": "mine"}
    custom |= {"BASE_CLASSES": ["red", "white"], "NOVEL_CLASSES": ["plate"]}
    cfg = few_shot_cfg(BENCHMARK="custom")
    cfg.FEW_SHOT.CUSTOM.merge_from_list([part for item in custom.items() for part in item])
    benchmark = get_benchmark(cfg)
    assert benchmark.classes() == ("plate", "red", "white") and benchmark.evaluator_type == "pascal_voc"
    records = load_source(benchmark.train_sets[0])
    assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[1, 2], [2]]
    assert records[0]["file_name"] == str(folder / "JPEGImages" / "a.jpg")
    (lists / "test.txt").write_text("c\nd\n")
    with pytest.raises(ValueError, match="test.txt lists images without annotations: .*d.xml"):
        get_benchmark(cfg)
    for key, value, error, message in (
        ("VOC_TEST", "val", FileNotFoundError, "VOC_TEST=.*val.txt"),
        ("TRAIN_JSON", "a.json", ValueError, "VOC_FOLDER holds all data, but FEW_SHOT.CUSTOM.TRAIN_JSON"),
        ("VOC_FOLDER", str(tmp_path / "none"), FileNotFoundError, "VOC_FOLDER="),
    ):
        other = few_shot_cfg(BENCHMARK="custom")
        other.FEW_SHOT.CUSTOM.merge_from_list([part for item in {**custom, key: value}.items() for part in item])
        with pytest.raises(error, match=message):
            get_benchmark(other)
