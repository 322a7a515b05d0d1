"""Records and mapper where some objects have masks and others boxes only."""

import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from dyn_d2.config.read import read_cfg
from dyn_d2.data.few_shot.splits import COCO_NOVEL
from dyn_d2.data.partial_masks import (
    MaskError,
    PartialMaskMapper,
    apply_partial_masks,
    has_mask,
    limit_masks,
    masked_classes,
)
from dyn_d2.data.resumable import build_mapper, build_resumable_train_loader

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

NAMES = ["cup", "dog", "car"]


def annotation(category: int = 0, mask: bool = True, x: float = 10, **more) -> dict:
    polygon = [x, 10, x + 20, 10, x + 20, 30, x, 30]
    return {
        "bbox": [x, 10, x + 20, 30],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        **({"segmentation": [polygon]} if mask else {}),
        **more,
    }


def record(number: int, *annotations: dict) -> dict:
    return {
        "file_name": f"{number}.png",
        "image_id": number,
        "width": 64,
        "height": 48,
        "annotations": list(annotations),
    }


def masks_left(records: list[dict]) -> list[list[bool]]:
    return [[has_mask(a, r, i) for i, a in enumerate(r["annotations"])] for r in records]


def test_category_wise() -> None:
    records = [record(0, annotation(0), annotation(1)), record(1, annotation(2, mask=False), annotation(1))]
    limited = limit_masks(records, classes={1})
    assert masks_left(limited) == [[False, True], [False, True]]
    assert [[a["bbox"] for a in r["annotations"]] for r in limited] == [
        [a["bbox"] for a in r["annotations"]] for r in records
    ]
    assert masks_left(records) == [[True, True], [False, True]]  # the data set itself is as it was


@pytest.mark.parametrize(("fraction", "images"), [(0.0, 0), (0.001, 1), (0.1, 2), (0.5, 10), (1.0, 20)])
def test_image_wise_share_is_of_images_with_masks(fraction, images) -> None:
    records = [record(i, annotation(0), annotation(1)) for i in range(20)]
    records += [record(i, annotation(0, mask=False)) for i in range(20, 50)]
    left = masks_left(limit_masks(records, fraction=fraction))
    assert sum(map(any, left)) == images
    assert all(of_image in ([True, True], [False, False], [False]) for of_image in left)


def test_choice_of_images_follows_from_seed_and_id_and_is_nested() -> None:
    records = [record(i, annotation()) for i in range(40)]

    def chosen(records: list[dict], fraction: float, seed: int) -> set[int]:
        limited = limit_masks(records, fraction=fraction, seed=seed)
        return {r["image_id"] for r, left in zip(limited, masks_left(limited), strict=True) if any(left)}

    assert chosen(records, 0.1, 0) < chosen(records, 0.5, 0)
    assert chosen(records, 0.5, 0) == chosen(records[::-1], 0.5, 0) != chosen(records, 0.5, 1)


