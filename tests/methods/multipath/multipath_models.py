"""Tiny multi-path networks, and what every junction and exit says without routing."""

import torch

from dyn_d2.config import add_dyn_d2_config

from detectron2.config import get_cfg
from detectron2.modeling import build_model

COMPUTE_WEIGHT = 1e-6


def multipath_model(policy: str = "path_actor", topology: str = "chain", **keys):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "MultiPathClassifier", "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.POLICY.NAME = "build_multipath_backbone", policy
    cfg.MODEL.MULTIPATH.TOPOLOGY, cfg.MODEL.MULTIPATH.SIDE, cfg.MODEL.MULTIPATH.SPLITS = topology, 8, 1
    cfg.MODEL.MULTIPATH.SCALES, cfg.MODEL.MULTIPATH.CHANNELS = [2, 2, 1], [3, 4, 5]
    cfg.MODEL.POLICY.PATHS.COMPUTE_WEIGHT = COMPUTE_WEIGHT
    cfg.MODEL.PIXEL_STD = [60.0] * 3
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    model = build_model(cfg)
    for router in model.backbone.policy.routers if policy != "all_open" else ():
        torch.nn.init.normal_(router.layers[-1].weight)  # decisions that differ
    return model


def batch_of(images: int = 6, size: int = 8) -> list[dict]:
    return [
        {"image": torch.randint(0, 255, (3, size, size), dtype=torch.uint8), "label": i % 10} for i in range(images)
    ]


def dense(model, batch):
    """Scores of every junction and logits of every exit for every image, without routing."""
    network = model.backbone
    maps, scores, logits = {}, {}, {}
    for layer, module in enumerate(network.layers):
        parents = [p for p, children in enumerate(network.tree.children) if layer in children]
        before = maps[parents[0]] if parents else network.pyramid(model.preprocess_image(batch))
        maps[layer] = module(before)
        flat = maps[layer][-1].flatten(1)
        if layer in network.junctions:
            scores[layer] = network.policy.routers[network.junctions.index(layer)](flat)
        if network.tree.exits[layer]:
            logits[layer] = model.exits[str(layer)](flat)
    return scores, logits
