"""What of a model becomes a graph: from a tensor of images to a few tensors of fixed meaning.

Shape shorthand: N images of H x W pixels with C channels; K classes. Images come as the network gets them: resized,
channels in the order of INPUT.FORMAT, values of 0 to 255 as float32. Normalisation is part of the graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from dyn_d2.modeling.answers import exported_problem

from detectron2.layers import Conv2d
from detectron2.modeling import GeneralizedRCNN, RetinaNet, SemanticSegmentor

from .detectors import RCNNForm, RetinaNetForm


class Form(nn.Module):
    """A model as a function of tensors.

    Attributes:
        task: "classification", "semantic segmentation" or "detection".
        outputs: names of the tensors that ``forward`` returns.
        batches: whether it takes more than one image.
    """

    task: str = ""
    outputs: Sequence[str] = ()
    batches: bool = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class ClassifierForm(Form):
    """Images (N, C, H, W) -> probabilities (N, K)."""

    task, outputs = "classification", ("scores",)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.model.graph_outputs(image)["scores"],)


class SegmentorForm(Form):
    """Images (N, C, H, W) -> class scores of each pixel (N, K, H, W), as the head gives them."""

    task, outputs = "semantic segmentation", ("sem_seg",)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        features = self.model.backbone((image - self.model.pixel_mean) / self.model.pixel_std)
        return (self.model.sem_seg_head(features, None)[0],)


class DetectorForm(Form):
    """One image (1, C, H, W) -> a fixed number of detections, best first; see ``detectors``."""

    task, batches = "detection", False

    def __init__(self, model: Any, detect: RCNNForm | RetinaNetForm) -> None:
        super().__init__(model)
        self.detect = detect
        self.outputs = detect.outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.model.backbone((image - self.model.pixel_mean) / self.model.pixel_std)
        return self.detect(features, (image.shape[-2], image.shape[-1]))


def form_of(model: Any, proposals: int = 0) -> Form:
    """The form of a model in evaluation mode.

    Args:
        proposals: of a Faster R-CNN; 0 for as many as its config says.

    Raises:
        ValueError: it has none; the message says why.
    """
    problem = exported_problem(model)
    if problem:
        raise ValueError(problem)
    if hasattr(model, "graph_outputs"):
        return ClassifierForm(model)
    if isinstance(model, SemanticSegmentor):
        return SegmentorForm(model)
    if isinstance(model, GeneralizedRCNN):
        return DetectorForm(model, RCNNForm(model, proposals))
    if isinstance(model, RetinaNet):
        return DetectorForm(model, RetinaNetForm(model))
    raise ValueError(
        f"{type(model).__name__} has no form as a graph: classifiers, semantic segmentors, Faster and Mask R-CNN and "
        "RetinaNet have one. A model of your own gets one by a method graph_outputs (see dyn_d2.modeling.answers)."
    )


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Batch norms with running statistics become part of the convolutions before them, in place.

    A runtime does so by itself where it sees both, which it does not inside of the branches of an ``If``.
    """
    conv: Any
    for conv in model.modules():
        norm = getattr(conv, "norm", None) if isinstance(conv, Conv2d) else None
        if norm is None or getattr(norm, "running_mean", None) is None:
            continue
        statistics = norm.running_mean, norm.running_var, norm.eps
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
        conv.norm = None