def test_records_of_one_image_are_treated_alike() -> None:
    records = [record(i // 2, annotation()) for i in range(40)]
    left = masks_left(limit_masks(records, fraction=0.5))
    assert left[0::2] == left[1::2] and sum(map(any, left)) == 20


def test_crowds_do_not_count() -> None:
    crowd = annotation(0, iscrowd=1, segmentation={"counts": b"", "size": [1, 1]})
    assert masks_left(limit_masks([record(0, annotation(0, mask=False))], fraction=1.0)) == [[False]]
    assert "segmentation" not in limit_masks([record(0, crowd)])[0]["annotations"][0]


def without_annotations(number: int) -> dict:
    return {key: value for key, value in record(number).items() if key != "annotations"}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_images_without_annotations_stay_as_they_are(place) -> None:
    records = [record(0, annotation(0), annotation(1)), record(1, annotation(1))]
    records.insert(place, without_annotations(2))
    limited = limit_masks(records, classes={1})
    assert limited.pop(place) == without_annotations(2)
    assert masks_left(limited) == [[False, True], [True]]
    assert limit_masks([without_annotations(2)]) == [without_annotations(2)]


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_fraction_out_of_range(fraction) -> None:
    with pytest.raises(ValueError, match="FRACTION"):
        limit_masks([], fraction=fraction)


def test_classes_by_name() -> None:
    assert masked_classes([], NAMES) is None
    assert masked_classes(["car", "cup"], NAMES) == {0, 2}
    with pytest.raises(ValueError, match="'cap'.*did you mean 'cup'"):
        masked_classes(["cap"], NAMES)


def test_voc_and_non_voc_divide_coco() -> None:
    coco = ["giraffe", *COCO_NOVEL[1], "zebra"]
    voc, others = masked_classes(["voc"], coco), masked_classes(["non-voc"], coco)
    assert voc == set(range(1, 21)) and others == {0, 21}
    assert masked_classes(["voc", "zebra"], coco) == {*voc, 21}
    with pytest.raises(ValueError, match="'person'"):
        masked_classes(["non-voc"], NAMES)
    with pytest.raises(ValueError, match="means none of the data set's classes .*no mask is left: name classes"):
        masked_classes(["non-voc"], COCO_NOVEL[1])


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"has_mask": True}, "no segmentation"),
        ({"has_mask": True, "segmentation": []}, "no segmentation"),
        ({"segmentation": {"counts": b"x", "size": [64, 48]}}, r"size \[64, 48\] in an image of 64 x 48"),
        ({"segmentation": [[100, 10, 120, 10, 120, 30]]}, "outside"),
        ({"segmentation": [[10, 10, 20, 10, 20, -30]]}, "outside"),
        ({"segmentation": [[10, 10, 20, 10]]}, "polygon"),
        ({"segmentation": [[10, 10, 20, 10, 20, float("nan")]]}, "no finite numbers"),
        ({"segmentation": [[10, 10, 20, 10, 20, "30"]]}, "corners that are no numbers"),
    ],
)
def test_wrong_masks_are_named(wrong, what) -> None:
    bad = {**annotation(mask=False), **wrong}
    for call in (lambda: limit_masks([record(3, annotation(), bad)]), lambda: has_mask(bad, record(3), 1)):
        with pytest.raises(MaskError, match=rf"3\.png, annotation 1: .*{what}"):
            call()
    with pytest.raises(MaskError, match="annotation 77"):
        has_mask({**bad, "id": 77}, record(3), 1)


def test_what_is_not_used_is_not_checked() -> None:
    assert not has_mask({**annotation(), "has_mask": False, "segmentation": [[900, 900, 950, 900, 950, 950]]}, {}, 0)
    assert has_mask(annotation(x=45.5), record(0), 0)  # leaves the image of width 64 by 1.5 pixels


# Mapper


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path)
    return str(path)


def mapper(kind=PartialMaskMapper, **changes):
    cfg = read_cfg()
    cfg.merge_from_list(["MODEL.MASK_ON", True, "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.RANDOM_FLIP", "none"])
    cfg.merge_from_list([part for key, value in changes.items() for part in (key.replace("__", "."), value)])
    return kind(cfg, is_train=True)


@pytest.mark.parametrize("form", ["polygon", "bitmask"])
@pytest.mark.parametrize("flags", itertools.product([True, False], repeat=2), ids=str)
def test_every_mixture_of_masks(image, form, flags) -> None:
    objects = [annotation(i, mask=flag, x=10 + 25 * i) for i, flag in enumerate(flags)]
    truth = mapper(INPUT__MASK_FORMAT=form)({**record(0, *objects), "file_name": image})["instances"]
    assert truth.gt_has_mask.tolist() == list(flags)
    assert truth.gt_classes.tolist() == [0, 1] and truth.gt_boxes.tensor[:, 0].tolist() == [20, 70]
    assert truth.gt_masks.nonempty().tolist() == list(flags)
    boxes = truth.gt_boxes.tensor[truth.gt_has_mask]
    assert truth.gt_masks[truth.gt_has_mask].crop_and_resize(boxes, 4).all()


