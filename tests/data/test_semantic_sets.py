"""Semantic segmentation sets: published files to label maps and back, and what is said when something is wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dyn_d2.data.semantic import IGNORE, LabelTable, count_pixels, load_pairs, read_label_map, register_semantic_sets
from dyn_d2.data.semantic.prepare import prepare
from dyn_d2.data.semantic.sets import PUBLISHED
from dyn_d2.hierarchy import load_hierarchy

from detectron2.data import DatasetCatalog, MetadataCatalog

RNG = np.random.default_rng(0)
SHAPE = (6, 9)


def _classes(label_set: str) -> list[str]:
    return list(load_hierarchy(label_set).labels(label_set))


def _image(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*SHAPE, 3), np.uint8)).save(path)


def _truth(classes: int) -> np.ndarray:
    """(H, W) classes or IGNORE, with the first and the last class."""
    truth = RNG.integers(0, classes, SHAPE).astype(np.uint8)
    truth[0, :3] = IGNORE, 0, classes - 1
    return truth


def _save(path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def _ade20k(root):
    truth = _truth(150)
    _save(root / "ADEChallengeData2016/annotations/validation/a.png", (truth + np.uint8(1)).astype(np.uint8))
    _image(root / "ADEChallengeData2016/images/validation/a.jpg")
    return "ade20k_sem_seg", "val", truth


def _mapillary(root):
    truth = _truth(65)
    ids = Image.fromarray(np.where(truth == IGNORE, 65, truth).astype(np.uint8)).convert("P")
    ids.putpalette(list(RNG.integers(0, 256, 768)))
    folder = root / "mapillary_vistas/training"
    (folder / "v1.2/labels").mkdir(parents=True)
    # convert("P") keeps the grey values as numbers of colours
    ids.save(folder / "v1.2/labels/a.png")
    _image(folder / "images/a.jpg")
    return "mapillary_vistas", "train", truth


def _coco_stuff(root):
    truth = _truth(182)
    folder = root / "coco_stuff_10k"
    for name in ("annotations", "imageLists"):
        (folder / name).mkdir(parents=True)
    names = np.array(["unlabeled", *_classes("coco_stuff")], dtype=object)
    ids = np.where(truth == IGNORE, 0, truth.astype(int) + 1)
    savemat(folder / "annotations/a.mat", {"S": ids.astype(np.uint8), "names": names})
    (folder / "imageLists/test.txt").write_text("a\n")
    _image(folder / "images/a.jpg")
    return "coco_stuff_10k", "test", truth


def _pascal_context(root):
    truth = _truth(59)
    numbers = RNG.permutation(459) + 1
    names = [*_classes("pascal_context"), *(f"other {i}" for i in range(400))]
    folder = root / "pascal_context"
    (folder / "trainval").mkdir(parents=True)
    (folder / "labels.txt").write_text("".join(f"{n}: {name}\n" for n, name in zip(numbers, names, strict=True)))
    ids = np.where(truth == IGNORE, 0, numbers[np.minimum(truth, 58)]).astype(np.uint16)
    ids[1, 0], truth[1, 0] = numbers[100], IGNORE  # one of the other 400 labels
    savemat(folder / "trainval/a.mat", {"LabelMap": ids})
    lists = root / "VOC2010/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\n")
    _image(root / "VOC2010/JPEGImages/a.jpg")
    return "pascal_context", "val", truth


def _coco_panoptic(root):
    truth = _truth(133)
    classes = _classes("coco_panoptic")
    categories = [{"id": i + 7, "name": name} for i, name in enumerate(classes)]
    numbers = {label: int(n) for label, n in zip(range(133), RNG.permutation(2**24 - 1)[:133] + 1, strict=True)}
    ids = np.array([numbers.get(label, 0) for label in range(256)])[truth]
    _save(root / "coco/panoptic_val2017/a.png", (ids[..., None] // [1, 256, 65536] % 256).astype(np.uint8))
    segments = [{"id": numbers[label], "category_id": label + 7} for label in range(133)]
    (root / "coco/annotations").mkdir()
    content = {"categories": categories, "annotations": [{"file_name": "a.png", "segments_info": segments}]}
    (root / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(content))
    _image(root / "coco/val2017/a.jpg")
    return "coco_panoptic_semantic", "val", truth


def _voc(root, name="voc_2012_sem_seg", folder="SegmentationClass", listed="val", split="val"):
    truth = _truth(21)
    ids = Image.fromarray(truth).convert("P")
    ids.putpalette(list(RNG.integers(0, 256, 768)))
    voc = root / "VOC2012"
    (voc / folder).mkdir(parents=True)
    ids.save(voc / folder / "a.png")
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / f"ImageSets/Segmentation/{listed}.txt").write_text("a\n")
    _image(voc / "JPEGImages/a.jpg")
    _image(voc / "JPEGImages/b.jpg")  # one without a map
    return name, split, truth


def _voc_with_sbd(root):
    return _voc(root, "voc_2012_aug_sem_seg", "SegmentationClassAug", "train_aug", "train")


@pytest.fixture
def root(tmp_path):
    register_semantic_sets(tmp_path)
    yield tmp_path
    register_semantic_sets()


@pytest.mark.parametrize(
    "publish", [_ade20k, _mapillary, _coco_stuff, _pascal_context, _coco_panoptic, _voc, _voc_with_sbd]
)
def test_published_files_become_label_maps(root, publish):
    name, split, truth = publish(root)
    assert prepare(name, root, [split]) == {split: (1, 1)}
    assert prepare(name, root, [split]) == {split: (1, 0)}  # what is there is kept
    (record,) = DatasetCatalog.get(f"{name}_{split}")
    assert (read_label_map(record["sem_seg_file_name"]) == truth).all()
    assert record["file_name"].endswith("a.jpg") and record["image_id"] == "a"
    metadata = MetadataCatalog.get(f"{name}_{split}")
    classes = len(metadata.stuff_classes)
    slow = [(truth == label).sum() for label in (*range(classes), IGNORE)]
    assert (count_pixels([record], classes, metadata.ignore_label) == slow).all()


@pytest.mark.parametrize("name", [name for name, data in PUBLISHED.items() if not data.prepared])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_that_the_user_puts_there_keep_their_format(root, name, suffix):
    split, (images, maps) = next(iter(PUBLISHED[name].splits.items()))
    _image(root / images / f"a{suffix}")
    _save(root / maps / "a.png", np.zeros(SHAPE, np.uint8))
    (record,) = DatasetCatalog.get(f"{name}_{split}")
    assert record["file_name"] == str(root / images / f"a{suffix}") and record["image_id"] == "a"
    (root / images / f"a{suffix}").rename(root / images / "b.png")
    with pytest.raises(FileNotFoundError, match="1 of the 1 label maps .* the first is a:"):
        DatasetCatalog.get(f"{name}_{split}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_files_say_what_to_download(root, name):
    data = PUBLISHED[name]
    split = next(iter(data.splits))
    with pytest.raises(FileNotFoundError, match="Download .*https?://") as error:
        DatasetCatalog.get(f"{name}_{split}")
    assert (f"prepare semantic {name}" in str(error.value)) == data.prepared
    if data.prepared:
        with pytest.raises(FileNotFoundError, match=f"{name}: .* not found. Download .*https?://"):
            prepare(name, root)


def test_unknown_ids_name_the_file(root):
    _ade20k(root)
    path = root / "ADEChallengeData2016/annotations/validation/a.png"
    _save(path, np.full(SHAPE, 151, np.uint8))
    with pytest.raises(ValueError, match="a.png holds ids that its data set does not define: 151"):
        prepare("ade20k_sem_seg", root, ["val"])
    _save(path, np.zeros((*SHAPE, 3), np.uint8))
    with pytest.raises(ValueError, match="mode RGB: ids were expected"):
        prepare("ade20k_sem_seg", root, ["val"])
    with pytest.raises(ValueError, match="no split test, only train, val"):
        prepare("ade20k_sem_seg", root, ["test"])


def test_wrong_versions_are_told(root):
    _coco_stuff(root)
    savemat(root / "coco_stuff_10k/annotations/a.mat", {"S": np.ones(SHAPE), "names": np.array(["x"] * 172, object)})
    with pytest.raises(ValueError, match="v1.0 has other ids"):
        prepare("coco_stuff_10k", root, ["test"])
    _pascal_context(root)
    (root / "pascal_context/labels.txt").write_text("1: aeroplane\n")
    with pytest.raises(ValueError, match="no id for bicycle, .* not the list of the 459"):
        prepare("pascal_context", root, ["val"])
    _coco_panoptic(root)
    file = root / "coco/annotations/panoptic_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segments_info"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a.png holds segments .*does not describe"):
        prepare("coco_panoptic_semantic", root, ["val"])


def test_label_table_against_a_loop():
    table = LabelTable({0: IGNORE, 3: 0, 8: 2, 600: 1})
    ids = RNG.choice([0, 3, 8, 600], SHAPE)
    slow = [[{0: IGNORE, 3: 0, 8: 2, 600: 1}[i] for i in row] for row in ids.tolist()]
    assert (table.apply(ids, "x") == slow).all()
    for wrong in (-1, 1, 601):
        with pytest.raises(ValueError, match=f"x.png .*: {wrong}. "):
            table.apply(np.array([[0, wrong]]), "x.png")
    with pytest.raises(ValueError, match="256"):
        LabelTable({1: 256})


def test_pairs_and_maps_that_do_not_fit(tmp_path):
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=r"maps holds no \*.png"):
        load_pairs(tmp_path / "images", tmp_path / "maps")
    _save(tmp_path / "maps/b.png", np.full(SHAPE, 7, np.uint8))
    with pytest.raises(FileNotFoundError, match="1 of the 1 label maps .* the first is b.jpg"):
        load_pairs(tmp_path / "images", tmp_path / "maps")
    record = {"sem_seg_file_name": str(tmp_path / "maps/b.png")}
    assert count_pixels([record], 8).tolist() == [0] * 7 + [SHAPE[0] * SHAPE[1], 0]
    with pytest.raises(ValueError, match="b.png holds 7: neither one of 7 classes"):
        count_pixels([record], 7)


def test_palettes_whose_colours_detectron2_would_take_for_classes(tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(np.full(SHAPE, 3, np.uint8)).convert("P")
    image.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    image.save(path)
    assert (read_label_map(path) == 3).all()
    image.putpalette([9, 200, 30] * 256)
    image.save(path)
    with pytest.raises(ValueError, match="mode P, not a grey one"):
        read_label_map(path)
