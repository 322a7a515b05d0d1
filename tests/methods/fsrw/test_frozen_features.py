"""Features of a frozen backbone: kept by picture, exact, bounded, and never those of other weights."""

import torch
from fsrw_toy import fsrw_opts, support
from test_fsrw import batch, config
from tiny_detection import write_boxes

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.resumable import build_resumable_train_loader
from dyn_d2.modeling.answers import open_for_images
from dyn_d2.modeling.freeze import freeze_whole

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage


def frozen(folder, **more):
    torch.manual_seed(0)
    model = build_model(config("YOLOv2", MODEL__YOLO__CACHE=str(folder), **more))
    freeze_whole(model.backbone)
    return model


def losses(model, given) -> dict[str, torch.Tensor]:
    with EventStorage(500):
        return model(given)


def test_what_is_kept_is_what_was_computed(tmp_path) -> None:
    given, model = batch(), frozen(tmp_path)
    first = losses(model, given)
    assert (model.kept_features.computed, model.kept_features.found) == (2, 0)
    sum(first.values()).backward()
    assert model.layers.conv19.weight.grad is not None and model.backbone.conv1.weight.grad is None
    other = frozen(tmp_path)  # another process
    second = losses(other, given)
    assert (other.kept_features.computed, other.kept_features.found) == (0, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    maps = model.feature_maps([inputs["image"] for inputs in given], 96)
    exact = model.backbone(model.preprocess(given, 96))
    for name in ("conv13", "conv18"):  # to 16 bits
        torch.testing.assert_close(maps[name], exact[name].detach(), atol=1e-3, rtol=1e-3)


def test_other_weights_sizes_and_backbones_that_learn_have_none_of_them(tmp_path) -> None:
    given, model = batch(), frozen(tmp_path)
    losses(model, given)
    with torch.no_grad():
        model.backbone.conv1.weight.mul_(2.0)
    losses(model, given)
    assert model.kept_features.computed == 4
    model.feature_maps([given[0]["image"]], 128)
    assert model.kept_features.computed == 5
    learns = build_model(config("YOLOv2", MODEL__YOLO__CACHE=str(tmp_path / "none")))
    losses(learns, given)
    assert learns.kept_features.computed == 0 and not (tmp_path / "none").exists()


def test_damaged_entries_are_made_anew_and_the_folder_is_bounded(tmp_path, caplog) -> None:
    given, model = batch(), frozen(tmp_path)
    first = losses(model, given)
    one, _ = sorted(tmp_path.rglob("*.tensors"))
    one.write_bytes(one.read_bytes()[:500])
    again = losses(model, given)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert caplog.text.count("is damaged") == 1 and model.kept_features.computed == 3
    small = frozen(tmp_path / "small", MODEL__YOLO__CACHE_GB=1e-6)
    losses(small, given)
    assert "MODEL.YOLO.CACHE_GB 1e-06 holds not even one entry" in caplog.text and small.kept_features.computed == 2


def test_nothing_is_kept_of_single_images(tmp_path) -> None:
    model = frozen(tmp_path / "kept").eval()
    assert open_for_images(model, config("YOLOv2")) is None
    with torch.no_grad():
        model(batch())
    assert not (tmp_path / "kept").exists()


def test_queries_and_supports_share_what_is_kept(tmp_path) -> None:
    """One image, one view: all that a training looks at is found after the first."""
    data = write_boxes(tmp_path, objects=1)
    keys = {"MODEL__REWEIGHTING__NET": "features", "MODEL__REWEIGHTING__SUPPORT_SIZE": 96, "INPUT__RANDOM_FLIP": "none"}
    opts = fsrw_opts(data, tmp_path, MODEL__YOLO__CACHE=str(tmp_path / "kept"), **keys)
    cfg = build_cfg("", [*opts, "FEW_SHOT.STAGE", "finetune"])
    loader = build_resumable_train_loader(cfg)
    model = build_model(cfg)
    freeze_whole(model.backbone)
    for _, given in zip(range(4), loader, strict=False):
        assert given[0]["image"].shape == (3, 96, 96)
        losses(model, given)
    assert (
        model.kept_features.computed == len(list((tmp_path / "kept").rglob("*.tensors"))) <= len(loader.dataset.records)
    )
    assert model.kept_features.found > model.kept_features.computed


def test_vectors_from_features() -> None:
    model = build_model(
        config(MODEL__REWEIGHTING__NET="features", MODEL__REWEIGHTING__SUPPORT_FORM="image+mask+object")
    )
    given = support(3)
    vectors = model.embed(given)
    assert vectors.shape == (3, 51)
    sum(losses(model, batch()).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    moved = {"image": given["image"], "boxes": torch.tensor([[30.0, 30, 60, 60]] * 3)}
    assert (model.embed(moved) - model.embed(given)).abs().max() > 1e-4  # it looks where the box is
