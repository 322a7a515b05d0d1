"""Published configs by name (tests/parity compares their values with Detectron2's own)."""

import os

import pytest
import yaml

from dyn_d2.backend import describe_backend

if "embedded" not in describe_backend():
    pytest.skip("how configs are derived is a matter of the embedded engine", allow_module_level=True)

from detectron2 import model_zoo
from detectron2.model_zoo.published import names


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", names())
def test_every_config_loads(name, cache):
    cfg = model_zoo.get_config(f"{name}.yaml")
    file = model_zoo.get_config_file(name)
    assert file.startswith(str(cache)) and file.endswith(f"{name}.yaml")
    assert cfg.MODEL.RESNETS.DEPTH == (101 if "_101_" in name else 50)
    assert cfg.MODEL.MASK_ON == ("mask_rcnn" in name)
    assert cfg.SOLVER.MAX_ITER > max(cfg.SOLVER.STEPS)


def test_derived_files_need_no_other_file_and_repair_themselves(cache):
    file = model_zoo.get_config_file("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml")
    content = open(file).read()
    assert "_BASE_" not in yaml.safe_load(content)
    with open(file, "w") as stream:
        stream.write("broken")
    assert open(model_zoo.get_config_file("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml")).read() == content
    assert os.listdir(os.path.dirname(file)) == ["faster_rcnn_R_50_FPN.yaml"]


def test_without_a_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert model_zoo.get_config("COCO-Detection/rpn_R_50_C4_1x.yaml").MODEL.META_ARCHITECTURE == "ProposalNetwork"


def test_base_files_belong_to_the_package():
    assert model_zoo.get_config("Base-RCNN-FPN.yaml").MODEL.ROI_BOX_HEAD.NUM_FC == 2


def test_addresses():
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    url = "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/"
    assert model_zoo.get_checkpoint_url(name) == url + "137260431/model_final_a54504.pkl"
    assert model_zoo.get_config(name, trained=True).MODEL.WEIGHTS == model_zoo.get_checkpoint_url(name)
    with pytest.raises(RuntimeError, match="semantic_R_50"):
        model_zoo.get_checkpoint_url("Misc/semantic_R_50_FPN_1x.yaml")


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(RuntimeError, match=r"nearest names.*COCO-Detection/faster_rcnn_R_50_FPN_1x"):
        model_zoo.get_config_file("COCO-Detection/faster_rcnn_R50_FPN_1x.yaml")
