"""SemanticSegmentor for Layer Cascade, with the record of what ran."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dyn_d2.gating.meta_arch.dynamic import DynamicModel, with_routes

from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor

from .backbone import STRIDE

if TYPE_CHECKING:
    from dyn_d2.evaluation.label_figures import LabelMap


@META_ARCH_REGISTRY.register()
class LayerCascadeSegmentor(DynamicModel, SemanticSegmentor):
    """SemanticSegmentor whose Layer Cascade leaves the padding of images out, and whose outputs have, in evaluation:

        "sem_seg": (K, height, width) probabilities.
        "settled_by": (h, w) uint8; for each pixel of the map of stride 8 the last stage that saw it, from 0.
        "route": the :class:`~dyn_d2.gating.Route`, which covers backbone and head.

    Backbone and "LayerCascadeHead" also work in a plain SemanticSegmentor.
    """

    sem_seg_head: Any
    whole_trace = True  # nothing is computed that the trace does not count

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Inputs and outputs are the parent's."""
        trace, outputs = self._traced(batched_inputs)
        if self.training:
            return outputs
        outputs = with_routes(outputs, trace)
        sizes = (inputs["image"].shape[-2:] for inputs in batched_inputs)
        for output, stages, (height, width) in zip(outputs, trace.context.state.settled_by, sizes, strict=True):
            output["settled_by"] = stages[: -(-height // STRIDE), : -(-width // STRIDE)]
        return outputs

    def force_open(self) -> None:
        """From now on all pixels pass all stages."""
        self.sem_seg_head.thresholds = (1.0,) * len(self.sem_seg_head.thresholds)

    def label_maps(self, inputs: dict[str, Any], output: dict[str, Any], classes: "LabelMap") -> "list[LabelMap]":
        """``classes``, and which stage settled each pixel; see ``modeling/answers.py``."""
        from .figures import stage_map  # here, as matplotlib takes its time and only pictures need it

        return [classes, stage_map(inputs, output)]
