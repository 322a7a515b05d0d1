"""SemanticSegmentor for heads that know several label sets on one concept tree (DSSPN)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dyn_d2.gating import current_trace
from dyn_d2.gating.cost import conv_cost
from dyn_d2.gating.meta_arch.dynamic import DynamicModel, find_policy, gated_network, with_routes

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor

if TYPE_CHECKING:
    from dyn_d2.evaluation.label_figures import LabelMap


@META_ARCH_REGISTRY.register()
class HierarchicalSegmentor(DynamicModel, SemanticSegmentor):
    """Tells the head which data set a batch is of, and records what the whole model computed.

    The entry "dataset" of the inputs, a registered name that the loaders of dyn_d2 add, chooses the label set; without
    it the head's own is meant. In evaluation each output has, beside "sem_seg" (K, H, W) of that label set:

        "levels": (depth + 1, H, W) int16; the concept of each pixel at each depth of the tree, as a number in
            ``sem_seg_head.tree.concepts``.
        "route": the :class:`~dyn_d2.gating.Route`, which covers backbone and head.
    """

    sem_seg_head: Any
    whole_trace = True  # nothing is computed that the trace does not count

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        count_convolutions(arguments["backbone"])
        return arguments

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Inputs and outputs as in the parent, and as above.

        Raises:
            ValueError: the batch mixes data sets of different labels, or nobody says of which of several it is.
        """
        head = self.sem_seg_head
        with head.labels_of(self._dataset(batched_inputs)):
            if self.training:
                return super().forward(batched_inputs)
            outputs: Any
            if find_policy(self.backbone):
                outputs = super().forward(batched_inputs)
            else:
                trace, outputs = self._traced(batched_inputs)
                outputs = with_routes(outputs, trace)
            for output in outputs:
                output["levels"] = head.levels(output["sem_seg"].argmax(0))
            return outputs

    def _dataset(self, batched_inputs: list[dict[str, Any]]) -> str | None:
        names = sorted({inputs.get("dataset") or "" for inputs in batched_inputs})
        plans = {id(self.sem_seg_head.plan_of(name)) if name else None for name in names}
        if len(plans) > 1:
            raise ValueError(
                f"a batch has images of {', '.join(name or '(unnamed)' for name in names)}, whose labels differ: set "
                "DATALOADER.ONE_DATASET_PER_BATCH True."
            )
        return names[0] or None if names else None

    def label_maps(self, inputs: dict[str, Any], output: dict[str, Any], classes: "LabelMap") -> "list[LabelMap]":
        """The concepts at each depth of the tree, then ``classes``; see ``modeling/answers.py``."""
        from .figures import level_maps  # here, as matplotlib takes its time and only pictures need it

        head, dataset = self.sem_seg_head, self._dataset([inputs])
        concepts = (head.plan_of(dataset) if dataset else head.plan).concepts
        return [*level_maps(output["levels"], head.tree, concepts, classes), classes]

    def label_set_problem(self, datasets: Sequence[str], one_per_batch: bool) -> str | None:
        """Several label sets are fine where each batch has one; see ``modeling/answers.py``."""
        return None if one_per_batch else self.sem_seg_head.label_set_problem(datasets, one_per_batch)


def count_convolutions(backbone: nn.Module) -> None:
    """Have the convolutions of ``backbone`` write their cost into the current trace, except those of a gated network,
    which does so itself."""
    gated = gated_network(backbone)
    counted = set() if gated is None else set(gated.modules())
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d) and module not in counted:
            module.register_forward_hook(_Recorder(name))


class _Recorder:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        trace = current_trace()
        if trace is not None:
            trace.add_fixed(self._name, conv_cost(conv, *inputs[0].shape[-2:])[0], inputs[0])