def test_flag_hides_a_mask_and_crowds_are_left_out(image) -> None:
    objects = [annotation(0, has_mask=False), annotation(1, iscrowd=1), annotation(2)]
    truth = mapper()({**record(0, *objects), "file_name": image})["instances"]
    assert truth.gt_has_mask.tolist() == [False, True] and truth.gt_classes.tolist() == [0, 2]


def test_image_without_objects(image) -> None:
    truth = mapper()({**record(0), "file_name": image})["instances"]
    assert len(truth) == 0 and truth.gt_has_mask.shape == (0,)


def test_where_all_have_masks_it_is_detectron2s_mapper(image) -> None:
    source = {**record(0, annotation(0), annotation(1, x=35)), "file_name": image}
    own, stock = (mapper(kind)(source)["instances"] for kind in (PartialMaskMapper, DatasetMapper))
    assert torch.equal(own.gt_boxes.tensor, stock.gt_boxes.tensor) and own.gt_has_mask.all()
    for mine, theirs in zip(own.gt_masks.polygons, stock.gt_masks.polygons, strict=True):
        np.testing.assert_array_equal(np.stack(mine), np.stack(theirs))
    assert own.get_fields().keys() - stock.get_fields().keys() == {"gt_has_mask"}


def test_crops_take_boxes_from_masks_where_there_are_any(image) -> None:
    small = [[12, 12, 18, 12, 18, 18, 12, 18]]
    objects = [annotation(0, segmentation=small), annotation(1, mask=False)]
    cropping = mapper(INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE="absolute", INPUT__CROP__SIZE=[48, 64])
    truth = cropping({**record(0, *objects), "file_name": image})["instances"]
    torch.testing.assert_close(truth.gt_boxes.tensor, torch.tensor([[24.0, 24, 36, 36], [20, 20, 60, 60]]))


@pytest.mark.parametrize("form", ["polygon", "bitmask"])
def test_run_lengths_stand_beside_polygons_in_either_format(image, form) -> None:
    bits = np.zeros((48, 64), np.uint8, order="F")
    bits[10:30, 35:55] = 1
    objects = [annotation(0), annotation(1, x=35, segmentation=mask_util.encode(bits))]
    truth = mapper(INPUT__MASK_FORMAT=form)({**record(0, *objects), "file_name": image})["instances"]
    assert truth.gt_masks.crop_and_resize(truth.gt_boxes.tensor, 4).all()
    assert truth.gt_masks.get_bounding_boxes().tensor[1].tolist() == [70, 20, 110, 60]


# Keys


@pytest.fixture
def data_set(image):
    records = [{**record(i, annotation(0), annotation(1, x=35)), "file_name": image} for i in range(4)]
    DatasetCatalog.register("partial_toy", lambda: records)
    MetadataCatalog.get("partial_toy").set(thing_classes=NAMES)
    yield "partial_toy"
    DatasetCatalog.remove("partial_toy")
    MetadataCatalog.remove("partial_toy")


def toy_cfg(name: str, *more):
    cfg = read_cfg()
    keys = ["DATASETS.TRAIN", (name,), "MODEL.MASK_ON", True, "SEED", 1, "DATALOADER.NUM_WORKERS", 0]
    keys += ["SOLVER.IMS_PER_BATCH", 2, "MODEL.ROI_MASK_HEAD.NAME", "PartialMaskHead"]
    cfg.merge_from_list([*keys, *more])
    return cfg


def test_loader_follows_the_keys(data_set) -> None:
    cfg = toy_cfg(data_set, "INPUT.PARTIAL_MASKS.CLASSES", ["dog"], "INPUT.PARTIAL_MASKS.FRACTION", 0.5)
    loader = build_resumable_train_loader(cfg)
    assert sum(sum(left) for left in masks_left(list(loader.dataset.records))) == 2
    with EventStorage():
        batch = next(iter(loader))
    assert all(x["instances"].gt_has_mask.shape == (2,) and not x["instances"].gt_has_mask[0] for x in batch)


