"""Commands for all gated networks."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "stages": Command("dyn_d2.gating.cli.stages:main", "all training stages of a policy", Group.TRAIN),
    "slim": Command("dyn_d2.gating.cli.slim:main", "less computation in a trained network", Group.TRAIN),
    "tradeoff": Command("dyn_d2.gating.cli.tradeoff:main", "accuracy against computation and time", Group.EVALUATE),
    "cost-curves": Command("dyn_d2.gating.cli.cost_curves:main", "the same of finished trainings", Group.EVALUATE),
    "shuffle-embeddings": Command(
        "dyn_d2.gating.cli.shuffle_embeddings:main", "run a class with the gates of others", Group.LOOK
    ),
    "routes": Command("dyn_d2.gating.cli.routes:main", "which images take which route", Group.LOOK),
}
