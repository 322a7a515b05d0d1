"""Files that onnxruntime runs: equal to the model, gates as If, and a server over one of them."""

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_forms import MASKS, tiny

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.cli.export import main
from dyn_d2.export import export_onnx
from dyn_d2.export.compare import session, trial_image

from detectron2.data import MetadataCatalog

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


def _operators(graph) -> list[str]:
    inside = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [node.op_type for node in graph.node] + [op for part in inside for op in _operators(part)]


@pytest.mark.slow
def test_blocks_are_ifs_and_any_size_fits(tmp_path) -> None:
    keys = {"MODEL__BACKBONE__NAME": "build_gated_cifar_resnet_backbone", "MODEL__RESNETS__OUT_FEATURES": ["res4"]}
    cfg, model = tiny("classifier", MODEL__POLICY__NAME="convnet_aig", MODEL__RESNETS__DEPTH=8, **keys)
    report = export_onnx(cfg, model, tmp_path / "a.onnx", described={"classes": ["a", "b", "c"]})
    assert len(report.differences) == 3 and max(difference.largest for difference in report.differences) < 1e-4
    file = onnx.load(tmp_path / "a.onnx")
    units = model.backbone.policy.units
    assert [node.op_type for node in file.graph.node].count("If") == len(units) == 2
    outside = [node.op_type for node in file.graph.node].count("Conv")
    assert _operators(file.graph).count("Conv") == outside + 2 * len(units)  # nothing of a block is outside of its If
    inside = [a.g for node in file.graph.node if node.op_type == "If" for a in node.attribute]
    for branch in inside:  # where onnxruntime finds them
        weights = {name for node in branch.node if node.op_type == "Conv" for name in node.input[1:]}
        assert weights <= {tensor.name for tensor in branch.initializer}
    about = json.loads({entry.key: entry.value for entry in file.metadata_props}["dyn_d2"])
    assert about["classes"] == ["a", "b", "c"] and about["gates"] == "if" and about["task"] == "classification"
    assert any(model([{"image": trial_image(3, (64, 80))}])[0]["route"].open.values())


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """A folder with the checkpoint of a Mask R-CNN, and its file."""
    folder = tmp_path_factory.mktemp("detector")
    keys = MASKS | {"MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone", "DATASETS__TRAIN": "('elsewhere',)"}
    cfg, model = tiny("rcnn_fpn", **keys)
    MetadataCatalog.get("elsewhere").set(thing_classes=["cat", "dog", "cow"])
    DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("model_final")
    MetadataCatalog.remove("elsewhere")
    assert main(["--weights", str(folder / "model_final.pth"), "--output", str(folder / "model.onnx")]) == 0
    return folder


@pytest.mark.slow
def test_a_detector_of_any_size(detector) -> None:
    run = session(str(detector / "model.onnx"))
    for size in ((160, 320), (224, 160)):
        boxes, scores, classes, masks = run.run(None, {"image": trial_image(3, size)[None].numpy()})
        count = int((classes >= 0).sum())
        assert 0 < count and boxes.shape == (100, 4) and masks.shape == (100, 8, 8)
        assert (scores[:count] > 0).all() and not scores[count:].any() and (np.diff(scores) <= 0).all()
        assert boxes.min() >= 0 and (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()


async def _post(app, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a POST, without a network."""
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    more = {"http_version": "1.1", "asgi": {"version": "3.0"}, "root_path": "", "scheme": "http"}
    await app({**scope, **more}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.slow
def test_the_server_of_the_page_answers(detector, tmp_path, monkeypatch) -> None:
    pytest.importorskip("fastapi")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "FastAPI" in block]
    monkeypatch.chdir(detector)
    names: dict = {}
    exec(compile(code, "server.py", "exec"), names)  # noqa: S102
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    status, body = asyncio.run(_post(names["app"], (tmp_path / "a.png").read_bytes()))
    assert status == 200
    found = json.loads(body)
    assert found and {entry["class"] for entry in found} <= {"cat", "dog", "cow"}
    assert all(0 <= entry["box"][0] <= entry["box"][2] <= 90.01 for entry in found)


@pytest.mark.slow
def test_a_semantic_segmentor_in_batches(tmp_path) -> None:
    cfg, model = tiny("semantic_fpn", MODEL__POLICY__NAME="skipnet_rnn")
    report = export_onnx(cfg, model, tmp_path / "a.onnx", gates="dense")
    assert max(difference.largest for difference in report.differences) < 1e-4
    images = torch.stack([trial_image(3, (160, 192)), trial_image(3, (160, 192)).flip(2)])
    (scores,) = session(str(tmp_path / "a.onnx")).run(None, {"image": images.numpy()})
    for image, given in zip(images, scores, strict=True):
        (output,) = model([{"image": image, "height": 160, "width": 192}])
        assert np.allclose(given, output["sem_seg"].detach(), atol=1e-4)


def test_a_missing_package_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dyn_d2.export.onnx_file.is_missing", lambda name: name == "onnxscript")
    cfg, model = tiny("classifier")
    with pytest.raises(Exception, match=r"pip install 'dyn_d2\[export\]'"):
        export_onnx(cfg, model, tmp_path / "a.onnx")
