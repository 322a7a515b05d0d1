import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog


def test_register_get_and_remove() -> None:
    DatasetCatalog.register("toy_a", lambda: [{"image_id": 1}])
    assert DatasetCatalog.get("toy_a") == [{"image_id": 1}]
    assert "toy_a" in DatasetCatalog and "toy_a" in DatasetCatalog.list()
    with pytest.raises(AssertionError, match="toy_a.*already registered"):
        DatasetCatalog.register("toy_a", lambda: [])
    DatasetCatalog.remove("toy_a")
    assert "toy_a" not in DatasetCatalog


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(KeyError, match="coco_2017_tran.*not registered.*coco_2017_train"):
        DatasetCatalog.get("coco_2017_tran")


@pytest.mark.embedded
def test_unknown_name_is_met_with_the_nearest_one() -> None:
    with pytest.raises(KeyError, match="Did you mean coco_2017_train"):
        DatasetCatalog.get("coco_2017_tran")


def test_metadata_is_one_object_per_name_and_set_once() -> None:
    meta = MetadataCatalog.get("toy_b")
    assert meta is MetadataCatalog.get("toy_b") and meta.name == "toy_b"
    meta.thing_classes = ["cat"]
    meta.thing_classes = ["cat"]
    assert meta.set(a=1, b=2) is meta
    with pytest.raises(AssertionError, match="thing_classes.*toy_b"):
        meta.thing_classes = ["dog"]
    assert meta.thing_classes == ["cat"]
    assert meta.as_dict() == {"name": "toy_b", "thing_classes": ["cat"], "a": 1, "b": 2}
    assert meta.get("nothing", 5) == 5 and not hasattr(meta, "nothing")
    with pytest.raises(AttributeError, match="nothing.*toy_b.*thing_classes"):
        _ = meta.nothing


def test_as_dict_is_a_copy() -> None:
    MetadataCatalog.get("toy_c").as_dict()["x"] = 1
    assert not hasattr(MetadataCatalog.get("toy_c"), "x")


def test_builtin_data_sets() -> None:
    """Counts of the published data sets, and the names under which configs know them."""
    coco = MetadataCatalog.get("coco_2017_train")
    assert len(coco.thing_classes) == len(coco.thing_colors) == 80
    assert coco.thing_dataset_id_to_contiguous_id[1] == 0 and coco.thing_dataset_id_to_contiguous_id[90] == 79
    assert coco.thing_classes[0] == "person" and coco.thing_classes[-1] == "toothbrush"
    stuff = MetadataCatalog.get("coco_2017_val_panoptic_stuffonly")
    assert len(stuff.stuff_classes) == 54 and stuff.stuff_classes[0] == "things" and stuff.ignore_label == 255
    assert stuff.sem_seg_root.endswith("coco/panoptic_stuff_val2017") and stuff.evaluator_type == "sem_seg"
    city = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert len(city.stuff_classes) == 19 and len(city.thing_classes) == 8
    assert city.evaluator_type == "cityscapes_sem_seg"
    voc = MetadataCatalog.get("voc_2007_test")
    assert len(voc.thing_classes) == 20 and (voc.year, voc.split, voc.evaluator_type) == (2007, "test", "pascal_voc")
    for name in ("coco_2014_valminusminival", "lvis_v1_val", "voc_2012_trainval"):
        assert name in DatasetCatalog
    assert MetadataCatalog.get("lvis_v0.5_train").evaluator_type == "lvis"
