"""Fit a DSSPN checkpoint to another concept tree, by concept name: add and prune concepts, keep the rest bit by bit.

    dyn-d2 concept-surgery --config-file DSSPN/universal.yaml --checkpoint output/universal/model_final.pth \
        --output output/initial.pth MODEL.DSSPN.TREE my_tree.yaml

The config names the new tree and data sets. The result goes into the next training as MODEL.WEIGHTS. With
--backbone-only it has the backbone's parameters alone: what is fine-tuned in the published tables has no more of the
model that was trained on other sets.
"""

import argparse

from dyn_d2.checkpoint import read_checkpoint
from dyn_d2.checkpoint.surgery import save
from dyn_d2.config.derive import build_cfg
from dyn_d2.methods.dsspn.head import DSSPNHead
from dyn_d2.methods.dsspn.surgery import backbone_alone, fit_concepts
from dyn_d2.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Read, fit, write."""
    from detectron2.modeling import build_model

    args = parse_args(argv)
    if args.backbone_only:
        checkpoint, kept = backbone_alone(read_checkpoint(args.checkpoint))
        save(checkpoint, args.output)
        print(f"{args.output}: the {kept} parameters and buffers of the backbone")
        return 0
    cfg = build_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    head = getattr(build_model(cfg), "sem_seg_head", None)
    if not isinstance(head, DSSPNHead):
        raise UserError("the config has no DSSPN: set MODEL.SEM_SEG_HEAD.NAME to DSSPNHead.")
    checkpoint, changes = fit_concepts(read_checkpoint(args.checkpoint), head, args.seed)
    save(checkpoint, args.output)
    print(f"{args.output}: {changes}")
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the next training")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of the model so far")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the result goes")
    parser.add_argument("--seed", type=int, default=0, help="of what is new")
    parser.add_argument("--backbone-only", action="store_true", help="keep the backbone; the config is not read")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(argv)
