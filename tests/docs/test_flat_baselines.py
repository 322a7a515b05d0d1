"""The flat baselines that pages name have as many classes as their data sets."""

import re
from pathlib import Path

import pytest

import dyn_d2  # noqa: F401  registers the data sets

from detectron2.data import MetadataCatalog

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "data_set", "start"),
    [
        ("docs/dsspn.md", "mapillary_vistas_train", "after the keys of Mapillary"),
        ("configs/DSSPN/street_lite0.yaml", "labelmefacade_train", "with LabelMeFacade also"),
    ],
)
def test_a_flat_head_has_the_classes_of_its_data(page: str, data_set: str, start: str) -> None:
    text = (ROOT / page).read_text()
    (count,) = re.findall(rf"{start}[^\n]*?MODEL.SEM_SEG_HEAD.NUM_CLASSES (\d+)", text)
    assert int(count) == len(MetadataCatalog.get(data_set).stuff_classes)
