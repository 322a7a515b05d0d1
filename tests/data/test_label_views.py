"""Views of labelled images that can be counted: numbers stand for what the mapper makes."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dyn_d2.data.classification import ClassificationMapper
from dyn_d2.data.classification.views import VIEW, NumberedRecords, NumberMapper, Views, label_views_problem

NOISE = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
RECORDS = [{"image": image, "label": i % 2, "image_id": 10 - i} for i, image in enumerate(NOISE)]


@pytest.mark.parametrize("flip, order", [(True, "BGR"), (False, "RGB")])
def test_a_number_is_what_the_mapper_would_have_drawn(flip, order) -> None:
    mapper = ClassificationMapper(is_train=True, flip=flip, image_format=order)
    assert label_views_problem(mapper, RECORDS) == ""
    views, numbered, number = Views(mapper, RECORDS), NumberedRecords(RECORDS), NumberMapper(mapper)
    assert len(views) == (12 if flip else 6) and views.size == (5, 7) and len(list(numbered)) == 6
    seen = set()
    for position in range(60):
        random.seed(position)
        mapped = mapper(RECORDS[position % 6])
        random.seed(position)
        short = number(numbered[position % 6])
        make, record = views[short.pop(VIEW)]
        made = make(record)
        assert torch.equal(made["image"], mapped["image"])
        assert short == {key: mapped[key] for key in ("label", "image_id")}
        seen.add((position % 6, made["image"].numpy().tobytes()))
    assert len(seen) == len(views)


@pytest.mark.parametrize(
    "keys, reason",
    [
        ({"pad_crop": 2}, "INPUT.CLASSIFICATION.PAD_CROP"),
        ({"random_resized_crop": 4}, "INPUT.CLASSIFICATION.RANDOM_RESIZED_CROP"),
        ({"color": 0.4}, "INPUT.CLASSIFICATION.COLOR"),
    ],
)
def test_what_cannot_be_counted_is_named(keys, reason) -> None:
    assert reason in label_views_problem(ClassificationMapper(is_train=True, **keys), RECORDS)
    assert label_views_problem(ClassificationMapper(is_train=False, **keys), RECORDS) == ""
    assert "mapped by function" in label_views_problem(lambda record: record, RECORDS)


def test_images_of_several_sizes_are_said_from_the_heads_of_their_files(tmp_path) -> None:
    records = [{"file_name": str(tmp_path / f"{i}.png"), "label": 0} for i in range(3)]
    for record, width in zip(records, (4, 6, 9), strict=True):
        Image.new("RGB", (width, 3)).save(record["file_name"])
    mapper = ClassificationMapper(is_train=True)
    assert label_views_problem(mapper, records[:1]) == ""
    assert "from 3 x 4 to 3 x 9" in label_views_problem(mapper, records)
    (tmp_path / "0.png").write_bytes(b"no picture")
    assert "no image can be read" in label_views_problem(mapper, records[:1])
    assert Views(mapper, records[:2]).size == (3, 6)
