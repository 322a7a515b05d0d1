"""Arrays of COCO's and LVIS' evaluation in the order of a data set's classes."""

from types import SimpleNamespace

import numpy as np
import pytest

from dyn_d2.evaluation.class_order import in_class_order

from detectron2.data import Metadata

TO_CLASS = {2: 3, 3: 1, 7: 0, 9: 2}


def _run(name: str, ids: list[int]) -> SimpleNamespace:
    """Every number is the id of its category."""
    of_category = np.array(ids, dtype=float)
    shape = np.ones((2, 5, len(ids), 3))
    arrays = {
        "precision": shape * of_category[:, None],
        "recall": np.ones((2, len(ids), 3)) * of_category[:, None],
    }
    return SimpleNamespace(params=SimpleNamespace(**{name: ids}), eval=arrays)


@pytest.mark.parametrize("name", ["catIds", "cat_ids"])
def test_class_k_is_entry_k_and_a_second_time_changes_nothing(name):
    run, metadata = _run(name, sorted(TO_CLASS)), Metadata(thing_dataset_id_to_contiguous_id=TO_CLASS)
    for _ in range(2):
        in_class_order(run, metadata)
        assert getattr(run.params, name) == [7, 3, 9, 2]
        assert run.eval["precision"][1, 4, :, 2].tolist() == run.eval["recall"][0, :, 1].tolist() == [7, 3, 9, 2]


@pytest.mark.parametrize("to_class", [{}, {2: 0, 3: 1}])
def test_other_categories_stay_as_they_are(to_class, caplog):
    run = _run("catIds", sorted(TO_CLASS))
    in_class_order(run, Metadata(name="a_set", thing_dataset_id_to_contiguous_id=to_class))
    assert any("a_set: the categories" in text for text in caplog.messages) == bool(to_class)
    assert run.params.catIds == sorted(TO_CLASS) and run.eval["recall"][0, :, 0].tolist() == sorted(TO_CLASS)