def test_head_that_needs_all_masks_is_refused(data_set) -> None:
    keys = ("INPUT.PARTIAL_MASKS.CLASSES", ["dog"], "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    with pytest.raises(ValueError, match="4 of 8 objects of partial_toy.*PartialMaskHead"):
        build_resumable_train_loader(toy_cfg(data_set, *keys))
    build_resumable_train_loader(toy_cfg(data_set, *keys[2:]))


@pytest.mark.parametrize(
    ("head", "agnostic", "warned"),
    [("PartialMaskHead", True, False), ("PartialMaskHead", False, True), ("WeightTransferMaskHead", False, False)],
)
def test_classes_that_will_have_no_masks_are_named(data_set, caplog, head, agnostic, warned) -> None:
    keys = ("INPUT.PARTIAL_MASKS.CLASSES", ["dog"], "MODEL.ROI_MASK_HEAD.NAME", head)
    cfg = toy_cfg(data_set, *keys, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    caplog.set_level("INFO", "dyn_d2.data.partial_masks")
    apply_partial_masks(cfg, DatasetCatalog.get(data_set))
    assert "4 of 8 objects have masks, in 4 of 4 images" in caplog.text
    assert ("no object of cup has a mask" in caplog.text) == warned


@pytest.mark.parametrize("first", [True, False])
def test_masks_are_limited_wherever_an_image_without_annotations_stands(data_set, caplog, first) -> None:
    cfg = toy_cfg(data_set, "INPUT.PARTIAL_MASKS.CLASSES", ["dog"])
    records = DatasetCatalog.get(data_set)
    caplog.set_level("INFO", "dyn_d2.data.partial_masks")
    limited = apply_partial_masks(
        cfg, [without_annotations(9), *records] if first else [*records, without_annotations(9)]
    )
    assert limited.pop(0 if first else -1) == without_annotations(9)
    assert masks_left(limited) == 4 * [[False, True]]
    assert "4 of 8 objects have masks, in 4 of 5 images" in caplog.text
    bare = [without_annotations(i) for i in range(2)]
    assert apply_partial_masks(cfg, bare) is bare


def test_models_without_masks_are_left_alone(data_set) -> None:
    cfg = toy_cfg(data_set, "MODEL.MASK_ON", False, "INPUT.PARTIAL_MASKS.CLASSES", ["no class"])
    records = DatasetCatalog.get(data_set)
    assert apply_partial_masks(cfg, records) is records
    assert type(build_mapper(cfg, data_set, is_train=True)) is DatasetMapper


def test_training_without_any_mask_is_refused_with_the_classes_that_have_some(data_set) -> None:
    with pytest.raises(ValueError, match=r"CLASSES \['car'\] leave no mask.*are of cup, dog: name one of these"):
        build_resumable_train_loader(toy_cfg(data_set, "INPUT.PARTIAL_MASKS.CLASSES", ["car"]))
    boxes = [record(0, annotation(0, mask=False)), record(1, annotation(1, mask=False))]
    with pytest.raises(ValueError, match="no object of partial_toy has a mask.*MODEL.MASK_ON to False"):
        apply_partial_masks(toy_cfg(data_set), boxes)


def test_a_small_share_of_images_may_have_no_mask_of_the_classes(data_set) -> None:
    cfg = toy_cfg(data_set, "INPUT.PARTIAL_MASKS.FRACTION", 0.01, "INPUT.PARTIAL_MASKS.CLASSES", ["dog"])
    records = [record(i, annotation(0)) for i in range(50)] + [record(50, annotation(1))]
    with pytest.raises(ValueError, match=r"\['dog'\] and FRACTION 0.01 leave no mask.*raise FRACTION"):
        apply_partial_masks(cfg, records)


def test_the_novel_stage_of_few_shot_training_may_have_no_mask(data_set) -> None:
    cfg = toy_cfg(
        data_set, "INPUT.PARTIAL_MASKS.CLASSES", ["car"], "FEW_SHOT.BENCHMARK", "toy", "FEW_SHOT.STAGE", "novel"
    )
    assert not any(map(any, masks_left(apply_partial_masks(cfg, DatasetCatalog.get(data_set)))))
