"""Layer Cascade in pictures: which stage settled each pixel."""

from typing import Any

from dyn_d2.evaluation.label_figures import LabelMap

from .backbone import STAGES
from .evaluator import stages_of_pixels

STAGE_COLOURS = ("#2c7fb8", "#fecc5c", "#d7301f")


def stage_map(inputs: dict[str, Any], output: dict[str, Any]) -> LabelMap:
    """ "settled by": the stages, of an output of ``LayerCascadeSegmentor``.

    Args:
        inputs: "image" (C, h, w) as it went in, "height" and "width" as it is.
    """
    settled = stages_of_pixels(output["settled_by"], inputs["image"].shape[-2:], (inputs["height"], inputs["width"]))
    return LabelMap("settled by", settled.cpu().numpy(), STAGES, STAGE_COLOURS)
