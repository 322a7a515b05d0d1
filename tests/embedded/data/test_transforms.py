import numpy as np
import pytest
from PIL import Image

from detectron2.data import transforms as T

RNG = np.random.RandomState(0)
IMAGE = RNG.randint(0, 256, (30, 40, 3), dtype=np.uint8)
LABELS = RNG.randint(0, 5, (30, 40), dtype=np.uint8)
BOXES = np.array([[2.0, 3.0, 20.0, 18.0], [10.0, 5.0, 39.0, 29.0]])


def test_resize_scales_pixels_and_coordinates() -> None:
    resize = T.ResizeTransform(30, 40, 15, 80)
    expected = np.asarray(Image.fromarray(IMAGE).resize((80, 15), Image.BILINEAR))
    assert np.array_equal(resize.apply_image(IMAGE), expected)
    assert resize.apply_coords(np.array([[10.0, 10.0]])).tolist() == [[20.0, 5.0]]
    assert resize.inverse().apply_coords(np.array([[20.0, 5.0]])).tolist() == [[10.0, 10.0]]
    assert set(np.unique(resize.apply_segmentation(LABELS))) <= set(range(5))


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_keeps_axes_and_type(shape, dtype) -> None:
    image = RNG.randint(0, 256, shape).astype(dtype)[:, ::-1]
    result = T.ResizeTransform(30, 40, 11, 17).apply_image(image)
    assert result.shape == (11, 17, *shape[2:]) and result.dtype == dtype


def test_resize_refuses_another_size() -> None:
    with pytest.raises((ValueError, AssertionError)):
        T.ResizeTransform(31, 40, 5, 5).apply_image(IMAGE)


@pytest.mark.parametrize(
    ("size", "length", "limit", "expected"),
    [
        ((30, 40), 15, 1000, (15, 20)),
        ((40, 30), 15, 1000, (20, 15)),
        ((30, 60), 30, 40, (20, 40)),
        ((480, 640), 800, 1333, (800, 1067)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((100, 100), 33, 1000, (33, 33)),
    ],
)
def test_shortest_edge(size, length, limit, expected) -> None:
    assert T.ResizeShortestEdge.get_output_shape(*size, length, limit) == expected
    assert (
        T.ResizeShortestEdge(length, limit)(T.AugInput(np.zeros(size, np.uint8)))
        .apply_image(np.zeros(size, np.uint8))
        .shape
        == expected
    )


def test_shortest_edge_draws_from_its_lengths() -> None:
    chosen = {T.ResizeShortestEdge((10, 20), sample_style="choice").get_transform(IMAGE).new_h for _ in range(50)}
    assert chosen == {10, 20}
    ranged = {T.ResizeShortestEdge((10, 13)).get_transform(IMAGE).new_h for _ in range(80)}
    assert ranged == {10, 11, 12, 13}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(IMAGE), T.NoOpTransform)
    with pytest.raises((ValueError, AssertionError)):
        T.ResizeShortestEdge((10, 20, 30), sample_style="range")
    with pytest.raises((ValueError, AssertionError)):
        T.ResizeShortestEdge(10, sample_style="often")


@pytest.mark.parametrize("trial", range(5))
def test_scale_then_crop_gives_the_target_size(trial: int) -> None:
    inputs = T.AugInput(IMAGE, sem_seg=LABELS)
    T.AugmentationList([T.ResizeScale(0.3, 1.9, 32, 48), T.FixedSizeCrop((32, 48))])(inputs)
    assert inputs.image.shape == (32, 48, 3) and inputs.sem_seg.shape == (32, 48)


