"""Write a model as an ONNX file, with nothing but a checkpoint of dyn_d2, and compare the file with the model.

    dyn-d2 export --weights output/model_final.pth --output model.onnx

Classifiers, semantic segmentors, Faster and Mask R-CNN and RetinaNet can be exported; what cannot says why. A gated
network keeps its gates: with --gates if (the default) each block is an If of ONNX, so that the runtime computes only
what the gates choose, one image at a time; with --gates dense all blocks run, multiplied by their gates, in batches.

Images of any size fit, in steps of what the network divides them by, unless --size fixes one, which some models need.
The file says in its metadata what its classes are and how images have to be resized.
"""

import argparse

from dyn_d2.checkpoint.model import load_model
from dyn_d2.export import export_onnx
from dyn_d2.method import DENSE, SKIPS
from dyn_d2.modeling.answers import open_for_images
from dyn_d2.utils.errors import UserError

from detectron2.utils.logger import setup_logger


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a checkpoint")
    parser.add_argument("--config-file", default="", help="only for checkpoints that dyn_d2 did not write")
    parser.add_argument("--output", default="model.onnx", help="the file to write (default: %(default)s)")
    parser.add_argument("--gates", choices=(SKIPS, DENSE), default=SKIPS, help="of a gated network (default: if)")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="of all images; default: any")
    parser.add_argument("--proposals", type=int, default=0, help="of a Faster R-CNN; default: as its config says")
    parser.add_argument("--no-check", action="store_true", help="do not run the file and compare it with the model")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    loaded = load_model(args.weights, args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    try:
        names = open_for_images(loaded.model, loaded.cfg)
    except ValueError as error:
        raise UserError(f"{args.weights} cannot be exported: {error}") from error
    report = export_onnx(
        loaded.cfg,
        loaded.model,
        args.output,
        described=loaded.described | ({} if names is None else {"classes": names}),
        gates=args.gates,
        size=tuple(args.size) if args.size else None,
        proposals=args.proposals,
        check=not args.no_check,
    )
    print("\n".join(report.lines()))
    return 0
