"""What every model that starts from images shares: normalisation, padding to one batch, and the size of the output."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import get_event_storage

from ..backbone import Backbone, build_backbone


class ImageModel(nn.Module):
    """A backbone behind image normalisation.

    Args:
        backbone: gives ``size_divisibility`` and ``padding_constraints``, which say how images are padded.
        pixel_mean, pixel_std: one number a channel; the input becomes ``(image - pixel_mean) / pixel_std``.
            They are not part of the state_dict.
    """

    def __init__(self, backbone: Backbone, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"pixel_mean {pixel_mean} and pixel_std {pixel_std} differ in their number of channels.")
        self.backbone = backbone
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def _move_to_current_device(self, x: Any) -> Any:
        return x.to(self.device)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the (C, H, W) tensors under "image" and pad them to one batch on the model's device."""
        images = [(self._move_to_current_device(x["image"]) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def gathered(self, batched_inputs: list[dict[str, Any]], key: str) -> list[Any] | None:
        """The entries ``key`` of all inputs on the model's device, or None where the first input lacks it."""
        if key not in batched_inputs[0]:
            return None
        return [self._move_to_current_device(x[key]) for x in batched_inputs]

    def store_drawing(self, title: str, inputs: dict[str, Any], found: Boxes, axis: int) -> None:
        """Put an image into the event storage twice, joined along ``axis`` (0 below, 1 beside each other): with its
        ground-truth boxes, and with the boxes ``found``."""
        from detectron2.data.detection_utils import convert_image_to_rgb  # heavy, and needed while drawing only
        from detectron2.utils.visualizer import Visualizer

        picture = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), self.input_format)
        both = (inputs["instances"].gt_boxes, found.tensor.detach().cpu().numpy())
        drawn = [Visualizer(picture, None).overlay_instances(boxes=boxes).get_image() for boxes in both]
        get_event_storage().put_image(title, np.concatenate(drawn, axis=axis).transpose(2, 0, 1))


def image_model_config(cfg) -> dict[str, Any]:
    """The arguments of :class:`ImageModel` from a config; builds the backbone."""
    return {"backbone": build_backbone(cfg), "pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}


def output_size(inputs: dict[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) wanted for the results of one image: those of its input dict, or the size of the input itself."""
    return inputs.get("height", image_size[0]), inputs.get("width", image_size[1])
