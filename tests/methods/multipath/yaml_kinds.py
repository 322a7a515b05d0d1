"""How the yaml files of multi-path networks become small: see tests/config_kinds.py."""

from config_kinds import CPU, DIGITS, Kind, labelled, routed

from dyn_d2.config.derive import derive

from detectron2.config import CfgNode


def _digit_paths(cfg: CfgNode, policy: str) -> None:
    cfg.merge_from_list([*DIGITS, "MODEL.MULTIPATH.TOPOLOGY", "static" if policy == "all_open" else "chain"])
    derive(cfg)


KINDS = (
    Kind(
        r"MultiPathClassifier", CPU[:2], labelled(8), lambda cfg: {"loss_cls", "loss_weights"},
        "backbone.layers.0.across.0.weight", routed,
        variants=lambda cfg: {
            policy: ["MODEL.POLICY.NAME", policy]
            for policy in ("path_actor", "path_critic", "path_optimistic_critic", "all_open")
        },
        prepare=_digit_paths, more_losses=True,
    ),
)  # fmt: skip
