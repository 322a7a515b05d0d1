"""DSSPN: a semantic segmentation head that is a tree of semantic neurons (Liang et al., Dynamic-structured Semantic
Propagation Network, CVPR 2018).

In training an image wakes the neurons that lead to its labels, forward and backward (sec. 3.3), and the images of a
batch that wake the same neuron share one call of it (sec. 3.5). At test time pixels walk down the tree, and a neuron
runs only on the pixels that reached it (``region_inference.py``).

Shape shorthand: N - images, K - labels of a data set, h, w - size of the feature map, k - width of a neuron.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import NoticesKeys
from dyn_d2.gating import Cost, Step, Unit, current_trace
from dyn_d2.gating.cost import conv_cost
from dyn_d2.gating.decisions import fixed
from dyn_d2.hierarchy import Hierarchy, load_hierarchy

from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage

from .label_plan import LabelPlan, neurons_above, tree_neurons
from .neuron_loss import neuron_loss
from .neurons import ANCESTORS, TRANSITION, SemanticNeuron, Transition, check_names, key_of
from .region_inference import classify_regions
from .tree_labels import concepts_of_labels

BLOCKS = ("concat", "sum", "parent")


@SEM_SEG_HEADS_REGISTRY.register()
class DSSPNHead(NoticesKeys, nn.Module):
    """The tree of neurons, for one data set or several.

    One feature map is read as it is; of several (a feature pyramid) the coarser ones are resized to the finest, and all
    are added. Feature (i, j) is taken for the pixel (i, j) * stride, for labels and for predictions.

    Attributes:
        tree: the concepts.
        units: one :class:`~dyn_d2.gating.Unit` of kind "neuron" for each neuron, parents first.
        dynamic: False: all neurons that the data set needs run, on all pixels ("fixed structure" of Table 5).
        skips_parameters: tells distributed training that a step may use only some of the parameters.
    """

    skips_parameters = True

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        tree: Hierarchy,
        labels: Mapping[str, Sequence[str]],
        train_sets: Sequence[str],
        test_sets: Sequence[str] = (),
        width: int = 48,
        bottleneck: int = 256,
        transition_channels: int = 64,
        rates: Sequence[int] = (6, 12, 18),
        block: str = "concat",
        dynamic: bool = True,
        softmax: bool = False,
        concept_masking: bool = True,
        outside_negative: bool = False,
        average: str = "position",
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ) -> None:
        """
        Args:
            input_shape: feature name -> channels (of all features the same) and stride.
            tree: one neuron is made for each concept with two children or more.
            labels: registered data set -> concept of each of its labels.
            train_sets, test_sets: which of them are meant in training and evaluation where nobody says (``labels_of``);
                an empty list means the other one.
            width: k.
            bottleneck: channels of the 1x1 convolution of a neuron.
            transition_channels: k_0.
            rates: dilations of the transition.
            block: what a neuron inherits: "concat" (dense block), "sum" (of the ancestors), "parent" (no dense block).
            dynamic: see above.
            softmax: siblings compete; False: each child has a binary cross-entropy of its own.
            concept_masking: children that a data set does not define are left out of its losses.
            outside_negative: pixels outside of a neuron's concept are negatives of all its children; False: they do not
                count for it.
            average: losses of the neurons are summed and divided by the labelled positions of the batch ("position"),
                or averaged over the positions of each neuron and then summed ("neuron").
            loss_weight: factor of the loss.
            ignore_value: label of pixels that do not count.

        Raises:
            ValueError: no feature, features of different width, an option that does not exist, or ``check_names``.
        """
        super().__init__()
        if not input_shape:
            raise ValueError("DSSPNHead has no input: MODEL.SEM_SEG_HEAD.IN_FEATURES names no backbone feature.")
        _check_option("BLOCK", block, BLOCKS)
        _check_option("LOSS_AVERAGE", average, ("position", "neuron"))
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride or 1)
        self.stride = input_shape[self.in_features[0]].stride or 1
        channels = {shape.channels or 0 for shape in input_shape.values()}
        if len(channels) > 1:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES have {sorted(channels)} channels; DSSPN adds them up.")
        self.tree, self.dynamic, self.softmax, self.block = tree, dynamic, softmax, block
        self._sets = {True: list(train_sets or test_sets), False: list(test_sets or train_sets)}
        self._asked: str | None = None
        self.loss_weight, self.ignore_value = loss_weight, ignore_value
        self._loss = partial(neuron_loss, softmax=softmax, outside_negative=outside_negative)
        self._average = average
        self.transition = Transition(channels.pop(), transition_channels, rates)
        check_names(tree)
        self.names = tree_neurons(tree)
        self.above = {name: neurons_above(tree, name) for name in self.names}
        self.neurons = nn.ModuleDict()
        for name in self.names:
            sources = self._source_channels(name, transition_channels, width)
            self.neurons[key_of(name)] = SemanticNeuron(
                sources, tree.children[name], bottleneck=bottleneck, width=width
            )
        self.units = {
            name: Unit(f"neuron.{name}", "neuron", width, 1, 5 + tree.depth(name)) for name in self.names
        }  # stages 0 to 4 are those of backbones
        plans: dict[tuple[str, ...], LabelPlan] = {}
        self._concepts_of = {data: tuple(concepts) for data, concepts in labels.items()}
        for concepts in self._concepts_of.values():
            plans.setdefault(concepts, LabelPlan(tree, concepts, concept_masking))
        self._plans = nn.ModuleList(plans.values())
        self._plan_number = {concepts: number for number, concepts in enumerate(plans)}

    def _source_channels(self, name: str, transition_channels: int, width: int) -> dict[str, int]:
        above = self.above[name]
        if not above:
            return {TRANSITION: transition_channels}
        if self.block == "parent":
            nearest = [a for a in above if not any(a in self.above[other] for other in above)]
            return dict.fromkeys(nearest, width)
        inherited = above if self.block == "concat" else (ANCESTORS,)
        return {TRANSITION: transition_channels, **dict.fromkeys(inherited, width)}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head, dsspn = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.DSSPN
        _check_option("LOSS", dsspn.LOSS, ("bce", "softmax"))
        _check_option("OUTSIDE", dsspn.OUTSIDE, ("ignore", "negative"))
        train, test = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
        if not train + test:
            raise ValueError("DSSPNHead takes its labels from the data sets: set DATASETS.TRAIN or DATASETS.TEST.")
        tree = load_hierarchy(dsspn.TREE)
        # A checkpoint says nothing about a VAL set that is not registered here, and its model does without.
        val = [name for name in cfg.DATASETS.VAL if MetadataCatalog.get(name).get("stuff_classes")]
        labels = {name: concepts_of_labels(tree, MetadataCatalog.get(name)) for name in train + test + val}
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "tree": tree,
            "labels": labels,
            "train_sets": train,
            "test_sets": test,
            "width": dsspn.WIDTH,
            "bottleneck": dsspn.BOTTLENECK,
            "transition_channels": dsspn.TRANSITION_CHANNELS,
            "rates": dsspn.RATES,
            "block": dsspn.BLOCK,
            "dynamic": dsspn.DYNAMIC,
            "softmax": dsspn.LOSS == "softmax",
            "concept_masking": dsspn.CONCEPT_MASKING,
            "outside_negative": dsspn.OUTSIDE == "negative",
            "average": dsspn.LOSS_AVERAGE,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    @contextmanager
    def labels_of(self, dataset: str | None) -> Iterator[None]:
        """Inside the block targets and predictions are labels of this data set; None leaves it at the head's own."""
        before, self._asked = self._asked, dataset
        try:
            yield
        finally:
            self._asked = before

    @property
    def plan(self) -> LabelPlan:
        """For the data set at hand.

        Raises:
            ValueError: nobody said which one it is, and there are several with different labels.
        """
        if self._asked:
            return self.plan_of(self._asked)
        problem = self.label_set_problem(self._sets[self.training], False)
        if problem:
            raise ValueError(problem)
        return self.plan_of(self._sets[self.training][0])

    def label_set_problem(self, datasets: Sequence[str], one_per_batch: bool) -> str | None:
        """What is wrong with images of all these data sets where nobody says which one a batch is of: their labels
        differ. None where they do not.

        Args:
            one_per_batch: makes no difference here: the head does not see the inputs.

        Raises:
            KeyError: the head was not made for one of them.
        """
        if len({id(self.plan_of(name)) for name in datasets}) < 2:
            return None
        return (
            f"{', '.join(datasets)} have different labels, and the inputs do not say of which they are: set "
            "MODEL.META_ARCHITECTURE to HierarchicalSegmentor and DATALOADER.ONE_DATASET_PER_BATCH True, or give each "
            'input its "dataset".'
        )

    def plan_of(self, dataset: str) -> LabelPlan:
        """For a data set.

        Raises:
            KeyError: the head was not made for it.
        """
        if dataset not in self._concepts_of:
            raise KeyError(
                f"this DSSPN was made for {', '.join(self._concepts_of)}, not for {dataset!r}: name it in "
                "DATASETS.TRAIN, DATASETS.TEST or DATASETS.VAL."
            )
        return cast(LabelPlan, self._plans[self._plan_number[self._concepts_of[dataset]]])

    def export_problem(self) -> str:
        """See ``modeling/answers.py``."""
        return "DSSPN chooses concepts and their regions in Python, image by image, which no graph says."

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """In training (None, losses) for the (N, H, W) labels ``targets``; otherwise ((N, K, H, W) scores, {}).

        The score of a label is the product of the probabilities on the way to it, see ``classify_regions``; the label
        with the largest is the one at which the pixel's way through the tree ends.

        Raises:
            ValueError: training without targets, or with labels that the data set does not have.
        """
        x0 = self._transition(features)
        if self.training:
            if targets is None:
                raise ValueError("Training a semantic segmentation head needs 'sem_seg' in every input.")
            return None, self.losses(x0, targets)
        return upsample(classify_regions(self, self.plan, x0), self.stride), {}

    def _transition(self, features: Mapping[str, Tensor]) -> Tensor:
        finest, *others = (features[name] for name in self.in_features)
        for other in others:
            finest = finest + F.interpolate(other, finest.shape[-2:], mode="bilinear", align_corners=False)
        trace = current_trace()
        if trace is not None:
            branches = cast(list[nn.Conv2d], list(self.transition.branches))
            cost = sum(float(conv_cost(conv, *finest.shape[-2:])[0]) for conv in branches)
            trace.add_fixed("transition", cost, finest)
        return self.transition(finest)

    def losses(self, x0: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of one batch, images of one data set.

        Args:
            x0: (N, k_0, h, w), the output of the transition.
            targets: (N, H, W) labels at full resolution, of which every stride-th counts (sec. 4.1).
        """
        plan, labels = self.plan, targets[:, :: self.stride, :: self.stride]
        if labels.shape[-2:] != x0.shape[-2:]:
            raise ValueError(f"labels of {tuple(labels.shape[-2:])} positions for features of {tuple(x0.shape[-2:])}.")
        counted = labels != self.ignore_value
        labels = labels.where(counted, 0)
        present = present_labels(labels, counted, len(plan.concepts))
        decide, run = plan.active(present)
        if not self.dynamic:
            decide, run = torch.ones_like(decide), torch.ones_like(run)
        self._record(plan, x0, decide, run)
        total = x0.flatten()[:0].float().sum()  # 0, connected to the graph
        depths: dict[int, Tensor] = {}
        labelled = counted.sum().clamp(min=1)
        for decision, images, logits in self._logits(plan, x0, decide, run):
            below = plan.below[:, decision.columns]
            inside = plan.inside[:, list(plan.decisions).index(decision.neuron)]
            loss, positions = self._loss(logits.float(), labels[images], counted[images], below, inside)
            scale = positions if self._average == "neuron" else labelled
            depth = self.tree.depth(decision.neuron)
            depths[depth] = depths.get(depth, 0) + (loss / scale).detach()
            total = total + loss / scale
        _put_scalars(depths, decide)
        return {"loss_sem_seg": total * self.loss_weight}

    def _logits(self, plan: LabelPlan, x0: Tensor, decide: Tensor, run: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """For each neuron that decides for some image: its decision, the numbers of these images (N',), and logits
        (N', C, h, w). Each neuron runs once, for all its images together."""
        kept = {TRANSITION: _Images(x0, list(range(len(x0))))}
        for number, name in enumerate(plan.needed):
            images = run[:, number].nonzero().flatten().tolist()
            if not images:
                continue
            sources = [kept[source].of(images) for source in (TRANSITION, *self.above[name])]
            kept[name] = _Images(self.neuron(name)(self.combine(name, sources)), images)
            if name in plan.decisions:
                decision = plan.decisions[name]
                deciding = decide[:, list(plan.decisions).index(name)].nonzero().flatten().tolist()
                if deciding:
                    weight, bias = self.neuron(name).classifier(decision.children)
                    logits = F.conv2d(kept[name].of(deciding), weight[:, :, None, None], bias)
                    yield decision, torch.tensor(deciding, device=x0.device), logits

    def neuron(self, name: str) -> SemanticNeuron:
        return cast(SemanticNeuron, self.neurons[key_of(name)])

    def combine(self, name: str, sources: Sequence[Tensor]) -> list[Tensor]:
        """What neuron ``name`` reads, from the features of transition and ancestors in order."""
        transition, *above = sources
        if not above or self.block == "concat":
            return [transition, *above]
        if self.block == "sum":
            return [transition, torch.stack(above).sum(0)]
        found = dict(zip(self.above[name], above, strict=True))
        return [found[source] for source in self.neuron(name).sources]

    def levels(self, labels: Tensor) -> Tensor:
        """(H, W) predicted labels -> (depth + 1, H, W) int16, see :meth:`LabelPlan.levels`."""
        return self.plan.levels(labels)

    def neuron_cost(self, name: str, plan: LabelPlan) -> float:
        """Multiply-adds of one neuron at one position, with the classifiers that the data set asks for."""
        block, classifier = self.neuron(name).position_cost()
        return block + (len(plan.decisions[name].children) * classifier if name in plan.decisions else 0)

    def _record(self, plan: LabelPlan, x0: Tensor, decide: Tensor, run: Tensor) -> None:
        """Steps and costs of a training step in the trace, if somebody records."""
        trace = current_trace()
        if trace is None:
            return
        positions = x0.shape[-2] * x0.shape[-1]
        columns = {name: number for number, name in enumerate(plan.decisions)}
        for number, name in enumerate(plan.needed):
            block, classifier = (positions * cost for cost in self.neuron(name).position_cost())
            executed = run[:, number] * block
            if name in columns:
                executed = executed + decide[:, columns[name]] * len(plan.decisions[name].children) * classifier
            dense = self.neuron_cost(name, plan) * positions
            trace.costs.append(Cost(self.units[name].name, dense, executed.to(x0.device)))
            trace.task_steps.append(Step(self.units[name], fixed(run[:, number])))


def present_labels(labels: Tensor, counted: Tensor, classes: int) -> Tensor:
    """(N, K) bool on the CPU: the labels that each image shows.

    Args:
        labels: (N, h, w).
        counted: (N, h, w) bool, which positions have one.

    Raises:
        ValueError: a label is not below ``classes``.
    """
    wrong = counted & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise ValueError(
            f"the label maps hold {int(labels[wrong][0])}, but the data set has {classes} labels: correct the label "
            "maps, MODEL.SEM_SEG_HEAD.IGNORE_VALUE, or the data set's stuff_classes."
        )
    numbers = labels.where(counted, classes).flatten(1)
    found = torch.zeros(len(labels), classes + 1, dtype=torch.bool, device=labels.device)
    return found.scatter_(1, numbers, True)[:, :classes].cpu()


def upsample(scores: Tensor, stride: int) -> Tensor:
    """(N, K, h, w) -> (N, K, h * stride, w * stride), bilinear, with position (i, j) on pixel (i, j) * stride; pixels
    behind the last position repeat it."""
    if stride == 1 or not len(scores):
        return scores if stride == 1 else scores.new_zeros(0, scores.shape[1], *(stride * s for s in scores.shape[-2:]))
    size = [(length - 1) * stride + 1 for length in scores.shape[-2:]]
    grown = F.interpolate(scores, size, mode="bilinear", align_corners=True)
    return F.pad(grown, (0, stride - 1, 0, stride - 1), mode="replicate")


class _Images:
    """Feature maps (n, C, h, w) of the images ``images`` of a batch, of which neurons take those that wake them.

    Each choice is copied once, however many neurons make it. An index in place of parts would give each neuron that
    reads the maps a gradient of all images, most of it zeros, to be added up.
    """

    def __init__(self, maps: Tensor, images: list[int]) -> None:
        self._chosen = {tuple(images): maps}
        self._parts = dict(zip(images, maps.split([1] * len(images)), strict=True))

    def of(self, images: list[int]) -> Tensor:
        """(len(images), C, h, w)."""
        key = tuple(images)
        if key not in self._chosen:
            parts = [self._parts[image] for image in images]
            self._chosen[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._chosen[key]


def _check_option(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"MODEL.DSSPN.{key} is {value!r}: use one of {', '.join(known)}.")


def _put_scalars(depths: Mapping[int, Tensor], decide: Tensor) -> None:
    """Loss of each level of the tree, and active neurons of the batch and of an image, to the event storage."""
    if not has_event_storage():
        return
    storage = get_event_storage()
    if depths:
        values = torch.stack(list(depths.values())).tolist()
        for depth, value in zip(depths, values, strict=True):
            storage.put_scalar(f"dsspn/loss_depth{depth}", value)
    storage.put_scalar("dsspn/active_neurons", float(decide.any(0).sum()))
    storage.put_scalar("dsspn/active_neurons_per_image", float(decide.sum()) / max(len(decide), 1))
