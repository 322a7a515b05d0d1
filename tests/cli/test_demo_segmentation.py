"""dyn-d2 demo with a semantic segmentor of Detectron2's kind."""

import pytest
from tool_runs import demo_of_noise

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.config.read import read_cfg

from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8,
    "MODEL.SEM_SEG_HEAD.NORM": "",
    "DATASETS.TRAIN": ("beaches",),
    "INPUT.MIN_SIZE_TEST": 32,
}


@pytest.mark.parametrize("names", [["sand", "sea", "sky"], ["sand", "sea"]])
def test_names_come_from_the_checkpoint_where_the_data_set_is_gone(tmp_path, names):
    if "beaches" in MetadataCatalog.list():  # the names that a checkpoint brought for the case before
        MetadataCatalog.remove("beaches")
    cfg = read_cfg("", [str(part) for pair in KEYS.items() for part in pair])
    model = build_model(cfg)
    MetadataCatalog.get("beaches").set(stuff_classes=names)
    DynCheckpointer(model, str(tmp_path), metadata=describe(cfg, model)).save("model_final")
    MetadataCatalog.remove("beaches")
    shares = demo_of_noise(tmp_path)
    known = set(names) if len(names) == 3 else {"class 0", "class 1", "class 2"}  # two names for three are none
    assert list(shares) == ["classes"] and shares["classes"].keys() <= known
