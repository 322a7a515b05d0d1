"""Gated backbones from timm: every residual block with an identity path is a unit."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from dyn_d2.config.applied import notices_keys
from dyn_d2.gating import Router, Unit
from dyn_d2.gating.exporting import is_exporting
from dyn_d2.gating.policies.base import Policy, build_policy
from dyn_d2.modeling.backbone.timm import OwnPixels, TimmBackbone, timm_arguments
from dyn_d2.modeling.backbone.timm_folding import fold_norms
from dyn_d2.modeling.backbone.timm_models import TimmModel, build_timm_model
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from .base import check_norms
from .timm_blocks import Block, MultiplyAdds, Pass, gate, residual_blocks, routed


class GatedTimmBackbone(TimmBackbone):
    """A model of timm whose residual blocks a policy switches off per image; parameters have timm's names.

    A closed block hands through its input. In evaluation nothing of it is computed. Every forward pass is written into
    the current trace (:func:`dyn_d2.gating.recording`), what always runs under the name "model".

    Attributes:
        policy: decides about the units of all gated blocks, in their order.
        skips_parameters: tells distributed training that a step may use only some of the parameters.
    """

    skips_parameters = True

    def __init__(
        self,
        model: TimmModel,
        make_policy: Callable[[list[Unit]], Policy],
        out_features: Sequence[str],
        *,
        pixels: OwnPixels,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            model, out_features, pixels, norm, freeze_at: as for ``TimmBackbone``; gates are not frozen.
            make_policy: gives the policy for a list of units, e.g. ``functools.partial(build_policy, cfg)``.

        Raises:
            ValueError: no block can be switched off, the policy stops images for good, or unknown features or norm.
        """
        blocks = self._find(model)
        super().__init__(model, out_features, pixels=pixels, norm=norm, freeze_at=freeze_at)
        self._multiply_adds = [MultiplyAdds.of(self.model, [block.name for block in blocks])]  # in a list: no submodule
        check_norms(self)
        self.policy = make_policy(gate(self.model, blocks))
        if self.policy.stops:
            raise ValueError(
                f"{type(self.policy).__name__} stops images for good, which models of timm cannot do: choose a "
                "policy that decides about blocks, such as skipnet_rnn or convnet_aig."
            )

    @staticmethod
    def _find(model: TimmModel) -> list[Block]:
        size, training = model.trial_size, model.module.training
        blocks = residual_blocks(model.module.eval(), model.trial, size)
        model.module.train(training)
        if not blocks:
            raise ValueError(
                f"MODEL.TIMM.NAME {model.name} has no residual block with an identity path up to "
                f"{list(model.levels)[-1]}, so nothing could be switched off."
            )
        return blocks

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W), normalised as the config says -> name -> feature map, as ``output_shape`` has them.

        Raises:
            ValueError: images of a size that the model does not take.
        """
        images = self._prepare(images)
        channels, height, width = images.shape[1:]
        if is_exporting():
            fixed, costs = 0.0, dict.fromkeys(self._multiply_adds[0].blocks, 0.0)
        else:
            fixed, costs = self._multiply_adds[0](self._timm.features_of, (channels, height, width))
        router = Router(self.policy, images)
        router.trace.add_fixed("model", fixed, images)
        with routed(Pass(router, costs, (height, width))):
            features = self._timm.features(images)
        last = next(reversed(features))
        features[last] = router.finish(features[last])
        return self._wanted(features)


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedTimmBackbone:
    """The model MODEL.TIMM.NAME with the features MODEL.RESNETS.OUT_FEATURES and gates from MODEL.POLICY.

    Raises:
        ValueError: MODEL.GATED.UNIT is not "block", or a key has a value that cannot be; the message names it.
        UserError, FileNotFoundError: from ``build_timm_model``.
    """
    if cfg.MODEL.GATED.UNIT != "block":
        raise ValueError(f'MODEL.GATED.UNIT is {cfg.MODEL.GATED.UNIT!r}: models of timm have the unit "block".')
    model = build_timm_model(cfg, channels_of(input_shape), cfg.MODEL.RESNETS.OUT_FEATURES)
    backbone = GatedTimmBackbone(model, partial(build_policy, cfg), **timm_arguments(cfg, model))
    fold_norms(model)
    return backbone
