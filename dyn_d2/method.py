"""The one contract between the platform and the methods on it.

A method is a folder below ``dyn_d2/methods``, whose ``__init__.py`` registers its model parts in Detectron2's
registries and one subclass of :class:`Method` here. The platform never names a method: where it needs something that
only a method knows, it asks every registered one. All questions are below, each with a default answer of "nothing".
Gating, the core that several methods share, answers them in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    pass

Mapper = Callable[[dict[str, Any]], Any]  # data set dict -> model input


class FewShotMethod(NamedTuple):
    """What a value of FEW_SHOT.METHOD stands for.

    Attributes:
        title: how published tables call it.
        frozen: is the feature extractor frozen in the fine-tuning stages?
        classifier: which of MODEL.ROI_BOX_HEAD.CLASSIFIER do they use?
        base_classifier: benchmark -> the classifier of its base model, where that is not the linear one.
        detector: meta-architecture; "" for the one of the config.
        tuned: that of the fine-tuning stage, where it is another one.
        stage: the FEW_SHOT.STAGE of a method that is a single training.
        folder: how the folder of that training begins; "" for the name of the stage.
        full: whether FEW_SHOT.FULL holds.
        place: in the order of published tables.
    """

    title: str
    frozen: bool = False
    classifier: str = "linear"
    base_classifier: Mapping[str, str] = {}
    detector: str = ""
    tuned: str = ""
    stage: str = ""
    folder: str = ""
    full: bool = False
    place: int = 0


class WeightNames(NamedTuple):
    """Weights that somebody publishes under other names than ours.

    Attributes:
        publisher: as messages call it.
        rename: of a state dict; None where the names are not the publisher's.
        settings: config keys that the weights were trained with, for the message.
    """

    publisher: str
    rename: Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Any] | None]
    settings: str


class FileFormat(NamedTuple):
    """A file format of weights: ``accepts`` a path, ``read`` it as names and arrays.

    ``read`` raises ValueError for a damaged file, with a message that names it.
    """

    accepts: Callable[[str], bool]
    read: Callable[[str], dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """A parameter of a predictor with rows for classes, which surgery between stages moves by class name.

    Attributes:
        background: rows for the background, after those of the classes.
        per_class: rows of a class; 0 where a single row stands for each.
        std: of new rows.
    """


class Method:
    """Answers of a method to the platform; override what it brings. Instances have no state."""

    name: str = ""
    """In messages and tests; also the name of its folder."""

    few_shot_methods: Mapping[str, FewShotMethod] = {}
    """Values of FEW_SHOT.METHOD."""

    later_few_shot_keys: Sequence[str] = ()
    """Config keys that the base stage of few-shot training does not read."""

    weight_names: Sequence[WeightNames] = ()
    file_formats: Sequence[FileFormat] = ()


_METHODS: dict[str, Method] = {}
