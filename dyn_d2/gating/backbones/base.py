"""The frame of all gated backbones: a stem and stages of blocks, parts of which a policy switches off per image."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dyn_d2.gating import Router, Unit
from dyn_d2.gating.cost import chain_cost
from dyn_d2.gating.execution import running_statistics
from dyn_d2.gating.exporting import is_exporting
from dyn_d2.gating.policies.base import Policy, build_policy

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import Backbone

from .block import GatedBlock


def fixed_cost(module: nn.Module, height: int, width: int) -> float:
    """Multiply-adds per image of a stem or plain block on a (height, width) map.

    Its convolutions have to be registered in the order in which they run, except for a ``shortcut``.
    """
    shortcut = getattr(module, "shortcut", None)
    aside: set[nn.Module] = set() if shortcut is None else set(shortcut.modules())
    convs = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    main = chain_cost([conv for conv in convs if conv not in aside], height, width)[0]
    return main + chain_cost([conv for conv in convs if conv in aside], height, width)[0]


def check_norms(module: nn.Module) -> None:
    """
    Raises:
        ValueError: a normalisation of ``module``, parts of which are skipped, waits for other processes.
    """
    if any("Sync" in type(layer).__name__ for layer in module.modules()):
        raise ValueError(
            "synchronised batch norm makes all processes wait for each other in every layer, but which blocks and "
            "groups run differs from one process to the next: use the norm BN, FrozenBN or GN."
        )


class GatedBackbone(Backbone):
    """A stem and named stages of blocks. Blocks that are a :class:`GatedBlock` ask the policy; others always run.

    Every forward pass is written into the current trace (:func:`dyn_d2.gating.recording`). In evaluation a block may
    overwrite its input, unless that is a feature to be returned: a forward hook that keeps a block's output has to copy
    it; layers inside of blocks are not always called one by one.

    Attributes:
        policy: decides about the units of all gated blocks, in their order.
        skips_parameters: tells distributed training that a step may use only some of the parameters.
    """

    skips_parameters = True

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Mapping[str, Sequence[CNNBlockBase]],
        make_policy: Callable[[list[Unit]], Policy],
        *,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stem: what comes before the first stage.
            stages: name -> blocks; stages after the last one in ``out_features`` are left out.
            make_policy: gives the policy for a list of units, e.g. ``functools.partial(build_policy, cfg)``.
            out_features: names of the features to return, "stem" or names of stages; None: the last stage.
            freeze_at: how many of stem and stages to freeze, from the front; gates are not frozen.

        Raises:
            ValueError: there is no such feature, a normalisation that waits for other processes, or nothing to decide.
        """
        super().__init__()
        names = ["stem", *stages]
        self._out_features = list(out_features) if out_features else names[-1:]
        unknown = [name for name in self._out_features if name not in names]
        if unknown:
            raise ValueError(f"this backbone has the features {', '.join(names)}, not {', '.join(unknown)}.")
        self.stage_names = names[1 : 1 + max(names.index(name) for name in self._out_features)]
        self.stem = stem
        self._out_feature_strides, self._out_feature_channels = {"stem": stem.stride}, {"stem": stem.out_channels}
        stride = stem.stride
        units: list[Unit] = []
        for number, name in enumerate(self.stage_names):
            blocks = stages[name]
            self.add_module(name, nn.Sequential(*blocks))
            for i, block in enumerate(blocks):
                stride *= block.stride
                if isinstance(block, GatedBlock):
                    block.name = f"{name}.{i}"
                    units += block.units(number)
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, blocks[-1].out_channels
        self._check(units)
        self.policy = make_policy(units)
        self.freeze(freeze_at)

    @classmethod
    def of_keys(cls, cfg: CfgNode, stem: CNNBlockBase, stages: Mapping[str, Sequence[CNNBlockBase]]) -> "GatedBackbone":
        """With MODEL.POLICY, MODEL.RESNETS.OUT_FEATURES and MODEL.BACKBONE.FREEZE_AT; see the constructor."""
        return cls(
            stem,
            stages,
            partial(build_policy, cfg),
            out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        )

    def _check(self, units: list[Unit]) -> None:
        if not units:
            raise ValueError(
                f"no block can be switched off in a backbone with the features {', '.join(self._out_features)}: "
                "MODEL.RESNETS.OUT_FEATURES has to name a later stage."
            )
        # Channels are chosen in evaluation only; in training all processes run all layers.
        if any(unit.kind != "channel" for unit in units):
            check_norms(self)

    def freeze(self, freeze_at: int) -> "GatedBackbone":
        """Freeze stem (1), stem and first stage (2) and so on: no gradients, batch norm turned into a constant."""
        for name in ["stem", *self.stage_names][: max(freeze_at, 0)]:
            part = getattr(self, name)
            for block in [part] if name == "stem" else part:
                block.freeze()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> name -> feature map, as ``output_shape`` describes them.

        Maps behind the block at which the policy has stopped an image are zeros for that image.
        """
        router = Router(self.policy, images)
        x = self._run_fixed("stem", self.stem, images, router)
        features = {"stem": x} if "stem" in self._out_features else {}
        for stage in self.stage_names:
            for i, block in enumerate(getattr(self, stage)):
                if isinstance(block, GatedBlock):
                    x = router.leave(x, self._may_overwrite(x, images, features))
                    router.overwrite = self._may_overwrite(x, images, features)
                    x = block(x, router)
                    x = router.finish(x) if router.due else x
                else:
                    x = self._run_fixed(f"{stage}.{i}", block, x, router)
            if stage in self._out_features:
                features[stage] = router.whole(x)
        return features

    @staticmethod
    def _may_overwrite(x: Tensor, images: Tensor, features: dict[str, Tensor]) -> bool:
        if is_exporting():
            return False
        # Blocks hand through what they skip, so that a kept tensor can be the input of any block.
        kept = {feature.data_ptr() for feature in features.values()} | {images.data_ptr()}
        return not torch.is_grad_enabled() and x.data_ptr() not in kept

    def _run_fixed(self, name: str, block: CNNBlockBase, x: Tensor, router: Router) -> Tensor:
        router.trace.add_fixed(name, fixed_cost(block, *x.shape[-2:]), x)
        if is_exporting():
            return block(x)
        with running_statistics(block, not len(x)):  # all images may have stopped
            return block(x)
