"""The one contract between the platform and the methods on it.

A method is a folder below ``dyn_d2/methods``, whose ``__init__.py`` registers its model parts in Detectron2's
registries and one subclass of :class:`Method` here. The platform never names a method: where it needs something that
only a method knows, it asks every registered one. All questions are below, each with a default answer of "nothing".
Gating, the core that several methods share, answers them in the same way.

A question about a model that its class can answer by itself is no part of this file: see ``modeling/answers.py``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from dyn_d2.checkpoint.checkpointer import LoadReport
    from dyn_d2.checkpoint.surgery import Rows, Source
    from dyn_d2.config.derive import SetKey
    from dyn_d2.config.rules import Rule
    from dyn_d2.data.resumable import ResumableLoader
    from dyn_d2.engine.predictor import ImagePredictor
    from dyn_d2.evaluation.class_groups import ClassGroups

    from detectron2.config import CfgNode
    from detectron2.engine import HookBase
    from detectron2.evaluation import DatasetEvaluator

SKIPS, DENSE = "if", "dense"  # forms of a graph: parts that are not chosen do not run, or all run and are weighted
Mapper = Callable[[dict[str, Any]], Any]  # data set dict -> model input; None declines it
BuildEvaluator = Callable[["CfgNode", str, str, "ClassGroups"], "DatasetEvaluator"]


class FewShotMethod(NamedTuple):
    """What a value of FEW_SHOT.METHOD stands for.

    Attributes:
        title: how published tables call it.
        place: where it stands in the order of those tables.
        frozen: is the feature extractor frozen in the fine-tuning stages?
        classifier: which of MODEL.ROI_BOX_HEAD.CLASSIFIER does the last stage use?
        base_classifier: benchmark -> classifier of its base model and of its novel stage, where that is not the linear
            one.
        detector: meta-architecture; "" for the one of the config.
        tuned: that of the fine-tuning stage, where it is another one.
        stage: the FEW_SHOT.STAGE of a method that is a single training.
        folder: how the folder of such a training begins; "" for the name of its stage.
        full: whether FEW_SHOT.FULL holds.
        variant: whether it is a variant of another one, which tables have where it is asked for.
        freeze_at: the most that MODEL.BACKBONE.FREEZE_AT may be in the last stage; None: what the config has.
    """

    title: str
    place: int
    frozen: bool = False
    classifier: str = "linear"
    base_classifier: Mapping[str, str] = {}
    detector: str = ""
    tuned: str = ""
    stage: str = ""
    folder: str = ""
    full: bool = False
    variant: bool = False
    freeze_at: int | None = None


class PublishedNames(NamedTuple):
    """Weights of a publisher that has names of its own for the parameters of our networks.

    Attributes:
        publisher: for messages.
        rename: the state dict under our names; None where it is not the publisher's.
        settings: the names of the parameters -> what they were trained with, as keys of the config and their values.
    """

    publisher: str
    rename: Callable[[Mapping[str, Any]], dict[str, Any] | None]
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any]]


class FileFormat(NamedTuple):
    """A file format of weights.

    Attributes:
        accepts: whether the file at a path is of this format.
        read: its arrays by parameter name; raises ValueError, naming the file, where it is damaged.
    """

    accepts: Callable[[str], bool]
    read: Callable[[str], dict[str, Any]]


class BatchExtension(Protocol):
    """Adds to training batches what is no sample of the data set, such as support images."""

    def add(self, batch: list[Any], position: int, readable: Callable[..., Any]) -> list[Any]:
        """
        Args:
            batch: model inputs.
            position: of its first sample in the order of the training; seeds follow from it.
            readable: (mapper, record) -> model input, or what stands for an image that cannot be read.

        Returns:
            The batch to train on.
        """
        ...


class Method:
    """What a method brings; override what there is. Instances have no state.

    Attributes:
        name: of its folder.
        few_shot_methods: values of FEW_SHOT.METHOD.
        later_few_shot_keys: config keys that only the fine-tuning stages of few-shot training read.
        published_names, file_formats: of weights that checkpoints may come in.
        evaluators: evaluator_type of metadata -> (cfg, data set, output folder, class groups) -> evaluator.
        nodes_of_heads: nodes of keys of MODEL that only ROI heads read, so that feature maps do not depend on them.
        ranges: config key -> which values it may have (``config/rules.py``); "*" may stand for the beginning of a name.
    """

    name: str = ""
    few_shot_methods: Mapping[str, FewShotMethod] = {}
    later_few_shot_keys: Sequence[str] = ()
    published_names: Sequence[PublishedNames] = ()
    file_formats: Sequence[FileFormat] = ()
    evaluators: Mapping[str, BuildEvaluator] = {}
    nodes_of_heads: Sequence[str] = ()
    ranges: "Mapping[str, Rule]" = {}

    # ------------------------------------------------------------------------------------------------------ config

    def add_keys(self, cfg: "CfgNode") -> None:
        """Add its config keys, each with a default and a comment."""

    def derive(self, cfg: "CfgNode", given: set[str], set_key: "SetKey") -> None:
        """Set what follows from other keys, before ``cfg`` is frozen.

        Args:
            given: keys on the command line.
            set_key: (key, value, why) -> sets a derived value, unless the user gave one.

        Raises:
            ValueError: a key has a value that does not exist.
        """

    # -------------------------------------------------------------------------------------------------------- data

    def mapper(self, cfg: "CfgNode", dataset_name: str, is_train: bool) -> Mapper | None:
        """What makes model input of the records of that data set, where Detectron2's mapper does not."""
        return None

    def batch_extension(self, cfg: "CfgNode", records: list[dict], kept: Any) -> BatchExtension | None:
        """What training batches get beside their samples.

        Args:
            records: of the training set.
            kept: the same, as workers share them.
        """
        return None

    # -------------------------------------------------------------------------------------------------- checkpoints

    def describe(self, cfg: "CfgNode", model: nn.Module) -> dict[str, Any]:
        """Entries of the description that checkpoints carry."""
        return {}

    def parts_of_plain_weights(self, model: nn.Module) -> set[str]:
        """Names of parameters that the file of a plain network lacks, as nobody wonders about."""
        return set()

    # ------------------------------------------------------------------------------------------------------- images

    def predictor(self, weights: str, content: Mapping[str, Any], opts: Sequence[str]) -> "ImagePredictor | None":
        """What sees images with a checkpoint into which this method has written something of its own; None where the
        checkpoint holds a model and nothing more.

        Args:
            content: of the checkpoint, from ``read_checkpoint``.
        """
        return None

    def restore(self, described: Mapping[str, Any]) -> None:
        """Make known what the config of a checkpoint refers to and this machine does not have, before its model is
        built; ``described`` is the checkpoint's "dyn_d2" entry."""

    # ------------------------------------------------------------------------------------------------------- export

    def export_problem(self, model: nn.Module, form: str) -> str | None:
        """Why ``model`` cannot be written as a graph of that form (``SKIPS`` or ``DENSE``): a whole sentence; None
        where nothing of this method is in the way."""
        return None

    def chooses(self, model: nn.Module) -> bool:
        """Whether the input decides which parts of ``model`` run, so that its graph has a form for that."""
        return False

    def exporting(self, model: nn.Module, form: str) -> AbstractContextManager[Any]:
        """What has to be around while the graph of ``model`` is traced."""
        return nullcontext()

    # ----------------------------------------------------------------------------------------------------- few-shot

    def class_rows(self) -> "Mapping[str, Rows]":
        """Predictor tensors, by name, that have rows for classes; surgery between few-shot stages moves these."""
        return {}

    def feature_parts(self, cfg: "CfgNode") -> list[str]:
        """Modules of a detector's feature extractor beside those of Detectron2, for few-shot fine-tuning."""
        return []

    def whole_base_is_start(self, cfg: "CfgNode") -> bool:
        """Whether few-shot fine-tuning starts from the base model as it is: a detector without rows of classes."""
        return False

    def finish_surgery(self, cfg: "CfgNode", checkpoint: dict[str, Any], base: "Source") -> None:
        """Change the checkpoint that few-shot fine-tuning starts from, in place."""

    # ----------------------------------------------------------------------------------------------------- training

    def parameter_groups(self, cfg: "CfgNode", model: nn.Module, optimizer: Optimizer) -> None:
        """Give parameters groups of their own, in place, before the first step."""

    def start(self, cfg: "CfgNode", model: nn.Module, report: "LoadReport") -> None:
        """Called once when a training starts from other weights, not when it resumes.

        Raises:
            CheckpointError: they are not what this training starts from.
        """

    def hooks(self, cfg: "CfgNode", model: nn.Module) -> "list[HookBase]":
        """Hooks of training."""
        return []

    def problems(self, cfg: "CfgNode", model: nn.Module, loader: "ResumableLoader") -> list[str]:
        """What would spoil the training or its evaluation, found before the first step: whole sentences."""
        return []

    # --------------------------------------------------------------------------------------------------- evaluation

    def check_loaded(self, cfg: "CfgNode", report: "LoadReport") -> None:
        """Warn where weights that were loaded to be evaluated were trained for something else."""

    def prepare_evaluation(self, cfg: "CfgNode", model: nn.Module, limit: int | None = None) -> None:
        """Called before a model of ``cfg`` is evaluated on DATASETS.TEST.

        Args:
            limit: how many images may be looked at for it, and nothing is written; None for as many as the keys say.
        """

    def evaluators_beside(self, cfg: "CfgNode", dataset_name: str, folder: str) -> "list[DatasetEvaluator]":
        """Evaluators beside that of the data set."""
        return []

    def evaluators_of_model(
        self, cfg: "CfgNode", model: nn.Module, dataset_name: str, folder: str
    ) -> "list[DatasetEvaluator]":
        """The same where the model has to be looked at."""
        return []


