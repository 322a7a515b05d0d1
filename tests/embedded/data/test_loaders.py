"""DatasetMapper, get_detection_dataset_dicts and the data loaders."""

import copy
import json
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import InferenceSampler


@pytest.fixture
def toy(coco, cfg):
    """The generated COCO set, registered as toy_train and named in the config."""
    register_coco_instances("toy_train", {}, coco[0], coco[1])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("toy_train",)
    return cfg


# ------------------------------------------------------------------------------------------------------------- mapper
def test_training_record(toy) -> None:
    records = DatasetCatalog.get("toy_train")
    before = copy.deepcopy(records)
    mapper = DatasetMapper(toy, True)
    for record in records * 3:
        result = mapper(record)
        image, instances = result["image"], result["instances"]
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape[1:]) in (20, 24)
        assert instances.image_size == tuple(image.shape[1:]) and len(instances) == 2
        assert result["height"], result["width"] == (record["height"], record["width"])
        assert "annotations" not in result and result["image_id"] == record["image_id"]
        # Boxes still tightly hold their polygons, whatever the resizing and flipping.
        assert torch.allclose(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor, atol=1e-3)
    assert records == before


def test_pixels_are_those_of_the_file(toy) -> None:
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    record = DatasetCatalog.get("toy_train")[0]
    result = mapper(record)
    expected = np.asarray(Image.open(record["file_name"]))[:, :, ::-1].transpose(2, 0, 1)
    assert np.array_equal(result["image"].numpy(), expected)
    flipped = DatasetMapper(False, augmentations=[T.RandomFlip(1.0)], image_format="BGR")(record)
    assert np.array_equal(flipped["image"].numpy(), expected[:, :, ::-1])


def test_inference_record_has_no_annotations(toy) -> None:
    result = DatasetMapper(toy, False)(DatasetCatalog.get("toy_train")[0])
    assert "annotations" not in result and "instances" not in result and min(result["image"].shape[1:]) == 20


def test_without_masks_and_with_bitmasks(toy) -> None:
    record = DatasetCatalog.get("toy_train")[0]
    toy.INPUT.MASK_FORMAT = "bitmask"
    instances = DatasetMapper(toy, True)(record)["instances"]
    assert instances.gt_masks.tensor.shape[1:] == instances.image_size
    toy.MODEL.MASK_ON = False
    assert not DatasetMapper(toy, True)(record)["instances"].has("gt_masks")


def test_crowds_are_not_trained_on(toy) -> None:
    record = DatasetCatalog.get("toy_train")[0]
    record["annotations"][0]["iscrowd"] = 1
    assert len(DatasetMapper(toy, True)(record)["instances"]) == 1
    record["annotations"][1]["iscrowd"] = 1
    assert len(DatasetMapper(toy, True)(record)["instances"]) == 0


def test_crops_tighten_boxes_and_drop_what_is_cut_off(toy) -> None:
    pytest.importorskip("shapely")
    toy.INPUT.CROP.ENABLED = True
    toy.INPUT.CROP.TYPE, toy.INPUT.CROP.SIZE = "relative", [0.4, 0.4]
    mapper = DatasetMapper(toy, True)
    counts = set()
    for record in DatasetCatalog.get("toy_train") * 8:
        instances = mapper(record)["instances"]
        counts.add(len(instances))
        if len(instances):
            boxes = instances.gt_boxes.tensor
            assert torch.allclose(boxes, instances.gt_masks.get_bounding_boxes().tensor, atol=1e-3)
            height, width = instances.image_size
            assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
    assert len(counts) > 1