def test_fixed_crop_pads_with_its_values_and_only_if_asked() -> None:
    inputs = T.AugInput(IMAGE, sem_seg=LABELS)
    T.FixedSizeCrop((40, 50), pad_value=7, seg_pad_value=99)(inputs)
    assert np.array_equal(inputs.image[:30, :40], IMAGE) and (inputs.image[30:] == 7).all()
    assert (inputs.sem_seg[30:] == 99).all() and (inputs.sem_seg[:, 40:] == 99).all()
    inputs = T.AugInput(IMAGE)
    T.FixedSizeCrop((40, 20), pad=False)(inputs)
    assert inputs.image.shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("kind", "size", "rows", "columns"),
    [
        ("relative", (0.5, 0.25), {15}, {10}),
        ("relative_range", (0.5, 0.5), set(range(15, 31)), set(range(20, 41))),
        ("absolute", (10, 100), {10}, {40}),
        ("absolute_range", (10, 35), set(range(10, 31)), set(range(10, 36))),
    ],
)
def test_random_crop_sizes_and_content(kind, size, rows, columns) -> None:
    crop = T.RandomCrop(kind, size)
    for _ in range(20):
        window = crop.get_transform(IMAGE)
        assert window.h in rows and window.w in columns
        assert 0 <= window.y0 <= 30 - window.h and 0 <= window.x0 <= 40 - window.w
        cut = IMAGE[window.y0 : window.y0 + window.h, window.x0 : window.x0 + window.w]
        assert np.array_equal(window.apply_image(IMAGE), cut)


@pytest.mark.embedded
@pytest.mark.parametrize(("kind", "size"), [("relative", (1.5, 0.5)), ("absolute_range", (30, 10)), ("some", (1, 1))])
def test_random_crop_says_what_is_wrong(kind, size) -> None:
    with pytest.raises(ValueError, match=f"RandomCrop.*{'crop_type' if kind == 'some' else kind}"):
        T.RandomCrop(kind, size)


def test_area_constraint_avoids_windows_of_one_label() -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[:, 20:] = 1
    image = np.zeros((30, 40, 3), np.uint8)
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (30, 16), 0.9)
    shares = [np.mean(crop.get_transform(image, labels).apply_segmentation(labels)) for _ in range(30)]
    assert np.mean([0.1 < s < 0.9 for s in shares]) > 0.9
    unconstrained = T.RandomCrop_CategoryAreaConstraint("absolute", (30, 16))
    assert unconstrained.get_transform(image, labels).w == 16
    # The other label is ignored, so only one is left and no window ever qualifies; the last one is taken.
    ignoring = T.RandomCrop_CategoryAreaConstraint("absolute", (30, 16), 0.9, ignored_category=1)
    assert ignoring.get_transform(image, labels).w == 16


def test_flips() -> None:
    flip = T.RandomFlip(1.0).get_transform(IMAGE)
    assert np.array_equal(flip.apply_image(IMAGE), IMAGE[:, ::-1])
    assert flip.apply_box(BOXES.copy()).tolist() == [[20, 3, 38, 18], [1, 5, 30, 29]]
    vertical = T.RandomFlip(1.0, horizontal=False, vertical=True).get_transform(IMAGE)
    assert np.array_equal(vertical.apply_image(IMAGE), IMAGE[::-1])
    assert isinstance(T.RandomFlip(0.0).get_transform(IMAGE), T.NoOpTransform)
    for wrong in ({"vertical": True}, {"horizontal": False}):
        with pytest.raises(ValueError):
            T.RandomFlip(**wrong)


@pytest.mark.parametrize("name", ["RandomBrightness", "RandomContrast", "RandomSaturation"])
def test_intensity_one_changes_nothing_and_zero_gives_the_reference(name: str) -> None:
    augmentation = getattr(T, name)
    assert np.array_equal(augmentation(1.0, 1.0).get_transform(IMAGE).apply_image(IMAGE), IMAGE)
    reference = augmentation(0.0, 0.0).get_transform(IMAGE).apply_image(IMAGE)
    if name == "RandomBrightness":
        assert not reference.any()
    elif name == "RandomContrast":
        assert len(np.unique(reference)) == 1 and abs(int(reference[0, 0, 0]) - IMAGE.mean()) < 1
    else:
        assert np.array_equal(reference[..., 0], reference[..., 1]) and len(np.unique(reference)) > 20


