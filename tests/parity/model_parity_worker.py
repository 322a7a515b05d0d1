"""Runs the models of the parity test under the backend that DYN_D2_BACKEND names and writes what they computed.

usage: model_parity_worker.py OUT_DIR [--load DIR]

For each model OUT_DIR/MODEL.npz and OUT_DIR/MODEL/model.pth. Models whose results are
there already are not run again. With --load the checkpoints of DIR, written by the other backend, are loaded, compared
with the weights that every backend makes, and removed; OUT_DIR/MODEL_loaded.json says how that went.
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import dyn_d2  # noqa: F401  isort: skip  chooses the backend

import detectron2
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

MODELS = {
    "faster_rcnn_fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "mask_rcnn_fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "semantic_fpn": "Misc/semantic_R_50_FPN_1x.yaml",
}
SIZES = [(192, 288), (256, 224)]  # (height, width) of the two photographs; different, so that padding matters
SMALL = {  # of the published configs only what makes a run long
    "MODEL.DEVICE": "cpu",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 48,
}
# Size of a layer's output in units of its input; 1.4 for all other layers, which a ReLU follows.
GAINS = {"fpn_lateral": 0.15, "anchor_deltas": 0.1, "bbox_pred": 0.3, "head.cls_score": 0.5, "cls_score": 1.2}


class RecordingCheckpointer(DetectionCheckpointer):
    """Keeps what the log alone would tell: which keys did not fit."""

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def config_file(name: str) -> str:
    try:
        from detectron2 import model_zoo
    except ModuleNotFoundError:  # Detectron2's model zoo needs pkg_resources, which setuptools no longer has
        return str(Path(detectron2.__file__).parent / "model_zoo" / "configs" / MODELS[name])
    return model_zoo.get_config_file(MODELS[name])


def config_of(name: str):
    cfg = get_cfg()
    cfg.merge_from_file(config_file(name))
    for key, value in SMALL.items():
        cfg.merge_from_list([key, value])
    return cfg


def set_weights(model: torch.nn.Module) -> None:
    """Weights that depend on their names alone, scaled so that signals keep their size and objects are detected."""
    with torch.no_grad():
        for key, value in sorted(model.state_dict().items()):
            if not value.is_floating_point():
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            noise = torch.randn(value.shape, generator=generator)
            if key.endswith("running_var"):
                value.copy_(1 + 0.1 * noise.clamp(-2, 2))
            elif key.endswith("norm.weight"):
                # The stem sees pixels of -128 to 128; the last layer of a residual block is kept small.
                scale = 0.02 if "stem" in key else 0.3 if "conv3" in key else 1.0
                value.copy_(scale * (1 + 0.1 * noise))
            elif value.dim() >= 2:
                fan_in = value[0].numel()
                gain = next((gain for part, gain in GAINS.items() if part in key), 1.4)
                value.copy_(noise * gain * fan_in**-0.5)
            else:
                value.copy_(0.05 * noise)


def photographs() -> list[torch.Tensor]:
    """Two uint8 (3, H, W) BGR tensors."""
    images = []
    for photo, (height, width) in zip(load_sample_images().images, SIZES, strict=True):
        small = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
        images.append(torch.from_numpy(small[:, :, ::-1].transpose(2, 0, 1).copy()))
    return images


def ground_truth(size: tuple[int, int], num_objects: int, bitmasks: bool) -> Instances:
    """Diamonds of several sizes, as polygons or as bit masks."""
    height, width = size
    random = np.random.RandomState(num_objects)
    extent = random.uniform(0.15, 0.5, (num_objects, 2)) * [width, height]
    corner = random.uniform(0, 1, (num_objects, 2)) * ([width, height] - extent)
    boxes = np.concatenate([corner, corner + extent], axis=1)
    polygons = [
        [np.array([(x0 + x1) / 2, y0, x1, (y0 + y1) / 2, (x0 + x1) / 2, y1, x0, (y0 + y1) / 2])]
        for x0, y0, x1, y1 in boxes
    ]
    truth = Instances(size)
    truth.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    truth.gt_classes = torch.from_numpy(random.randint(0, 80, num_objects))
    truth.gt_masks = PolygonMasks(polygons)
    if bitmasks:
        truth.gt_masks = BitMasks.from_polygon_masks(truth.gt_masks, height, width)
    return truth


def training_batches() -> list[list[dict]]:
    """Polygons in both images; bit masks in one image and no object in the other."""
    images = photographs()
    batches = []
    for counts, bitmasks in (((4, 2), False), ((3, 0), True)):
        batch = []
        for image, size, count in zip(images, SIZES, counts, strict=True):
            stripes = torch.arange(size[1]).div(16, rounding_mode="floor").remainder(54).repeat(size[0], 1)
            stripes[: 10 * count] = 255
            batch.append({"image": image, "instances": ground_truth(size, count, bitmasks), "sem_seg": stripes})
        batches.append(batch)
    return batches


def detections(instances: Instances) -> dict[str, np.ndarray]:
    fields = {key: getattr(value, "tensor", value) for key, value in instances.get_fields().items()}
    return {key: value.detach().numpy() for key, value in fields.items()}


def run_inference(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Outputs at the network's size and, of the first image, at the photograph's; and before post-processing."""
    batch = [{"image": image} for image in photographs()]
    batch[0].update(height=427, width=640)
    model.eval()
    results = {}
    with torch.no_grad():
        for i, output in enumerate(model(batch)):
            if "sem_seg" in output:
                results[f"output/{i}/sem_seg"] = output["sem_seg"][:, ::3, ::3].numpy()
            else:
                results.update({f"output/{i}/{k}": v for k, v in detections(output["instances"]).items()})
        if hasattr(model, "roi_heads"):
            for i, raw in enumerate(model.inference(batch, do_postprocess=False)):
                results.update({f"raw/{i}/{key}": value for key, value in detections(raw).items()})
    return results