def test_label_maps_move_with_the_image(tmp_path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(np.repeat(labels[:, :, None], 3, 2)).save(tmp_path / "image.png")
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    mapper = DatasetMapper(True, augmentations=[T.RandomFlip(1.0)], image_format="RGB")
    result = mapper(record)
    assert result["sem_seg"].dtype == torch.int64 and np.array_equal(result["sem_seg"].numpy(), labels[:, ::-1])
    assert np.array_equal(result["sem_seg"].numpy(), result["image"][0].numpy())
    assert "sem_seg_file_name" not in result and "sem_seg_file_name" in record


@pytest.mark.embedded
def test_label_map_of_another_size_is_named(tmp_path) -> None:
    Image.new("L", (5, 4)).save(tmp_path / "labels.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    with pytest.raises(utils.SizeMismatchError, match="labels.png.*image.png"):
        DatasetMapper(True, augmentations=[], image_format="RGB")(record)


@pytest.mark.embedded
def test_mapper_refuses_what_it_cannot_do(toy) -> None:
    toy.MODEL.KEYPOINT_ON = True
    with pytest.raises(NotImplementedError, match="KEYPOINT_ON"):
        DatasetMapper(toy, True)
    with pytest.raises(ValueError, match="use_instance_mask"):
        DatasetMapper(True, augmentations=[], image_format="RGB", recompute_boxes=True)


def test_mapper_can_be_sent_to_a_worker(toy) -> None:
    record = DatasetCatalog.get("toy_train")[0]
    mapper = DatasetMapper(toy, False)
    assert torch.equal(pickle.loads(pickle.dumps(mapper))(record)["image"], mapper(record)["image"])


# -------------------------------------------------------------------------------------------------------------- dicts
def test_empty_images_are_left_out_only_if_asked() -> None:
    records = [{"annotations": []}, {"annotations": [{"iscrowd": 1}]}, {"annotations": [{"iscrowd": 1}, {}]}]
    assert filter_images_with_only_crowd_annotations(records) == records[2:]
    records = [r | {"image_id": i} for i, r in enumerate(records)]
    DatasetCatalog.register("toy_empty", lambda: records)
    assert len(get_detection_dataset_dicts("toy_empty", check_consistency=False)) == 1
    assert len(get_detection_dataset_dicts(["toy_empty"], filter_empty=False, check_consistency=False)) == 3


def test_data_sets_are_joined_in_order_if_they_agree(coco) -> None:
    for name in ("toy_one", "toy_two"):
        register_coco_instances(name, {}, coco[0], coco[1])
    ids = [r["image_id"] for r in get_detection_dataset_dicts(["toy_one", "toy_two"])]
    assert ids == [97, 98, 99, 100] * 2
    DatasetCatalog.register("toy_other", lambda: DatasetCatalog.get("toy_one"))
    MetadataCatalog.get("toy_other").thing_classes = ["something", "else"]
    with pytest.raises(ValueError, match="thing_classes"):
        get_detection_dataset_dicts(["toy_one", "toy_other"])


def test_torch_data_sets_pass_through() -> None:
    class Numbers(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    dataset = Numbers()
    DatasetCatalog.register("toy_torch", lambda: dataset)
    assert get_detection_dataset_dicts("toy_torch") is dataset


def test_nothing_to_load_is_an_error() -> None:
    DatasetCatalog.register("toy_nothing", lambda: [])
    for names in ([], "toy_nothing"):
        with pytest.raises((ValueError, AssertionError)):
            get_detection_dataset_dicts(names)
    with pytest.raises(KeyError, match="toy_unknown"):
        get_detection_dataset_dicts("toy_unknown")


def test_unknown_classes_are_found_before_training() -> None:
    record = {"file_name": "bad.jpg", "annotations": [{"category_id": 2}]}
    crowd = {"category_id": 7, "iscrowd": 1}
    print_instances_class_histogram([{"annotations": [{"category_id": 1}, crowd]}], ["a", "b"])
    with pytest.raises((ValueError, AssertionError), match="category_id=2"):
        print_instances_class_histogram([record], ["a", "b"])


@pytest.mark.embedded
def test_missing_images_are_found_before_training(coco, tmp_path, monkeypatch) -> None:
    register_coco_instances("toy_lost", {}, coco[0], str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="toy_lost.*nowhere"):
        get_detection_dataset_dicts("toy_lost")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    register_coco_instances("toy_builtin", {}, coco[0], str(tmp_path / "root" / "coco" / "val2017"))
    with pytest.raises(FileNotFoundError, match=r"DETECTRON2_DATASETS is \S*root"):
        get_detection_dataset_dicts("toy_builtin")
    register_coco_instances("toy_no_json", {}, str(tmp_path / "root" / "none.json"), coco[1])
    with pytest.raises(FileNotFoundError, match="none.json.*DETECTRON2_DATASETS"):
        DatasetCatalog.get("toy_no_json")


@pytest.mark.embedded
def test_what_is_left_out_says_so(toy) -> None:
    for request in ({"min_keypoints": 3}, {"proposal_files": ["boxes.pkl"]}):
        with pytest.raises(NotImplementedError, match="leaves out keypoints and precomputed proposals"):
            get_detection_dataset_dicts("toy_train", **request)
    toy.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(NotImplementedError, match="LOAD_PROPOSALS.*leaves out"):
        build_detection_test_loader(toy, "toy_train")


# ------------------------------------------------------------------------------------------------------------ loaders
def test_train_loader_from_a_config(toy) -> None:
    batches = list(islice(iter(build_detection_train_loader(toy)), 6))
    for batch in batches:
        assert len(batch) == 2 and all("instances" in x for x in batch)
        assert len({x["width"] > x["height"] for x in batch}) == 1
    again = list(islice(iter(build_detection_train_loader(toy)), 6))
    assert [[x["image_id"] for x in b] for b in batches] == [[x["image_id"] for x in b] for b in again]


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader_from_arguments(toy, workers: int) -> None:
    records = DatasetCatalog.get("toy_train")
    loader = build_detection_train_loader(
        records,
        mapper=lambda r: r["image_id"],
        sampler=InferenceSampler(4),
        total_batch_size=2,
        aspect_ratio_grouping=False,
        num_workers=workers,
    )
    assert sorted(loader) == [[97, 98], [99, 100]]


def test_workers_draw_different_augmentations() -> None:
    """Forked workers inherit numpy's state; without a new seed they would all draw the same numbers."""
    loader = build_detection_train_loader(
        [{"n": i} for i in range(8)],
        mapper=lambda r: np.random.rand(),
        total_batch_size=1,
        aspect_ratio_grouping=False,
        num_workers=2,
    )
    numbers = [x for batch in islice(iter(loader), 8) for x in batch]
    assert len(set(numbers)) == 8


def test_collate_function_and_batch_size_rules(toy) -> None:
    records = DatasetCatalog.get("toy_train")
    loader = build_detection_train_loader(records, mapper=DatasetMapper(toy, True), total_batch_size=2, collate_fn=len)
    assert next(iter(loader)) == 2
    with pytest.raises((ValueError, AssertionError)):
        build_detection_train_loader(records, mapper=None, total_batch_size=0)
    sampler = InferenceSampler(4)
    with pytest.raises(ValueError):
        build_batch_data_loader(records, sampler, 2, single_gpu_batch_size=2)
    (batch,) = build_batch_data_loader(records, sampler, 0, single_gpu_batch_size=3)
    assert len(batch) == 3
    assert [len(b) for b in build_batch_data_loader(records, sampler, 3, drop_last=False)] == [3, 1]
    with pytest.raises((ValueError, AssertionError)):
        build_batch_data_loader(records, sampler, 2, aspect_ratio_grouping=True, drop_last=False)


def test_iterable_data_sets_take_no_sampler() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter({"n": i} for i in range(5))

    loader = build_detection_train_loader(
        Stream(), mapper=lambda r: r["n"], total_batch_size=2, aspect_ratio_grouping=False
    )
    assert list(loader) == [[0, 1], [2, 3]]
    assert list(build_detection_test_loader(Stream(), mapper=lambda r: r["n"], batch_size=2)) == [[0, 1], [2, 3], [4]]
    for build in (build_detection_train_loader, build_detection_test_loader):
        size = {"total_batch_size": 2} if build is build_detection_train_loader else {}
        with pytest.raises((ValueError, AssertionError)):
            build(Stream(), mapper=None, sampler=InferenceSampler(5), **size)


@pytest.mark.parametrize("name", ["RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"])
def test_samplers_by_name(toy, name: str) -> None:
    toy.DATALOADER.SAMPLER_TRAIN = name
    toy.DATALOADER.REPEAT_THRESHOLD = 2.0
    toy.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    toy.DATALOADER.ASPECT_RATIO_GROUPING = False
    ids = {x["image_id"] for batch in islice(iter(build_detection_train_loader(toy)), 12) for x in batch}
    assert len(ids) == (4 if name.startswith("Repeat") else 2)
    toy.DATALOADER.SAMPLER_TRAIN = "NoSampler"
    with pytest.raises(ValueError, match="NoSampler"):
        build_detection_train_loader(toy)


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader_reads_all_in_order(toy, workers: int) -> None:
    toy.DATALOADER.NUM_WORKERS = workers
    loader = build_detection_test_loader(toy, "toy_train")
    assert len(loader) == 4
    assert [[x["image_id"] for x in batch] for batch in loader] == [[97], [98], [99], [100]]
    assert len(build_detection_test_loader(toy, ["toy_train"], batch_size=3)) == 2


def test_images_without_annotations_train_when_kept(toy, coco) -> None:
    content = json.loads(open(coco[0]).read())
    content["annotations"] = []
    with open(coco[0], "w") as file:
        json.dump(content, file)
    toy.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    batch = next(iter(build_detection_train_loader(toy)))
    assert all(len(x["instances"]) == 0 for x in batch)
    toy.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    with pytest.raises((ValueError, AssertionError)):
        build_detection_train_loader(toy)
