"""Data sets for image classification: each published format read from tiny files, and what is said of bad ones."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from dyn_d2.cli import check_data
from dyn_d2.data.check import check_dataset
from dyn_d2.data.classification import check_labels, ensure_classes, register_folders, require_files
from dyn_d2.data.classification.mapper import decode
from dyn_d2.data.classification.names import CIFAR10, CIFAR100, CIFAR100_SUPERCLASS_OF
from dyn_d2.data.few_shot.sources import forget

from detectron2.data import DatasetCatalog, MetadataCatalog


def random_images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_cifar_batch(path: Path, images: np.ndarray, **labels) -> None:
    path.parent.mkdir(exist_ok=True)
    content = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), **labels}
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_packed(path: Path, images: list[bytes], labels: list[int], classes=CIFAR10) -> None:
    path.parent.mkdir(exist_ok=True)
    offset = np.cumsum([0, *map(len, images)])
    data = np.frombuffer(b"".join(images), np.uint8)
    np.savez_compressed(path, jpeg=data, offset=offset, label=np.array(labels, np.uint8), classes=np.array(classes))


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """Registers tmp_path/train and tmp_path/test, one folder a class, as birds_train and birds_test."""
    for split, name in (("train", "owl"), ("train", "crow"), ("test", "owl")):
        (tmp_path / split / name).mkdir(parents=True)
        for i, image in enumerate(random_images(2, 20)):
            Image.fromarray(image).save(tmp_path / split / name / f"{i}.png")
    for split in ("train", "test"):
        register_folders(f"birds_{split}", tmp_path / split, classes_from=tmp_path / "train")
    yield tmp_path
    for split in ("train", "test"):
        forget(f"birds_{split}")


def test_cifar10(root) -> None:
    images = random_images(15)
    for i in range(5):
        part = slice(3 * i, 3 * i + 3)
        write_cifar_batch(root / f"cifar-10-batches-py/data_batch_{i + 1}", images[part], labels=[i, 9, i])
    records = DatasetCatalog.get("cifar10_train")
    assert [record["label"] for record in records] == [label for i in range(5) for label in (i, 9, i)]
    assert all(np.array_equal(decode(record), image) for record, image in zip(records, images, strict=True))
    assert records[7]["image_id"] == 7 and (records[7]["height"], records[7]["width"]) == (32, 32)
    metadata = MetadataCatalog.get("cifar10_train")
    assert metadata.thing_classes[:2] == ["airplane", "automobile"] and metadata.evaluator_type == "classification"


def test_cifar100_has_superclasses(root) -> None:
    fine = [CIFAR100.index("apple"), CIFAR100.index("tractor"), CIFAR100.index("beaver")]
    coarse = [CIFAR100_SUPERCLASS_OF[label] for label in fine]
    write_cifar_batch(root / "cifar-100-python/test", random_images(3), fine_labels=fine, coarse_labels=coarse)
    assert [record["label"] for record in DatasetCatalog.get("cifar100_test")] == fine
    metadata = MetadataCatalog.get("cifar100_test")
    named = [metadata.superclasses[metadata.superclass_of[label]] for label in fine]
    assert named == ["fruit_and_vegetables", "vehicles_2", "aquatic_mammals"]
    assert len(metadata.thing_classes) == 100 and np.bincount(metadata.superclass_of).tolist() == [5] * 20
    write_cifar_batch(root / "cifar-100-python/test", random_images(3), fine_labels=fine, coarse_labels=coarse[::-1])
    with pytest.raises(ValueError, match="coarse labels do not fit"):
        DatasetCatalog.get("cifar100_test")


def test_svhn_trains_on_the_extra_images_too(root) -> None:
    (root / "svhn").mkdir()
    images = random_images(5)
    for name, part, labels in (("train", slice(0, 2), [10, 1]), ("extra", slice(2, 5), [9, 10, 3])):
        content = {"X": images[part].transpose(1, 2, 3, 0), "y": np.array(labels)[:, None]}
        savemat(root / f"svhn/{name}_32x32.mat", content)
    records = DatasetCatalog.get("svhn_train")
    assert [record["label"] for record in records] == [0, 1, 9, 0, 3]  # SVHN calls the digit 0 "10"
    assert all(np.array_equal(decode(record), image) for record, image in zip(records, images, strict=True))
    (root / "svhn/extra_32x32.mat").write_bytes(b"nonsense" * 100)
    with pytest.raises(ValueError, match=r"extra_32x32\.mat is no .*SVHN"):
        DatasetCatalog.get("svhn_train")


def test_packed_jpeg(root) -> None:
    encoded = [jpeg(image) for image in random_images(3)]
    write_packed(root / "cifar10_jpeg/test.npz", encoded, [0, 1, 9])
    records = DatasetCatalog.get("cifar10_jpeg_test")
    assert [record["label"] for record in records] == [0, 1, 9]
    for record, data in zip(records, encoded, strict=True):
        assert np.array_equal(decode(record), np.asarray(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode({"image": encoded[0]}), decode(records[0]))  # bytes as they are


def test_digits_come_with_scikit_learn() -> None:
    train, test = DatasetCatalog.get("digits_train"), DatasetCatalog.get("digits_test")
    assert (len(train), len(test)) == (1437, 360) and {record["label"] for record in test} == set(range(10))
    image = decode(train[0])
    assert image.shape == (8, 8, 3) and image.max() == 239 and (image[..., 0] == image[..., 2]).all()


def test_folders_are_classes(folders) -> None:
    assert ensure_classes("birds_test") == ["crow", "owl"]  # from the training folder, "crow" has no test image
    assert [record["label"] for record in DatasetCatalog.get("birds_train")] == [0, 0, 1, 1]
    records = DatasetCatalog.get("birds_test")
    assert [record["label"] for record in records] == [1, 1] and records[0]["file_name"].endswith("owl/0.png")
    (folders / "test" / "emu").mkdir()
    with pytest.raises(ValueError, match="none of the 2 classes: emu"):
        DatasetCatalog.get("birds_test")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10_train", "cifar-10-batches-py/data_batch_1"),
        ("cifar100_test", "cifar-100-python/test"),
        ("svhn_train", "svhn/extra_32x32.mat"),
        ("cifar10_jpeg_test", "cifar10_jpeg/test.npz"),
        ("imagenet_val", "imagenet/val"),
    ],
)
def test_missing_files_name_path_variable_and_address(root, name, file) -> None:
    for look in (DatasetCatalog.get, require_files, check_dataset):
        with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS.*published at.*http") as error:
            look(name)
        assert str(root / file) in str(error.value)


def test_broken_files_are_named(root) -> None:
    batch = root / "cifar-10-batches-py/test_batch"
    write_cifar_batch(batch, random_images(2), labels=[3, 10])
    with pytest.raises(ValueError, match="image 1 has label 10, labels have to be 0 to 9"):
        DatasetCatalog.get("cifar10_test")
    batch.write_bytes(batch.read_bytes()[:500])
    with pytest.raises(ValueError, match="test_batch is no batch file"):
        DatasetCatalog.get("cifar10_test")
    packed = root / "cifar10_jpeg/test.npz"
    write_packed(packed, [b"x", b"y"], [0])
    with pytest.raises(ValueError, match="2 images but 1 labels"):
        DatasetCatalog.get("cifar10_jpeg_test")
    write_packed(packed, [b"x"], [0], classes=CIFAR10[::-1])
    with pytest.raises(ValueError, match="not those of CIFAR-10"):
        DatasetCatalog.get("cifar10_jpeg_test")
    packed.write_bytes(packed.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"test\.npz is no npz"):
        DatasetCatalog.get("cifar10_jpeg_test")


def test_a_pickle_cannot_run_code(root) -> None:
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({"data": print}))
    with pytest.raises(ValueError, match="refused: the pickle asks for builtins.print"):
        DatasetCatalog.get("cifar10_test")


def test_check_finds_images_that_do_not_open(folders, capsys) -> None:
    (folders / "train/owl/1.png").write_bytes(b"no image")
    (report,) = check_dataset("birds_train")
    assert [problem.kind for problem in report.problems] == ["unreadable_image"]
    assert report.problems[0].where.endswith("owl/1.png") and report.counts["crow"]["objects"] == 2
    assert check_data.main(["--dataset", "birds_train"]) == 1
    assert "owl/1.png" in capsys.readouterr().out
    assert check_data.main(["--dataset", "digits_test"]) == 0
    assert "360 images" in capsys.readouterr().out


def test_check_of_records(folders) -> None:
    records = DatasetCatalog.get("birds_train")
    records[0]["label"], records[1]["label"] = 2, True
    records[2] = {"label": 1, "image_id": 2}
    Path(records[3]["file_name"]).unlink()
    kinds = [problem.kind for problem in check_labels(records, "birds_train").problems]
    assert kinds == ["label_range", "label_range", "bad_entry", "missing_image"]
    array = [{"image": torch.zeros(8, 8, 3).numpy(), "label": 0, "image_id": 0}]
    assert "float32" in check_labels(array, "birds_train", read_images=True).problems[0].what


def test_what_lies_between_the_images_of_a_folder(tmp_path) -> None:
    """Hidden files and folders are no images, whatever their names; a lost image is missing; the rest is said."""
    for name in ("cat", "dog"):
        (tmp_path / name / "day.png").mkdir(parents=True)
        for file in ("a.png", "b.TIF", "day.png/c.gif"):
            Image.new("RGB", (8, 9)).save(
                tmp_path / name / file, format={"g": "PNG", "F": "TIFF", "f": "GIF"}[file[-1]]
            )
    (tmp_path / "cat/._a.png").write_bytes(b"x")
    (tmp_path / "cat/.cache").mkdir()
    (tmp_path / "cat/.cache/d.png").write_bytes(b"x")
    (tmp_path / "dog/notes.txt").write_bytes(b"x")
    register_folders("between", tmp_path)
    try:
        names = [Path(record["file_name"]).name for record in DatasetCatalog.get("between")]
        assert names == ["a.png", "b.TIF", "c.gif"] * 2
        (report,) = check_dataset("between")
        assert report.ok and "1 file below" in report.text() and "notes.txt" in report.text(), report.text()
        (tmp_path / "dog/lost.png").symlink_to(tmp_path / "nowhere.png")
        assert [problem.kind for problem in check_dataset("between")[0].problems] == ["missing_image"]
    finally:
        forget("between")
