"""Pictures of a trained TAFE-Net, each with its numbers as json.

    dyn-d2 tafe-pictures --weights output/tafe/model_final.pth --classes bird,bus,cow --images JPEGImages/

embeddings.png shows the same images under several descriptions (Fig. 5.3 of Wang 2020), retrievals.png the images that
fit each unseen class best (Fig. 5.5). config.yaml has to lie beside the checkpoint.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import build_cfg
from dyn_d2.evaluation.figures import save_figure
from dyn_d2.methods.tafe_net.data import DescribedSet, described_set
from dyn_d2.methods.tafe_net.figures import draw_embeddings, draw_retrievals, embeddings, retrievals
from dyn_d2.methods.tafe_net.meta_arch import TAFENet
from dyn_d2.methods.tafe_net.trainings import scores_from
from dyn_d2.utils.atomic import write_json

from detectron2.utils.logger import setup_logger


class _Loaded(NamedTuple):
    model: TAFENet
    name: str
    data: DescribedSet


def _load(weights: str, opts: Sequence[str]) -> _Loaded:
    config = Path(weights).with_name("config.yaml")
    if not config.is_file():
        raise FileNotFoundError(f"there is no config.yaml beside {weights}, which says what data it was trained on.")
    cfg = build_cfg(str(config), opts)
    model, _ = model_of(cfg, weights)
    if not isinstance(model, TAFENet):
        raise ValueError(f"{weights} is a {type(model).__name__}: these pictures are of a TAFENet.")
    name = cfg.DATASETS.TEST[0]
    return _Loaded(model, name, described_set(name))


def _numbers(data: DescribedSet, text: str) -> list[int]:
    """Class names, separated by commas, as numbers; by default up to six unseen ones."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in data.classes]
    if unknown:
        raise ValueError(f"--classes names {', '.join(unknown)}, which {data.source} does not describe.")
    return [list(data.classes).index(name) for name in names] or (
        data.unseen if len(data.unseen) else data.seen
    ).tolist()[:6]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a checkpoint with its config.yaml beside it")
    parser.add_argument("--output", default="output/tafe_pictures", help="folder (default: %(default)s)")
    parser.add_argument("--classes", default="", help="of embeddings.png (default: unseen ones, at most six)")
    parser.add_argument("--each", type=int, default=20, help="images of each of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice and of t-SNE")
    parser.add_argument(
        "--count", type=int, default=5, help="images of a class in retrievals.png (default: %(default)s)"
    )
    parser.add_argument("--images", default="", help="the folder of the image files, where the data set names them")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    if args.each < 1 or args.count < 1:
        parser.error("--each and --count have to be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    setup_logger(name="dyn_d2")
    loaded = _load(args.weights, args.opts)
    output, data = Path(args.output), loaded.data
    pairs = embeddings(loaded.model, data, _numbers(data, args.classes), args.each, args.seed)
    save_figure(draw_embeddings(pairs), output / "embeddings.png")
    write_json(output / "embeddings.json", {"dataset": loaded.name, "pairs": pairs}, indent=None)
    print(f"{output / 'embeddings.png'}: {len(pairs)} pairs of image and description")
    if not len(data.unseen):
        print(f"no retrievals: every class of {data.source} has training images")
        return 0
    found = retrievals(scores_from(loaded.model, loaded.name).values, data, args.count)
    save_figure(draw_retrievals(found, data.parts["test"], args.images), output / "retrievals.png")
    write_json(output / "retrievals.json", {"dataset": loaded.name, "retrievals": found})
    right = sum(item["right"] for row in found.values() for item in row)
    total = sum(map(len, found.values()))
    print(f"{output / 'retrievals.png'}: {right} of {total} best images of {len(found)} unseen classes are right")
    return 0
