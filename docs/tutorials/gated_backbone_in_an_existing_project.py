# %% [markdown]
# # A gated backbone in an existing project
#
# You have a Detectron2 project: a config, a registered data set, `DefaultTrainer`. This tutorial keeps all of it and
# swaps the backbone for one whose residual blocks run only for images that need them. Nothing of dyn_d2's own trainer
# or tools is used. It takes seconds on a core.

# %%
import numpy as np
import torch

import dyn_d2  # before detectron2: registers the gated backbones

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances

# %% [markdown]
# ## The project as it is
#
# A small Faster R-CNN with a feature pyramid, and a data set: bright squares on noise.


# %%
def squares() -> list[dict]:
    random = np.random.default_rng(0)
    records = []
    for number in range(16):
        x, y, size = (int(random.integers(*span)) for span in [(0, 40), (0, 40), (20, 50)])
        box = {"bbox": [x, y, x + size, y + size], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        records.append({"image_id": number, "height": 96, "width": 96, "annotations": [box]})
    return records


def to_input(record: dict) -> dict:
    """The project's own mapper: it draws the image."""
    x0, y0, x1, y1 = record["annotations"][0]["bbox"]
    image = torch.randint(0, 90, (3, 96, 96), dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 230
    truth = Instances((96, 96), gt_boxes=Boxes(torch.tensor([[x0, y0, x1, y1]]).float()), gt_classes=torch.tensor([0]))
    return {"image": image, "instances": truth, "height": 96, "width": 96}


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=to_input)


DatasetCatalog.register("squares", squares)
MetadataCatalog.get("squares").thing_classes = ["square"]

cfg = get_cfg()
cfg.OUTPUT_DIR = "output/tutorial_gated"
cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.MODEL.FPN.OUT_CHANNELS = 32
cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [48], [64], [96]]
cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 1
cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = "FastRCNNConvFCHead", 1, 64
cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = ("squares",), (), 0
cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 4, 0.02, 15, 5
plain = Trainer(cfg.clone())
plain.train()

# %% [markdown]
# ## Three keys
#
# The backbone by name, a policy by name, and the meta-architecture that adds the policy's losses to the detector's.
# Gates start open (`INIT_BIAS`), since the weights were trained with all blocks running.

# %%
dyn_d2.add_dyn_d2_config(cfg)
cfg.MODEL.BACKBONE.NAME = "build_gated_fpn_backbone"
cfg.MODEL.POLICY.NAME = "skipnet_rnn"
cfg.MODEL.META_ARCHITECTURE = "DynamicRCNN"
cfg.MODEL.POLICY.SKIPNET.INIT_BIAS = 2.0
cfg.MODEL.POLICY.STAGE = "hrl"  # gates are sampled, and rewarded for blocks that they leave out
cfg.MODEL.POLICY.SKIPNET.BETA = cfg.MODEL.POLICY.SKIPNET.WEIGHT = 1.0
cfg.MODEL.POLICY.SKIPNET.ALPHA = 2.0  # the price of a block, high enough to be seen after so few iterations

# %% [markdown]
# The project's weights load: parameters have the names and shapes of the plain network, only the gates are new. With
# all gates open the gated detector gives what the plain one gave.

# %%
weights = f"{cfg.OUTPUT_DIR}/model_final.pth"
sample = [to_input(squares()[0])]
gated = build_model(cfg)
DetectionCheckpointer(gated).load(weights)  # the log lists what is new
with torch.no_grad():
    before, after = plain.model.eval()(sample)[0], gated.eval()(sample)[0]
assert torch.allclose(before["instances"].pred_boxes.tensor, after["instances"].pred_boxes.tensor, atol=1e-3)
print("the same boxes with open gates; blocks that ran:", sum(bool(run.all()) for run in after["route"].open.values()))

# %% [markdown]
# ## Train on
#
# The project's trainer, unchanged. The losses of the gates stand beside the detector's. In evaluation what a gate
# closes is not computed, and each output carries its route: what ran, and how many multiply-adds that was.

# %%
cfg.MODEL.WEIGHTS, cfg.SOLVER.MAX_ITER = weights, 25
trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
with torch.no_grad():
    routes = [output["route"] for output in trainer.model.eval()([to_input(record) for record in squares()])]
for unit in routes[0].open:
    print(unit, "ran for", sum(bool(route.open[unit].all()) for route in routes), "of", len(routes), "images")
executed, dense = (np.mean([getattr(route, name) for route in routes]) / 1e6 for name in ("executed", "dense"))
print(f"executed {executed:.0f} of {dense:.0f} million multiply-adds of the backbone, gates included")
