"""A trained model for single images, from nothing but its checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import Metadata
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer, read_checkpoint
from dyn_d2.config import add_dyn_d2_config

from .setup import read_cfg


@dataclass
class Predictor:
    """A model in evaluation mode with the config and the class names that its checkpoint carries.

    No data set has to be registered: names come from the checkpoint.

    Attributes:
        classes: names in the order of the predictor's rows.
        metadata: the same for Detectron2's Visualizer.
    """

    cfg: CfgNode
    model: nn.Module
    classes: list[str]

    @classmethod
    def load(cls, weights: str, config_file: str = "", opts: Iterable[str] = ()) -> "Predictor":
        """Build the model that ``weights`` holds.

        Args:
            weights: a checkpoint. One that dyn_d2 wrote brings its config and class names.
            config_file: for checkpoints of others; wins over the checkpoint's own config.
            opts: ``KEY VALUE ...`` that change the config.

        Raises:
            FileNotFoundError, CheckpointError: no such file; unreadable; without a config and none is given; or it
                does not hold the whole model.
        """
        described = read_checkpoint(weights).get("dyn_d2") or {}
        if config_file:
            cfg = read_cfg(config_file, opts)
        elif "config" in described:
            cfg = get_cfg()
            add_dyn_d2_config(cfg)
            cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(described["config"])))
            cfg.merge_from_list(list(opts))
        else:
            raise CheckpointError(
                f"{weights} does not carry its config: give the yaml it was trained with (--config-file)."
            )
        cfg.MODEL.WEIGHTS = weights
        if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
        model = build_model(cfg).eval()
        DynCheckpointer(model).load(weights, checkpointables=[], strict=True)
        names = list(described.get("classes", ())) or [f"class {i}" for i in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        return cls(cfg, model, names)

    @property
    def metadata(self) -> Metadata:
        return Metadata(name="from the checkpoint", thing_classes=self.classes)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detections in one image.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            Instances on the CPU, in the frame of ``image``, best first.
        """
        height, width = image.shape[:2]
        ordered = image if self.cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        resize = T.ResizeShortestEdge([self.cfg.INPUT.MIN_SIZE_TEST] * 2, self.cfg.INPUT.MAX_SIZE_TEST)
        resized = resize.get_transform(ordered).apply_image(np.ascontiguousarray(ordered))
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
        output = self.model([{"image": tensor, "height": height, "width": width}])[0]["instances"].to("cpu")
        return output[output.scores.argsort(descending=True)]
