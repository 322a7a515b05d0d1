"""Draw a concept tree, and check it against the labels and pixels of a data set.

    dyn-d2 show-tree universal --output tree.png
    dyn-d2 show-tree my_tree.yaml
    dyn-d2 show-tree digit_scenes --dataset digit_scenes_train_sem --output tree.png
    dyn-d2 show-tree my_tree.yaml --dataset custom_train --config-file my_labels.yaml

With --dataset, the tree is cut to that data set's labels, and its label maps are read: how many pixels each class has,
which classes never occur, and whether every value is a class or the ignore label. A config registers the data sets of
its DATASETS.CUSTOM and DATASETS.IMPORT. The exit status is 1 if the tree is not valid or does not fit.
"""

import argparse

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.registered import registered_records, unregistered
from dyn_d2.data.semantic.label_maps import IGNORE, count_pixels
from dyn_d2.evaluation.figures import save_figure
from dyn_d2.evaluation.tree_figures import draw_tree, pixel_shares
from dyn_d2.hierarchy import Hierarchy, load_hierarchy, shipped_hierarchies

from detectron2.data import MetadataCatalog


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", help=f"a yaml file, or one of {', '.join(shipped_hierarchies())}")
    parser.add_argument("--output", metavar="FILE", help="picture to write: .png, .pdf, .svg")
    parser.add_argument("--dataset", metavar="NAME", help="a registered semantic segmentation set to check")
    parser.add_argument("--label-set", metavar="NAME", help="its labels in the tree; default: as its metadata says")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="read N label maps only, evenly spread")
    parser.add_argument("--config-file", default="", help="a config with DATASETS.CUSTOM or DATASETS.IMPORT")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="pairs that change the config; last"
    )
    args = parser.parse_args(arguments)
    if args.images < 0:
        parser.error("--images is a number from 0 (all) on")
    return args


def check_dataset(tree: Hierarchy, dataset: str, label_set: str, images: int) -> dict[str, int]:
    """Label -> number of pixels; prints them.

    Raises:
        HierarchyError: the labels are not the classes of the data set.
        ValueError: a label map holds something else than classes and the ignore label, or no class at all.
    """
    metadata = MetadataCatalog.get(dataset)
    classes = list(metadata.get("stuff_classes", None) or ())
    if not classes:
        raise ValueError(f"{dataset} has no stuff_classes: only sets with label maps can be checked.")
    tree.check_labels(label_set, classes)
    records = registered_records(dataset)
    if images:
        records = records[:: max(1, len(records) // images)][:images]
    counts = count_pixels(records, len(classes), metadata.get("ignore_label", IGNORE))
    labelled, total = counts[:-1].sum(), counts.sum()
    if not labelled:
        raise ValueError(f"{dataset}: the {len(records)} label maps that were read hold no class, only ignored pixels.")
    labels = tree.labels(label_set)
    print(f"{dataset}: {len(records):,} label maps, {100 * counts[-1] / total:.1f} % of the pixels are ignored")
    width = max(map(len, classes))
    for name, count in zip(classes, counts, strict=False):
        print(f"  {name:{width}}  {100 * count / labelled:8.4f} %  {' > '.join(tree.path(labels[name])[1:])}")
    absent = [name for name, count in zip(classes, counts, strict=False) if not count]
    print(f"absent: {', '.join(absent) or 'none'}")
    return dict(zip(classes, counts.tolist(), strict=False))


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    tree, shares = load_hierarchy(args.tree), None
    if args.config_file or args.opts:
        build_cfg(args.config_file, args.opts)  # registers what it names
    if args.dataset:
        if said := unregistered([args.dataset]):
            raise ValueError(said)
        label_set = args.label_set or MetadataCatalog.get(args.dataset).get("label_set", None)
        if label_set is None:
            raise ValueError(
                f"The metadata of {args.dataset} does not say which labels of the tree are its own: add --label-set, "
                f"one of {', '.join(tree.datasets)}."
            )
        pixels = check_dataset(tree, args.dataset, label_set, args.images)
        tree, shares = tree.cut(label_set), pixel_shares(tree, label_set, pixels)
    print(tree)
    for name in tree.datasets:
        own = tree.cut(name)
        print(f"  {name}: {len(tree.labels(name))} labels, {len(own.concepts)} concepts, depth {own.max_depth}")
    if args.output:
        print(save_figure(draw_tree(tree, shares), args.output))
    return 0
