"""The two other label sets of DigitScenes: the same pixels under coarser names."""

import numpy as np
import pytest

from dyn_d2.data.digit_scenes import (
    SEMANTIC_CLASSES,
    VARIANTS,
    DigitScenesSpec,
    generate_digit_scenes,
    register_digit_scenes,
    write_variants,
)
from dyn_d2.data.digit_scenes.variants import map_folder
from dyn_d2.data.semantic import IGNORE, read_label_map
from dyn_d2.hierarchy import load_hierarchy

from detectron2.data import DatasetCatalog, MetadataCatalog

DIGITS = set(SEMANTIC_CLASSES[1:11])
SCENERY = set(SEMANTIC_CLASSES[11:])


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digit_scenes"
    generate_digit_scenes(root, DigitScenesSpec(num_train=5, num_val=2), quiet=True)
    assert write_variants(root) == 14 and write_variants(root) == 0
    register_digit_scenes(root, "variants_test")
    yield root
    for name in [name for name in DatasetCatalog.list() if name.startswith("variants_test")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("variant, merged, into", [("digits", SCENERY, "scenery"), ("places", DIGITS, "digit")])
def test_every_pixel_has_the_coarser_name(registered, variant, merged, into):
    fine = {r["image_id"]: r for split in ("train", "val") for r in DatasetCatalog.get(f"variants_test_{split}_sem")}
    for split in ("train", "val"):
        names = MetadataCatalog.get(f"variants_test_{variant}_{split}_sem").stuff_classes
        for record in DatasetCatalog.get(f"variants_test_{variant}_{split}_sem"):
            ours = read_label_map(record["sem_seg_file_name"])
            truth = read_label_map(record["sem_seg_file_name"].replace(f"semantic_{variant}", "semantic"))
            assert ((ours == IGNORE) == (truth == IGNORE)).all()
            for label in np.unique(truth[truth != IGNORE]):
                name = SEMANTIC_CLASSES[label]
                assert {names[i] for i in np.unique(ours[truth == label])} == {into if name in merged else name}
    assert len(fine) == 5


def test_the_variants_share_no_training_image(registered):
    names = {v: [r["file_name"] for r in DatasetCatalog.get(f"variants_test_{v}_train_sem")] for v in VARIANTS}
    assert [len(files) for files in names.values()] == [3, 2] and not set(names["digits"]) & set(names["places"])
    assert len(DatasetCatalog.get("variants_test_places_val_sem")) == 2


def test_metadata_leads_to_the_tree():
    for name in ("digit_scenes", *(f"digit_scenes_{variant}" for variant in VARIANTS)):
        metadata = MetadataCatalog.get(f"{name}_val_sem")
        labels = load_hierarchy(metadata.hierarchy).labels(metadata.label_set)
        assert list(labels) == metadata.stuff_classes and metadata.ignore_label == IGNORE


def test_missing_maps_name_the_command(registered, tmp_path):
    root = tmp_path / "older"
    generate_digit_scenes(root, DigitScenesSpec(num_train=1, num_val=1), quiet=True)
    register_digit_scenes(root, "variants_test_older")
    assert not map_folder(root, "places", "val").exists()
    with pytest.raises(FileNotFoundError, match="semantic_places.*prepare digit-scenes --root"):
        DatasetCatalog.get("variants_test_older_places_val_sem")
