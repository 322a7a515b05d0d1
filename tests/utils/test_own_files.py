"""Files of ours that were cut off or edited."""

import json

import pytest

from dyn_d2.data.pseudo_masks import _read_cache, read_masks
from dyn_d2.evaluation.convergence import training_seconds
from dyn_d2.evaluation.figures import _read_detections
from dyn_d2.utils.own_files import read_json_of


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 5000, '{"a": 1, "a": 2}', "3", "\x00", '"x"'])
def test_no_json_object(tmp_path, text) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a.json \(a thing\) (is not valid json|does not hold a json object)"):
        read_json_of(path, "a thing")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="a.json"):
        read_json_of(path, "a thing")


@pytest.mark.parametrize("row", ['{"iterat', "3", "[]", "{}", '{"iteration": "a"}', "[" * 5000])
def test_a_log_that_was_cut_off(tmp_path, row) -> None:
    (tmp_path / "metrics.json").write_text('{"iteration": 19, "time": 0.5}\n' + row)
    with pytest.raises(ValueError, match="metrics.json, line 2, is no row of a log"):
        training_seconds(tmp_path)


@pytest.mark.parametrize("content", [{}, [1], [{"image_id": 1}], [[]]])
def test_no_list_of_detections(tmp_path, content) -> None:
    (tmp_path / "found.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="found.json"):
        _read_detections(tmp_path / "found.json")


MASK = {"size": [2, 2], "counts": [1, 3]}


@pytest.mark.parametrize("content", [
    [], {}, {"annotations": 3}, {"annotations": [3]},
    {"annotations": [{"image_id": 1, "bbox": [1, 2], "segmentation": MASK}]},
    {"annotations": [{"image_id": 1, "bbox": [0, 0, 2, 2], "segmentation": {**MASK, "counts": [9]}}]},
    {"annotations": [{"image_id": 1, "bbox": [0, 0, 2, 2], "segmentation": None}]},
], ids=str)  # fmt: skip
def test_no_pseudo_masks(tmp_path, content) -> None:
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="masks.json is no json of masks"):
        read_masks(str(path))
    good = {"annotations": [{"image_id": 1, "bbox": [0, 0, 2, 2], "segmentation": MASK}]}
    path.write_text(json.dumps(good))
    assert read_masks(str(path)) == {("1", (0.0, 0.0, 2.0, 2.0)): MASK}
    path.write_text(json.dumps(content if isinstance(content, list) else {"place": 3}))
    assert _read_cache(path) == {}
