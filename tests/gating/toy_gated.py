"""A stand-in for a gated backbone: features of a few units, and a policy that is asked about them."""

from collections.abc import Sequence

import torch

from dyn_d2 import add_dyn_d2_config
from dyn_d2.gating import Router, Trace, Unit, recording
from dyn_d2.gating.policies import Policy, build_policy

from detectron2.config import CfgNode, get_cfg


def units(kind: str = "block", count: int = 4, channels: int = 6, size: int = 3) -> list[Unit]:
    """``count`` units in two stages."""
    size = 1 if kind == "block" else size
    return [Unit(f"res{2 + i // 2}.{i % 2}", kind, channels, size, stage=i // 2) for i in range(count)]


def policy_cfg(name: str, *opts) -> CfgNode:
    """A config with MODEL.POLICY.NAME and further key, value pairs, keys relative to MODEL.POLICY."""
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.POLICY.NAME = name
    keys = [f"MODEL.POLICY.{value}" if i % 2 == 0 else value for i, value in enumerate(opts)]
    cfg.merge_from_list(keys)
    return cfg


def make(name: str, *opts, kind: str = "block", **unit_options) -> Policy:
    """The policy ``name`` for toy units."""
    return build_policy(policy_cfg(name, *opts), units(kind, **unit_options))


def features_for(policy: Policy, images: int = 5, height: int = 8, width: int = 8) -> list[torch.Tensor]:
    """A random feature map for each unit."""
    return [torch.randn(images, unit.channels, height, width) for unit in policy.units]


def ask(
    policy: Policy,
    features: Sequence[torch.Tensor],
    images: torch.Tensor | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    labels: torch.Tensor | None = None,
) -> Trace:
    """The trace after asking about every unit; unit i costs 10 (i + 1) for each of its elements."""
    count = len(features[0])
    images = torch.randn(count, 3, 32, 32) if images is None else images
    with recording() as trace:
        trace.context.image_sizes, trace.context.labels = sizes, labels
        router = Router(policy, images)
        router.trace.add_fixed("stem", 0.0, images)
        for i, (unit, x) in enumerate(zip(policy.units, features, strict=True)):
            x = router.leave(x if trace.context.rows is None else x[trace.context.rows])
            if unit.kind == "channel":
                router.decide(x)
                continue
            cost = torch.full((unit.size,), 10.0 * (i + 1))
            router.record_units(unit.name, router.decide(x, cost), cost)
        router.finish(features[-1] if trace.context.rows is None else features[-1][trace.context.rows])
    return trace


def gates(trace: Trace) -> list[torch.Tensor]:
    """The gates of each unit."""
    return [step.decision.gate for step in trace.steps]