_METHODS: dict[str, Method] = {}


def register_method(method: type[Method]) -> type[Method]:
    """Decorator that registers an instance of a subclass of Method.

    Raises:
        ValueError: its name is taken.
    """
    if method.name in _METHODS:
        raise ValueError(f"a method {method.name!r} is registered already.")
    _METHODS[method.name] = method()
    return method


def methods() -> Iterator[Method]:
    """All registered methods, in the order of their registration: gating, then the folders by name."""
    yield from _METHODS.values()


def few_shot_methods() -> dict[str, FewShotMethod]:
    """Values of FEW_SHOT.METHOD in the order of published tables: the platform's own, and those of the methods, which
    may replace them."""
    found = dict(_PLAIN_FEW_SHOT)
    for method in methods():
        found |= method.few_shot_methods
    return dict(sorted(found.items(), key=lambda item: item[1].place))


DETECTRON2_FREEZE_AT = 2  # its default, with which baselines that fine-tune everything were published

_PLAIN_FEW_SHOT = {
    "joint_shots": FewShotMethod("FRCN+joint", 0, stage="joint_shots"),
    "ft": FewShotMethod("FRCN+ft", 1, freeze_at=DETECTRON2_FREEZE_AT),
    "ft_full": FewShotMethod("FRCN+ft-full", 2, freeze_at=DETECTRON2_FREEZE_AT),
    "ft_heads": FewShotMethod("FRCN+ft, backbone as in base", 2, variant=True),
    "joint": FewShotMethod("all data", 5, stage="joint"),
}
