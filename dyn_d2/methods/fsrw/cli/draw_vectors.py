"""Pictures of class vectors (Wang 2020, Fig. 6.4): a heat map, and a plane with the vector of every support image.

    dyn-d2 vectors draw output/vectors.npz --output output/vectors --novel seven,eight,nine

Several files are shown together. They come from dyn-d2 vectors export, or lie in the folder of a run
(class_vectors.npz).
"""

import argparse
from pathlib import Path

from dyn_d2.evaluation.figures import save_figure
from dyn_d2.methods.fsrw.figures import draw_heat_map, draw_plane
from dyn_d2.methods.fsrw.reweighting import ClassVectors


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", nargs="+", help="files of class vectors")
    parser.add_argument("--output", default="output/vectors", help="folder for the pictures")
    parser.add_argument("--novel", default="", metavar="NAMES", help="novel classes, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of t-SNE")
    args = parser.parse_args(argv)
    vectors = ClassVectors.load_all(args.vectors)
    novel = [name for name in args.novel.split(",") if name]
    unknown = [name for name in novel if name not in vectors.classes]
    if unknown:
        raise ValueError(f"--novel names {', '.join(unknown)}, but the vectors are of {', '.join(vectors.classes)}.")
    print(save_figure(draw_heat_map(vectors), Path(args.output) / "heat_map.png"))
    print(save_figure(draw_plane(vectors, novel, args.seed), Path(args.output) / "plane.png"))
    return 0
