"""Commands of ShapeProp, and of training with few masks."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "benchmark masks": Command(
        "dyn_d2.methods.shapeprop.cli.benchmark:main", "methods, settings and seeds with few masks", Group.EVALUATE
    ),
    "shapes": Command("dyn_d2.methods.shapeprop.cli.shapes:main", "boxes, saliency, shapes", Group.LOOK),
    "pseudo-masks": Command("dyn_d2.methods.shapeprop.cli.pseudo_masks:main", "masks that a model draws", Group.DATA),
    "prepare bdd100k": Command(
        "dyn_d2.methods.shapeprop.cli.prepare_bdd100k:main", "BDD100K with masks for some objects", Group.DATA
    ),
}
