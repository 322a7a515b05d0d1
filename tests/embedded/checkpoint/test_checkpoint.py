"""Saving, resuming, refusing, and finding weights under foreign names."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from dyn_d2.backend import describe_backend

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts, convert_c2_detectron_names
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone

embedded_only = pytest.mark.skipif("embedded" not in describe_backend(), reason="only the embedded engine promises it")


def small_model():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_save_and_resume(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert not checkpointer.has_checkpoint()
    periodic = PeriodicCheckpointer(checkpointer, 2, max_iter=6, max_to_keep=1)
    for iteration in range(6):
        periodic.step(iteration, note={"best": 0.5})
    # max_to_keep counts the periodic files only.
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000005.pth", "model_final.pth"]

    other = small_model()
    fresh = torch.optim.SGD(other.parameters(), lr=9.0, momentum=0.9)
    extra = DetectionCheckpointer(other, str(tmp_path), optimizer=fresh).resume_or_load("", resume=True)
    assert equal(model, other) and extra["iteration"] == 5 and fresh.param_groups[0]["lr"] == 0.1
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]

    third = small_model()
    only_model = DetectionCheckpointer(third).resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
    assert equal(model, third) and "optimizer" in only_model


@embedded_only
def test_numbers_of_numpy_are_data(tmp_path):
    checkpointer = DetectionCheckpointer(small_model(), str(tmp_path))
    checkpointer.save("model", best=np.float64(0.5), seen=np.arange(3), flag=np.bool_(True))
    extra = checkpointer.load(str(tmp_path / "model.pth"))
    assert extra["best"] == 0.5 and extra["seen"].tolist() == [0, 1, 2] and extra["flag"]


@embedded_only
def test_a_killed_save_leaves_the_old_file(tmp_path, monkeypatch):
    checkpointer = DetectionCheckpointer(small_model(), str(tmp_path))
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def half(data, stream):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/h1_evil",)


@embedded_only
@pytest.mark.parametrize("name", ["x.pth", "x.pkl"])
def test_code_in_a_checkpoint_is_refused(tmp_path, name):
    file = tmp_path / name
    if name.endswith("pth"):
        torch.save({"model": {"a": Evil()}}, file)
    else:
        file.write_bytes(pickle.dumps({"model": {"a": Evil()}, "__author__": "x"}))
    with pytest.raises(pickle.UnpicklingError, match=f"{name}.*system"):
        DetectionCheckpointer(small_model()).load(str(file))


@embedded_only
def test_what_is_no_checkpoint_says_so(tmp_path):
    checkpointer = DetectionCheckpointer(small_model())
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        checkpointer.load(str(tmp_path / "absent.pth"))
    torch.save({"model": small_model().state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:500])
    (tmp_path / "text.pkl").write_text("hello")
    for name in ("cut.pth", "text.pkl"):
        with pytest.raises(pickle.UnpicklingError, match=name):
            checkpointer.load(str(tmp_path / name))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth"):
        checkpointer.load(str(tmp_path / "list.pth"))
    with pytest.raises(ValueError, match="colour=red"):
        checkpointer.load(str(tmp_path / "whole.pth?colour=red"))


def test_empty_path_loads_nothing():
    assert DetectionCheckpointer(small_model()).load("") == {}


def test_prefixes_are_matched_by_the_longest_name():
    model = {
        "backbone.conv1.weight": torch.zeros(1),
        "backbone.res2.conv1.weight": torch.zeros(1),
        "head.wide_conv1.weight": torch.zeros(1),
        "head.size.weight": torch.zeros(2),
    }
    loaded = {
        "conv1.weight": torch.ones(1),
        "res2.conv1.weight": torch.full((1,), 2.0),
        "size.weight": torch.ones(3),
        "other": torch.ones(1),
    }
    result = align_and_update_state_dicts(model, loaded, c2_conversion=False)
    assert result["backbone.conv1.weight"] == 1 and result["backbone.res2.conv1.weight"] == 2
    assert "head.wide_conv1.weight" not in result and "head.size.weight" not in result
    assert {"size.weight", "other"} <= result.keys()
    model["second.res2.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError):
        align_and_update_state_dicts(model, loaded, c2_conversion=False)


def test_names_of_caffe2_detectors():
    expected = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res_conv1_bn_b": "stem.conv1.norm.bias",
        "res2_0_branch1_w": "res2.0.shortcut.weight",
        "res2_0_branch1_bn_b": "res2.0.shortcut.norm.bias",
        "res3_1_branch2a_w": "res3.1.conv1.weight",
        "res4_22_branch2b_bn_s": "res4.22.conv2.norm.weight",
        "res5_2_branch2c_bn_riv": "res5.2.conv3.norm.running_var",
        "res5_2_branch2c_bn_rm": "res5.2.conv3.norm.running_mean",
        "conv_rpn_w": "proposal_generator.rpn_head.conv.weight",
        "rpn_cls_logits_fpn2_b": "proposal_generator.rpn_head.objectness_logits.bias",
        "rpn_bbox_pred_w": "proposal_generator.rpn_head.anchor_deltas.weight",
        "fpn_inner_res2_2_sum_lateral_w": "fpn_lateral2.weight",
        "fpn_inner_res5_2_sum_b": "fpn_lateral5.bias",
        "fpn_res3_3_sum_w": "fpn_output3.weight",
        "fpn_res3_3_sum_gn_s": "fpn_output3.norm.weight",
        "fc6_w": "box_head.fc1.weight",
        "fc7_b": "box_head.fc2.bias",
        "head_conv1_gn_b": "box_head.conv1.norm.bias",
        "_[mask]_fcn1_w": "mask_head.mask_fcn1.weight",
        "conv5_mask_b": "mask_head.deconv.bias",
        "pred_w": "linear.weight",
    }
    weights = {name: torch.full((1,), float(i)) for i, name in enumerate(expected)}
    converted, original = convert_c2_detectron_names(weights)
    assert original == {new: old for old, new in expected.items()}
    assert all(torch.equal(converted[new], weights[old]) for old, new in expected.items())


def test_the_background_class_of_caffe2_moves_to_the_end():
    weights = {
        "cls_score_b": torch.arange(4.0),
        "bbox_pred_w": torch.arange(16.0).reshape(16, 1),
        "mask_fcn_logits_b": torch.arange(4.0),
    }
    converted, _ = convert_c2_detectron_names(weights)
    assert converted["cls_score.bias"].tolist() == [1, 2, 3, 0]
    assert converted["bbox_pred.weight"].flatten().tolist() == list(range(4, 16))
    assert converted["mask_head.predictor.bias"].tolist() == [1, 2, 3]


def resnet18():
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.RESNETS.DEPTH",
            18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            64,
            "MODEL.RESNETS.OUT_FEATURES",
            ["res5"],
            "MODEL.RESNETS.STRIDE_IN_1X1",
            False,
        ]
    )
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    return nn.ModuleDict({"backbone": backbone})


def test_caffe2_pickles_fill_a_backbone(tmp_path):
    model = resnet18()
    blobs = {
        "conv1_w": np.full((64, 3, 7, 7), 0.5, np.float32),
        "conv1_w_momentum": np.zeros(1, np.float32),
        "res2_0_branch2a_w": np.full((64, 64, 3, 3), 0.25, np.float32),
        "res2_0_branch2a_bn_s": np.full(64, 3, np.float32),
        "pred_b": np.zeros(1000, np.float32),
    }
    for name, content in (("c2.pkl", blobs), ("detector.pkl", {"blobs": blobs, "cfg": "text"})):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
        model["backbone"].stem.conv1.weight.data.zero_()
        DetectionCheckpointer(model).load(str(tmp_path / name))
        assert (model["backbone"].stem.conv1.weight == 0.5).all()
        assert (model["backbone"].res2[0].conv1.weight == 0.25).all()
        assert (model["backbone"].res2[0].conv1.norm.weight == 3).all()


def test_model_zoo_pickles(tmp_path):
    model = small_model()
    weights = {name: np.full(value.shape, 2, np.float32) for name, value in model.state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "someone"}))
    DetectionCheckpointer(model).load(str(tmp_path / "zoo.pkl"))
    assert all((value == 2).all() for value in model.state_dict().values())


@embedded_only
def test_torchvision_files_fill_a_backbone(tmp_path):
    from torchvision.models import resnet18 as torchvision_resnet18

    theirs = torchvision_resnet18(weights=None).eval()
    for buffer in theirs.buffers():
        if buffer.dtype == torch.float32:
            buffer.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    model = resnet18()
    DetectionCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    image = torch.randn(1, 3, 64, 64)
    expected = theirs.layer4(
        theirs.layer3(theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image)))))))
    )
    assert torch.allclose(model["backbone"](image)["res5"], expected, atol=1e-4)
    DetectionCheckpointer(theirs).load(str(tmp_path / "resnet18.pth"))


def test_old_files_may_lack_or_have_what_the_config_gives(tmp_path):
    model = small_model()
    model.register_buffer("pixel_mean", torch.full((3, 1, 1), 7.0))
    state = {key: value for key, value in model.state_dict().items() if key != "pixel_mean"}
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    torch.save({"model": state}, tmp_path / "old.pth")
    seen = []
    checkpointer = DetectionCheckpointer(model)
    checkpointer._log_incompatible_keys = seen.append
    checkpointer.load(str(tmp_path / "old.pth"))
    assert seen[0].missing_keys == [] and seen[0].unexpected_keys == [] and (model.pixel_mean == 7).all()


def test_wrong_shapes_are_skipped(tmp_path):
    torch.save({"model": {"0.weight": torch.ones(9, 9), "1.bias": torch.full((2,), 5.0)}}, tmp_path / "x.pth")
    model = small_model()
    before = model[0].weight.detach().clone()
    DetectionCheckpointer(model).load(str(tmp_path / "x.pth"))
    assert torch.equal(model[0].weight, before) and (model[1].bias == 5).all()


def _parallel_worker(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(small_model())
    # Only the main process can see the file, as on a machine without a shared disk.
    path = f"{folder}/x.pth" if rank == 0 else f"{folder}/elsewhere/x.pth"
    extra = DetectionCheckpointer(model).load(path)
    torch.save(
        [(value == 3).all().item() for value in model.state_dict().values()] + [extra["iteration"] == 8],
        f"{folder}/{rank}.result",
    )
    torch.distributed.barrier()  # a process that leaves early breaks the other's connection
    torch.distributed.destroy_process_group()


@embedded_only
def test_a_file_of_the_main_process_reaches_the_others(tmp_path):
    state = {name: torch.full_like(value, 3) for name, value in small_model().state_dict().items()}
    torch.save({"model": state, "iteration": 8}, tmp_path / "x.pth")
    # Forked: a spawned process would spend seconds on imports.
    torch.multiprocessing.start_processes(_parallel_worker, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        assert all(torch.load(tmp_path / f"{rank}.result", weights_only=True))
