"""Run the images of one class with the gate embeddings of images of other classes (Fig. 3.4 of Wang, X., thesis, 2020):
how much do the gates of a DeepMoE know of the class?

    dyn-d2 shuffle-embeddings --weights output/deepmoe/model_final.pth --dataset cifar100_test --class dolphin \\
        --output output/shuffle

Other classes are drawn from the coarse category of the class (in group) and from all others (out of group), where the
data set has categories (superclass_of in its metadata, as CIFAR-100 has), else from all classes alike. Writes
shuffle.json and shuffle.png.
"""

import argparse
from pathlib import Path

import numpy as np

from dyn_d2.checkpoint.model import load_model
from dyn_d2.data.classification import ensure_classes
from dyn_d2.data.registered import registered_records, unregistered
from dyn_d2.data.resumable import build_mapper
from dyn_d2.gating.reports.embedding_shuffle import (
    accuracy_with,
    draw_shuffle,
    embeddings_of,
    policy_of,
    shuffled_accuracies,
)
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.seeds import derive_seed

from detectron2.data import MetadataCatalog


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of a classifier with MODEL.POLICY.NAME deepmoe")
    parser.add_argument("--dataset", required=True, help="registered data set, such as cifar100_test")
    parser.add_argument("--class", dest="name", required=True, help="the class whose images are run")
    parser.add_argument("--others", type=int, default=5, help="classes of each group (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="draws of each image (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="use so many images of each class; 0 for all")
    parser.add_argument("--output", required=True, help="folder for shuffle.json and shuffle.png")
    args = parser.parse_args(argv)
    if min(args.others, args.repeats) < 1 or args.limit < 0:
        parser.error("--others and --repeats have to be at least 1, --limit at least 0")
    if said := unregistered([args.dataset]):
        raise ValueError(said)
    classes = ensure_classes(args.dataset)
    if args.name not in classes:
        raise ValueError(f"{args.dataset} has no class {args.name!r}: give one of {', '.join(classes[:20])}.")
    cfg, model, _ = load_model(args.weights)
    policy_of(model)
    label = classes.index(args.name)
    groups = chosen(label, MetadataCatalog.get(args.dataset).get("superclass_of", None), len(classes), args.others)
    mapper, wanted = build_mapper(cfg, args.dataset, is_train=False), {label, *sum(groups.values(), [])}
    inputs: dict[int, list] = {number: [] for number in wanted}
    for record in registered_records(args.dataset):
        own = inputs.get(record["label"])
        if own is not None and not (args.limit and len(own) == args.limit):
            own.append(mapper(record))
    empty = [classes[number] for number, own in inputs.items() if not own]
    if empty:
        raise ValueError(f"{args.dataset} has no image of {', '.join(empty)}.")
    accuracy = accuracy_with(model, inputs[label], embeddings_of(model, inputs[label]))
    found = shuffled_accuracies(model, inputs, label, sum(groups.values(), []), args.repeats)
    named = {group: {classes[number]: found[number] for number in numbers} for group, numbers in groups.items()}
    record = {"class": args.name, "dataset": args.dataset, "images": len(inputs[label]), "repeats": args.repeats,
              "own_embedding": accuracy, "other_images_of_the_class": found[label], "groups": named}  # fmt: skip
    write_json(Path(args.output) / "shuffle.json", record)
    path = draw_shuffle(accuracy, named, f"{args.name}: whose embedding?", Path(args.output) / "shuffle.png")
    for group, values in named.items():
        print(f"{group}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in values.items()))
    print(
        f"own embedding {100 * accuracy:.1f} %, of other images of the class {100 * found[label]:.1f} %\nfigure: {path}"
    )
    return 0


def chosen(label: int, category_of: list[int] | None, classes: int, count: int) -> dict[str, list[int]]:
    """Group -> up to ``count`` other classes, drawn at random but always alike."""
    others = [number for number in range(classes) if number != label]
    groups = {"other classes": others}
    if category_of:
        same = [number for number in others if category_of[number] == category_of[label]]
        groups = {"in group": same, "out of group": [number for number in others if number not in same]}
    generator = np.random.default_rng(derive_seed("embedding shuffle classes", label, classes))
    return {name: sorted(generator.permutation(own)[:count].tolist()) for name, own in groups.items() if own}