def test_lighting_shifts_all_pixels_alike() -> None:
    image = np.full((4, 5, 3), 100.0)
    lit = T.RandomLighting(20.0).get_transform(image).apply_image(image)
    assert np.ptp(lit.reshape(-1, 3), axis=0).max() < 1e-9 and not np.allclose(lit, image)
    with pytest.raises((ValueError, AssertionError)):
        T.RandomLighting(1.0).get_transform(np.zeros((4, 5, 1)))


def test_random_apply() -> None:
    flip = T.HFlipTransform(40)
    inputs = T.AugInput(IMAGE)
    assert isinstance(T.RandomApply(flip, 0.0)(inputs), T.NoOpTransform) and inputs.image is IMAGE
    assert T.RandomApply(flip, 1.0)(inputs) is flip and np.array_equal(inputs.image, IMAGE[:, ::-1])
    with pytest.raises((ValueError, AssertionError)):
        T.RandomApply(flip, 1.2)


def test_a_list_applies_each_to_the_result_of_the_one_before() -> None:
    inputs = T.AugInput(IMAGE, boxes=BOXES.copy(), sem_seg=LABELS)
    augmentations = [T.ResizeShortestEdge(60), T.RandomFlip(1.0), T.RandomCrop("relative", (0.5, 0.5))]
    transforms = T.AugmentationList(augmentations)(inputs)
    assert isinstance(transforms, T.TransformList) and len(transforms) == 3
    assert inputs.image.shape[:2] == inputs.sem_seg.shape == (30, 40)
    assert np.array_equal(transforms.apply_image(IMAGE), inputs.image)
    assert np.allclose(transforms.apply_box(BOXES.copy()), inputs.boxes)


def test_own_augmentations_name_what_they_need() -> None:
    class NeedsLabels(T.Augmentation):
        def get_transform(self, image, sem_seg):
            assert sem_seg is LABELS
            return T.NoOpTransform()

    class Wrong(T.Augmentation):
        def get_transform(self, image):
            return image

    class Unclear(T.Augmentation):
        def get_transform(self, image, *others):
            return T.NoOpTransform()

    class Elsewhere(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    NeedsLabels()(T.AugInput(IMAGE, sem_seg=LABELS))
    with pytest.raises((TypeError, AssertionError)):
        Wrong()(T.AugInput(IMAGE))
    with pytest.raises(TypeError):
        Unclear()(T.AugInput(IMAGE))
    with pytest.raises(AttributeError, match="depth"):
        Elsewhere()(T.AugInput(IMAGE))


def test_apply_augmentations_takes_images_and_inputs() -> None:
    image, transforms = T.apply_augmentations([T.Resize(8)], IMAGE)
    assert image.shape == (8, 8, 3) and len(transforms) == 1
    inputs, _ = T.apply_augmentations([T.Resize(8)], T.AugInput(IMAGE))
    assert inputs.image.shape == (8, 8, 3)


def test_representation_shows_what_differs_from_the_defaults() -> None:
    assert repr(T.ResizeShortestEdge(8, 20)) == "ResizeShortestEdge(short_edge_length=(8, 8), max_size=20)"
    assert repr(T.RandomFlip()) == "RandomFlip()"


def test_one_seed_gives_one_augmentation() -> None:
    augmentations = [T.ResizeShortestEdge((20, 60)), T.RandomCrop("relative_range", (0.4, 0.4)), T.RandomFlip()]
    results = []
    for _ in range(2):
        np.random.seed(8)
        results.append([T.apply_augmentations(augmentations, IMAGE)[0] for _ in range(3)])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.embedded
def test_what_is_left_out_says_so() -> None:
    with pytest.raises(ImportError, match="RandomRotation.*leaves out rotation"):
        _ = T.RandomRotation
    with pytest.raises(TypeError, match="Expected a Transform or an Augmentation"):
        T.AugmentationList(["flip"])
