"""Routes that tests make up, and a gated classifier of three blocks whose cost is known by hand."""

import numpy as np
import torch
from gated_nets import gated_cfg

from dyn_d2.gating.reports.routes import RouteTable

SIZE = 8  # of the images
STEM, FIRST = 3 * 16 * 9 * 64, 2 * 16 * 16 * 9 * 64  # multiply-adds on maps of 8 x 8
RES3, RES3_SHORTCUT = (16 * 32 + 32 * 32) * 9 * 16, 16 * 32 * 16  # on 4 x 4
RES4, RES4_SHORTCUT = (32 * 64 + 64 * 64) * 9 * 4, 32 * 64 * 4  # on 2 x 2
LINEAR = 64 * 10
ALWAYS = STEM + FIRST + RES3_SHORTCUT + RES4_SHORTCUT + LINEAR


def classifier_cfg(policy: str = "all_open"):
    """A CIFAR ResNet of three blocks, of which a policy decides about two, for digits_test."""
    cfg = gated_cfg("build_gated_cifar_resnet_backbone", MODEL__POLICY__NAME=policy)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ImageClassifier", "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.OUT_FEATURES = 8, ["res4"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [80.0] * 3, [90.0] * 3
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digits_train",), ("digits_test",)
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def route_table(
    sizes: dict[str, int], images: int = 40, classes: int = 4, labels: bool = True, dataset: str = "digits_test"
) -> RouteTable:
    """Random routes; class number c is open with probability (c + 1) / (classes + 1).

    Args:
        sizes: unit name ("resN.i") -> its elements.
    """
    random = np.random.default_rng(0)
    own = np.arange(images) % classes
    opened = [random.random((images, size)) < ((own + 1) / (classes + 1))[:, None] for size in sizes.values()]
    executed = 100.0 + 1000 * np.sum([o.mean(1) for o in opened], 0)
    unknown = np.full(images, -1)
    return RouteTable(
        dataset=dataset,
        class_names=np.array([f"number {i}" for i in range(classes)] if labels else [], dtype=str),
        unit_names=np.array(list(sizes)),
        unit_kinds=np.array(["block" if size == 1 else "group" for size in sizes.values()]),
        unit_sizes=np.array(list(sizes.values())),
        unit_stages=np.array([int(name[3]) for name in sizes]),
        bits=np.concatenate([np.packbits(o, axis=1) for o in opened], 1),
        executed=executed,
        expected=executed + random.random(images),
        dense=np.full(images, 100.0 + 1000 * len(sizes)),
        gates=np.full(images, 1.0),
        file_names=np.full(images, "", dtype=str),
        image_ids=np.arange(images).astype(str),
        heights=np.full(images, SIZE),
        widths=np.full(images, SIZE),
        labels=own if labels else unknown,
        predictions=np.where(np.arange(images) % 5 == 0, 0, own) if labels else unknown,
    )


def black_images(labels=(0, 1, 1)):
    """Batched inputs."""
    image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    return [{"image": image, "label": label, "image_id": i} for i, label in enumerate(labels)]
