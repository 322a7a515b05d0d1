"""Properties of the K-shot sampler."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyn_d2.data.few_shot import NotEnoughShots, ShotSet, collect_candidates, sample_shots
from dyn_d2.data.few_shot.sampling import Candidate, ObjectId, sample_whole_images, shots_path

from detectron2.structures import BoxMode

fast = settings(max_examples=40, deadline=None)

# Class name -> for each of its objects the image that it is in, and whether it may be used.
WORLDS = st.dictionaries(
    st.sampled_from(["cat", "dog", "potted plant", "b", "ü"]),
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12),
    min_size=1,
)


def candidates_of(world: dict) -> dict[str, list[Candidate]]:
    return {
        name: [
            Candidate(ObjectId("train", image, f"{name}{number}"), usable)
            for number, (image, usable) in enumerate(objects)
        ]
        for name, objects in world.items()
    }


def smallest_class(candidates: dict) -> int:
    return min(sum(candidate.usable for candidate in found) for found in candidates.values())


def draw(candidates: dict, shots: int, seed: int = 0, **options) -> ShotSet:
    return sample_shots(candidates, benchmark="test", seed=seed, shots=shots, **options)


@fast
@given(WORLDS, st.integers(1, 12), st.integers(0, 5))
def test_exactly_k_distinct_usable_objects_of_each_class_or_an_error_with_class_and_count(world, shots, seed) -> None:
    candidates = candidates_of(world)
    usable = {name: {c.id for c in found if c.usable} for name, found in candidates.items()}
    lacking = {name: len(ids) for name, ids in usable.items() if len(ids) < shots}
    if lacking:
        with pytest.raises(NotEnoughShots) as error:
            draw(candidates, shots, seed)
        assert all(f"{name} ({count})" in str(error.value) for name, count in lacking.items())
        return
    result = draw(candidates, shots, seed)
    assert set(result.objects) == set(candidates)
    for name, ids in result.objects.items():
        assert len(ids) == len(set(ids)) == shots and set(ids) <= usable[name]


@fast
@given(WORLDS, st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.sampled_from(["instance", "image"]))
def test_fewer_shots_are_part_of_more_shots(world, few, many, seed, unit) -> None:
    few, many = sorted((few, many))
    candidates = candidates_of(world)
    if smallest_class(candidates) < 1:
        return
    small = draw(candidates, few, seed, unit=unit, at_most=True)
    large = draw(candidates, many, seed, unit=unit, at_most=True)
    for name, ids in small.objects.items():
        assert set(ids) <= set(large.objects[name])
        if unit == "instance":
            assert ids == large.objects[name][: len(ids)]


@fast
@given(WORLDS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_neither_other_classes_nor_the_order_of_the_file_change_the_draw(world, seed, shuffler: random.Random) -> None:
    candidates = candidates_of(world)
    shots = smallest_class(candidates)
    if shots < 1:
        return
    together = draw(candidates, shots, seed)
    for name, found in candidates.items():
        shuffler.shuffle(found)
        assert draw({name: found}, shots, seed).objects[name] == together.objects[name]
    assert draw(candidates, shots, seed).hash == together.hash


@fast
@given(WORLDS, st.integers(1, 4), st.integers(0, 5))
def test_image_unit_takes_whole_images(world, shots, seed) -> None:
    candidates = candidates_of(world)
    images = {name: {c.id.image for c in found if c.usable} for name, found in candidates.items()}
    if min(map(len, images.values())) < shots:
        with pytest.raises(NotEnoughShots, match="images"):
            draw(candidates, shots, seed, unit="image")
        return
    for name, ids in draw(candidates, shots, seed, unit="image").objects.items():
        chosen = {i.image for i in ids}
        assert len(chosen) == shots
        assert set(ids) == {c.id for c in candidates[name] if c.usable and c.id.image in chosen}


@fast
@given(WORLDS, st.integers(1, 4), st.integers(0, 5))
def test_whole_images_have_the_objects_of_all_classes(world, shots, seed) -> None:
    candidates = candidates_of(world)
    images = {name: {c.id.image for c in found if c.usable} for name, found in candidates.items()}
    if min(map(len, images.values())) < shots:
        with pytest.raises(NotEnoughShots, match="whole_image|images"):
            draw(candidates, shots, seed, unit="whole_image")
        return
    of_class = draw(candidates, shots, seed, unit="image").objects
    chosen = {i.image for ids in of_class.values() for i in ids}
    for name, ids in draw(candidates, shots, seed, unit="whole_image").objects.items():
        assert set(ids) == {c.id for c in candidates[name] if c.usable and c.id.image in chosen}


def test_seeds_and_classes_draw_differently_and_every_object_has_its_turn() -> None:
    ids = [Candidate(ObjectId("train", image, image), True) for image in range(20)]
    draws = [draw({"cat": ids, "dog": ids}, 5, seed) for seed in range(60)]
    assert len({d.objects["cat"] for d in draws}) == 60
    assert all(d.objects["cat"] != d.objects["dog"] for d in draws)
    counts = [sum(ids[i].id in d.objects["cat"] for d in draws) for i in range(20)]
    assert min(counts) >= 4 and max(counts) <= 30  # 15 expected of each


def test_known_draw() -> None:
    """A sample must not change from one version of the program, of Python or of numpy to the next."""
    ids = [Candidate(ObjectId("train", image, image), True) for image in range(10)]
    assert [i.image for i in draw({"cat": ids}, 4, seed=3).objects["cat"]] == [0, 2, 3, 4]


def test_at_most_takes_what_there_is_but_not_nothing() -> None:
    one = [Candidate(ObjectId("train", 1, 1), True)]
    assert len(draw({"cat": one}, 10, at_most=True).objects["cat"]) == 1
    with pytest.raises(NotEnoughShots, match=r"dog \(0\)"):
        draw({"cat": one, "dog": [Candidate(ObjectId("train", 1, 2), False)]}, 10, at_most=True)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="SHOTS=0"):
        draw({}, 0)
    with pytest.raises(ValueError, match="SHOTS_UNIT='box'"):
        draw({}, 1, unit="box")


def test_crowds_difficult_empty_and_ambiguous_objects_are_never_usable() -> None:
    def annotation(number, box=(1, 1, 5, 5), **more):
        return {"id": number, "category_id": 0, "bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, **more}

    records = [
        {
            "image_id": 1,
            "annotations": [
                annotation(1),
                annotation(2, iscrowd=1),
                annotation(3, difficult=1),
                annotation(4, box=(1, 1, 0, 5)),
                annotation(5, box=(1, 1, float("nan"), 5)),
                annotation(6),
            ],
        },
        {"image_id": 2, "annotations": [annotation(6)]},
    ]
    found = collect_candidates({"train": records}, ["cat"])["cat"]
    assert [c.id.annotation for c in found if c.usable] == [1]
    assert [c.id.annotation for c in found if c.difficult] == [3]
    assert len(found) == 7


def test_saved_sets_come_back_and_edited_ones_are_refused(tmp_path) -> None:
    candidates = candidates_of({"cat": [(1, True), (2, True)], "ü": [(3, True)]})
    shots = draw(candidates, 1, seed=7)
    path = tmp_path / "sub" / "1shot.json"
    shots.save(path)
    again = ShotSet.load(path)
    assert again == shots and again.hash == shots.hash
    assert again.restrict(["cat"]).objects == {"cat": shots.objects["cat"]}
    content = json.loads(path.read_text())
    assert content["seed"] == 7 and content["objects"]["ü"] == [["train", 3, "ü0"]]
    with pytest.raises(KeyError, match="dog"):
        again.restrict(["dog"])

    content["objects"]["ü"] = [["train", 4, "ü0"]]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="edited"):
        ShotSet.load(path)
    path.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(ValueError, match="not a K-shot set"):
        ShotSet.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid json"):
        ShotSet.load(path)


def whole(candidates: dict, shots: int, seed: int = 0, max_objects: int = 3) -> ShotSet:
    return sample_whole_images(candidates, benchmark="test", seed=seed, shots=shots, max_objects=max_objects)


@fast
@given(WORLDS, st.integers(1, 4), st.integers(0, 5), st.integers(1, 4))
def test_whole_images_give_exactly_k_and_leave_nothing_unlabelled(world, shots, seed, max_objects) -> None:
    candidates = candidates_of(world)
    try:
        drawn = whole(candidates, shots, seed, max_objects)
    except NotEnoughShots as error:
        assert f"at most {max_objects} objects" in str(error) and "FEW_SHOT.MAX_OBJECTS" in str(error)
        return
    assert {name: len(set(ids)) for name, ids in drawn.objects.items()} == dict.fromkeys(candidates, shots)
    used = {i for ids in drawn.objects.values() for i in ids}
    images = {i.image for i in used}
    shown = [c for found in candidates.values() for c in found if c.id.image in images]
    assert {c.id for c in shown} == used and all(c.usable for c in shown)
    assert all(sum(c.id.image == image for c in shown) <= max_objects for image in images)
    assert whole(candidates, shots, seed, max_objects) == drawn


def test_whole_images_are_found_in_another_order_where_the_first_fails() -> None:
    """One shot of each class: cat and dog are in one image, and a bird alone. Orders that begin with the image of a cat
    and a bird find no dog."""
    world = {"cat": [(0, True), (1, True)], "dog": [(0, True)], "bird": [(1, True), (2, True)]}
    for seed in range(12):
        drawn = whole(candidates_of(world), 1, seed)
        assert {i.image for ids in drawn.objects.values() for i in ids} == {0, 2}
    with pytest.raises(NotEnoughShots, match=r"2 shots of each class: .*dog \(1\)"):
        whole(candidates_of(world), 2)


def test_a_set_of_whole_images_says_so_in_its_file(tmp_path) -> None:
    drawn = whole(candidates_of({"cat": [(0, True), (1, True)]}), 2)
    path = shots_path(tmp_path, "test", 0, 2, max_objects=3)
    assert path.name == "2shot_whole3.json"
    drawn.save(path)
    assert ShotSet.load(path) == drawn and ShotSet.load(path).max_objects == 3
    assert "max_objects" not in sample_shots({}, benchmark="test", seed=0, shots=1).to_dict()
