"""Commands of the platform. Names of two words are kinds of one command."""

from dyn_d2.utils.commands import Command, Group

COMMANDS = {
    "train": Command("dyn_d2.cli.train:main", "train what a config describes", Group.TRAIN, only_input=False),
    "few-shot": Command("dyn_d2.cli.few_shot:main", "base training, then fine-tuning on K examples", Group.TRAIN),
    "evaluate": Command("dyn_d2.cli.train:evaluate_main", "score a checkpoint", Group.EVALUATE, only_input=False),
    "benchmark few-shot": Command(
        "dyn_d2.cli.benchmark_few_shot:main", "methods, splits, shots and seeds", Group.EVALUATE
    ),
    "compare": Command("dyn_d2.cli.compare:main", "in what two evaluations differ", Group.EVALUATE),
    "convergence": Command("dyn_d2.cli.convergence:main", "learning speed of several trainings", Group.EVALUATE),
    "demo": Command("dyn_d2.cli.demo:main", "what a checkpoint sees in images", Group.LOOK),
    "show-tree": Command("dyn_d2.cli.show_tree:main", "a concept tree, beside a data set", Group.LOOK),
    "check-data": Command("dyn_d2.cli.check_data:main", "find broken annotations and images", Group.DATA),
    "convert": Command("dyn_d2.cli.convert:main", "annotations of other programs to COCO's json", Group.DATA),
    "show-data": Command("dyn_d2.cli.show_data:main", "pictures of a data set, before training", Group.LOOK),
    "browse": Command("dyn_d2.cli.browse:main", "data, predictions and routes for FiftyOne", Group.LOOK),
    "prepare digit-scenes": Command(
        "dyn_d2.cli.prepare_digit_scenes:main", "a small data set, made on the spot", Group.DATA
    ),
    "prepare crops": Command("dyn_d2.cli.prepare_crops:main", "objects of a COCO json, one folder a class", Group.DATA),
    "prepare few-shot": Command("dyn_d2.data.few_shot.prepare:main", "files of K-shot sets of a benchmark", Group.DATA),
    "prepare semantic": Command("dyn_d2.cli.prepare_semantic:main", "label maps from published files", Group.DATA),
    "surgery": Command("dyn_d2.cli.surgery:main", "fit a predictor to other classes, by name", Group.WEIGHTS),
    "zoo-table": Command("dyn_d2.cli.zoo_table:main", "a page of models from their results", Group.EVALUATE),
    "export": Command("dyn_d2.cli.export:main", "an ONNX file whose gates still skip", Group.WEIGHTS),
    "configs": Command("dyn_d2.cli.configs:main", "names for --config-file", Group.HERE),
    "doctor": Command("dyn_d2.doctor:main", "what does not fit here, and its remedy", Group.HERE, registers=False),
}

# Of commands that have kinds: the line of --help.
KINDS = {
    "benchmark": "many trainings",
    "prepare": "data",
}
