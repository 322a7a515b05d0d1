"""Views are known without their images, and are those that Detectron2's mapper would have made."""

from types import SimpleNamespace

import pytest
import torch
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.resumable import build_resumable_train_loader, isolated_random
from dyn_d2.data.views import OBJECTS, ViewMapper, count_views, evaluation_mapper, known_in_evaluation, views_problem

from detectron2.data import DatasetMapper


@pytest.fixture
def cfg(tmp_path):
    return build_cfg(
        "", tiny_opts(write_boxes(tmp_path / "data"), tmp_path, FEW_SHOT__STAGE="finetune", FEW_SHOT__SHOTS=2)
    )


def test_views_are_those_of_the_mapper_at_every_position(cfg) -> None:
    records = list(build_resumable_train_loader(cfg).dataset.records)
    plain = DatasetMapper(cfg, is_train=True)
    by_view, seen = ViewMapper(plain, lambda view: False), ViewMapper(plain, lambda view: True)
    names = set()
    for position, record in enumerate([*records, *records]):
        results = []
        for mapper in (plain, by_view, seen):
            with isolated_random("position", position):
                results.append(mapper(record))
        wanted, found, lazy = results
        assert "image" in found and "image" not in lazy
        for other in (found, lazy):
            assert torch.equal(wanted["image"], other["image"]) and wanted["image_id"] == other["image_id"]
            for name in ("gt_boxes", "gt_classes"):
                a, b = (x["instances"].get(name) for x in (wanted, other))
                assert torch.equal(getattr(a, "tensor", a), getattr(b, "tensor", b))
            assert "annotations" not in other
        boxes = found["instances"].gt_boxes.tensor
        assert all((found["objects"] == box).all(dim=1).any() for box in boxes) and len(found["objects"]) == 3
        assert found["view"].size == tuple(wanted["image"].shape[1:])
        assert found["sampling_seed"] == lazy["sampling_seed"] and found["identity"] == lazy["identity"]
        names.add((found["view"].file_name, found["view"].name))
    assert len(names) > len({name for name, _ in names}) > 1
    assert len({name for _, name in names}) <= count_views(plain) * 2 == 12  # wide and tall ones
    assert any("HFlip" in name for _, name in names) and not all("HFlip" in name for _, name in names)


def test_a_known_view_needs_no_image(cfg, tmp_path) -> None:
    record = dict(build_resumable_train_loader(cfg).dataset.records[0], file_name=str(tmp_path / "gone.png"))
    mapper = ViewMapper(DatasetMapper(cfg, is_train=True), lambda view: True)
    found = mapper(record)
    assert "image" not in found and len(found["instances"]) == 1
    with pytest.raises(FileNotFoundError):
        found["image"]
    with pytest.raises(KeyError):
        found["other"]


def test_records_name_all_objects_of_their_image(cfg) -> None:
    for record in build_resumable_train_loader(cfg).dataset.records:
        assert len(record["annotations"]) == 1 and len(record[OBJECTS]) == 3


def test_evaluation_by_views(cfg) -> None:
    plain = DatasetMapper(cfg, is_train=False)
    assert evaluation_mapper(plain, 1) is plain
    record = build_resumable_train_loader(cfg).dataset.records[0]
    with known_in_evaluation(SimpleNamespace(fits=lambda images: images < 10, has=lambda view: True)):
        mapper = evaluation_mapper(plain, 1)
        assert evaluation_mapper(plain, 10) is plain
    found = mapper(record)
    assert "image" not in found and "annotations" not in found and "sampling_seed" not in found
    assert torch.equal(found["image"], plain(record)["image"])
    unsized = {key: value for key, value in record.items() if key not in ("width", "height")}
    assert "view" not in mapper(unsized) and "image" in mapper(unsized)


def test_what_has_no_finite_number_of_views_is_said(cfg) -> None:
    records = list(build_resumable_train_loader(cfg).dataset.records)
    assert not views_problem(DatasetMapper(cfg, is_train=True), records)
    assert "how large" in views_problem(DatasetMapper(cfg, is_train=True), [{"file_name": "a.png"}])
    cfg.INPUT.CROP.ENABLED = True
    assert "RandomCrop" in views_problem(DatasetMapper(cfg, is_train=True), records)
    assert "function" in views_problem(lambda record: record, records)