def run_training(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Losses, logged scalars and the size of every gradient of each batch."""
    model.train()
    results = {}
    for i, batch in enumerate(training_batches()):
        model.zero_grad()
        torch.manual_seed(i)
        with EventStorage() as storage:
            losses = model(batch)
            sum(losses.values()).backward()
            scalars = {key: value for key, (value, _) in storage.latest().items()}
        results.update({f"loss/{i}/{key}": value.detach().numpy() for key, value in losses.items()})
        results.update({f"scalar/{i}/{key}": np.array(value) for key, value in scalars.items()})
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                results[f"gradient/{i}/{key}"] = parameter.grad.abs().mean().numpy()
    return results


def run(name: str, out: Path) -> None:
    cfg = config_of(name)
    torch.manual_seed(7)
    model = build_model(cfg)
    state = model.state_dict()
    results = {f"initial/{key}": value.double().sum().numpy() for key, value in state.items()}
    results["backend"] = np.array(detectron2.__file__)
    results["keys"] = np.array([f"{key} {tuple(value.shape)}" for key, value in state.items()])
    results["trained"] = np.array([key for key, parameter in model.named_parameters() if parameter.requires_grad])
    set_weights(model)
    (out / name).mkdir()
    DetectionCheckpointer(model, str(out / name)).save("model")
    results.update(run_inference(model))
    results.update(run_training(model))
    np.savez(out / f"{name}.npz", **results)


def load(name: str, other: Path, out: Path) -> None:
    model = build_model(config_of(name))
    path = other / name / "model.pth"
    checkpointer = RecordingCheckpointer(model)
    checkpointer.load(str(path))
    loaded = {key: value.clone() for key, value in model.state_dict().items()}
    set_weights(model)
    report = {
        "missing": list(checkpointer.incompatible.missing_keys),
        "unexpected": list(checkpointer.incompatible.unexpected_keys),
        "different": [key for key, value in model.state_dict().items() if not torch.equal(value, loaded[key])],
    }
    (out / f"{name}_loaded.json").write_text(json.dumps(report))
    path.unlink()  # the checkpoints of all models are a gigabyte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--load", type=Path)
    args = parser.parse_args()
    for name in MODELS:
        if not (args.out / f"{name}.npz").exists():
            run(name, args.out)
        if args.load:
            load(name, args.load, args.out)


if __name__ == "__main__":
    main()
