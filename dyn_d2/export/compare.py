"""A file against the model that it was made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Difference:
    """
    Attributes:
        size: (height, width) of the image.
        largest: difference of a number of the outputs, as a share of the largest number of the same output, or of 1.
        rows: how many detections were compared; -1 for other tasks.
    """

    size: tuple[int, int]
    largest: float
    rows: int = -1

    def __str__(self) -> str:
        found = "" if self.rows < 0 else f", {self.rows} detections"
        return f"{self.size[0]}x{self.size[1]}: differs by {self.largest:.1e}{found}"


def compare(model: nn.Module, form: Any, file: str, size: tuple[int, int]) -> Difference:
    """What file and model say of a made-up image.

    Args:
        model: as it is, in evaluation mode; what it skips, it skips here too.
        form: a ``forms.Form``, for the names of the outputs.
    """
    image = trial_image(len(form.model.pixel_mean), size)
    given = dict(zip(form.outputs, session(file).run(None, {"image": image[None].numpy()}), strict=True))
    return difference(form, given, answers(model, image), size)


def difference(
    form: Any, given: dict[str, np.ndarray], wanted: dict[str, np.ndarray], size: tuple[int, int]
) -> Difference:
    """Outputs of a form against the ``answers`` of its model."""
    if "boxes" not in wanted:
        return Difference(size, max(_apart(given[name][0], wanted[name]) for name in form.outputs))
    count = len(wanted["scores"])
    given = {name: values[given["classes"] >= 0] for name, values in given.items()}
    if count != len(given["scores"]):
        return Difference(size, float("inf"), count)
    same = _same_detections(given, wanted) if count else np.zeros(0, int)
    parts = [name for name in form.outputs if name != "classes" and count]
    largest = max((_apart(given[name][same], wanted[name]) for name in parts), default=0.0)
    return Difference(size, largest if len(set(same.tolist())) == count else float("inf"), count)


def session(file: str) -> Any:
    """An inference session of onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what it removes from the graph
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def trial_image(channels: int, size: tuple[int, int]) -> Tensor:
    """(C, H, W) of 0 to 255: coloured patches, so that there is something to find, and noise."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    patches = 255 * torch.rand(1, channels, 5, 7, generator=generator)
    smooth = nn.functional.interpolate(patches, (height, width), mode="nearest")[0]
    return (smooth + 10 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255)


@torch.no_grad()
def answers(model: Any, image: Tensor) -> dict[str, Any]:
    """The outputs of a model for one image, by the names that ``Form`` gives them, as numpy; detections best first."""
    inputs = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]
    output = model(inputs)[0]
    if "instances" not in output:
        name = "sem_seg" if "sem_seg" in output else "scores"
        return {name: output[name].cpu().numpy()}
    found = output["instances"].to("cpu")
    order = found.scores.argsort(descending=True, stable=True)
    found = found[order]
    named = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "classes": found.pred_classes}
    if found.has("pred_masks"):
        raw = model.inference(inputs, do_postprocess=False)[0].to("cpu")
        named["masks"] = raw[raw.pred_boxes.nonempty()].pred_masks[:, 0][order]
    return {name: value.numpy() for name, value in named.items()}


def _same_detections(given: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> np.ndarray:
    """(R,) for each wanted detection the most similar given one of its class: those of nearly equal scores may have
    changed places."""
    boxes = np.abs(given["boxes"][None] - wanted["boxes"][:, None]).max(2) / max(np.abs(wanted["boxes"]).max(), 1)
    scores = np.abs(given["scores"][None] - wanted["scores"][:, None])
    other_class = given["classes"][None] != wanted["classes"][:, None]
    return np.where(other_class, np.inf, np.maximum(boxes, scores)).argmin(1)


def _apart(given: np.ndarray, wanted: np.ndarray) -> float:
    if given.shape != wanted.shape:
        return float("inf")
    return float(np.abs(given - wanted).max() / max(np.abs(wanted).max(), 1)) if wanted.size else 0.0
