"""DSSPN: which neurons run, what they compute, their losses; against slow and obvious references."""

import pytest
import torch
from torch.nn import functional as F

from dyn_d2.gating import recording
from dyn_d2.hierarchy import Hierarchy, load_hierarchy
from dyn_d2.methods.dsspn.head import DSSPNHead, upsample
from dyn_d2.methods.dsspn.neurons import TRANSITION, SemanticNeuron, key_of

from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage

# "pet" stands below two concepts; "thing" has one child only; "train" is the name of a method of modules.
TREE = Hierarchy(
    {
        "all": ["animal", "stuff", "thing"],
        "animal": ["wild", "pet", "bird"],
        "wild": ["lion", "fox"],
        "pet": ["cat", "dog", "mouse"],
        "thing": ["vehicle"],
        "vehicle": ["train", "car", "pet carrier"],
        "pet carrier": ["box", "pet"],
        "stuff": ["sky", "water"],
    }
)
LABELS = {
    "fine": ["lion", "fox", "cat", "dog", "bird", "train", "car", "sky", "water"],
    "coarse": ["animal", "train", "car", "box", "sky"],
    "one": ["dog"],
}
STRIDE = 4


def _head(train="fine", test=None, **options) -> DSSPNHead:
    small = {"width": 6, "bottleneck": 8, "transition_channels": 5, "rates": (1, 2)}
    shapes = {"p2": ShapeSpec(channels=3, stride=STRIDE)}
    head = DSSPNHead(
        shapes, tree=TREE, labels=LABELS, train_sets=[train], test_sets=[test or train], **(small | options)
    )
    for parameter in head.neurons.parameters():  # classifiers start near 0, where all children look alike
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def _labels(*images) -> torch.Tensor:
    """(N, 24, 32) maps of vertical stripes of the given labels of "fine"."""
    return torch.stack(
        [torch.tensor(names).repeat_interleave(-(-32 // len(names)))[:32].expand(24, 32) for names in images]
    )


def _count_calls(head, monkeypatch) -> dict[str, list[int]]:
    calls: dict[str, list[int]] = {}
    forward = SemanticNeuron.forward

    def counted(self, sources):
        calls.setdefault(next(n for n in head.names if head.neuron(n) is self), []).append(len(sources[0]))
        return forward(self, sources)

    monkeypatch.setattr(SemanticNeuron, "forward", counted)
    return calls


@pytest.mark.parametrize("several", [{}, {"concept_masking": False}])
def test_an_image_wakes_the_neurons_above_its_labels(monkeypatch, several):
    head = _head(**several)
    calls = _count_calls(head, monkeypatch)
    targets = _labels([0, 7], [7], [8, 255])  # lion and sky; sky; water
    with EventStorage() as storage, recording() as trace:
        head({"p2": torch.rand(3, 3, 6, 8)}, targets)
    expected = {"all": [3], "animal": [1], "stuff": [3], "wild": [1]}
    assert calls == expected
    assert trace.rates() == {} and storage.latest()["dsspn/active_neurons"][0] == 4
    opened = {route: step.decision.open.tolist() for step in trace.task_steps for route in [step.unit.name]}
    assert opened["neuron.wild"] == [True, False, False] and opened["neuron.vehicle"] == [False] * 3


def test_inactive_neurons_have_no_gradient_and_the_others_have():
    head = _head()
    with EventStorage():
        head({"p2": torch.rand(2, 3, 6, 8)}, _labels([2, 7], [7]))[1]["loss_sem_seg"].backward()
    with_gradient = {n for n in head.names if any(p.grad is not None for p in head.neuron(n).parameters())}
    # A cat is below "pet", which stands below "animal" and "pet carrier", and so "vehicle".
    assert with_gradient == {"all", "animal", "pet", "vehicle", "pet carrier", "stuff"}
    assert head.skips_parameters and head.neuron("wild").bias.grad is None
    # "mouse" is no label: concept masking leaves its classifier alone.
    assert head.neuron("pet").classify[key_of("mouse")].weight.grad is None
    assert head.neuron("pet").classify[key_of("cat")].weight.grad is not None


def test_a_coarse_label_keeps_its_own_neuron_off(monkeypatch):
    head = _head("coarse")
    calls = _count_calls(head, monkeypatch)
    with EventStorage():
        head({"p2": torch.rand(1, 3, 6, 8)}, torch.zeros(1, 24, 32, dtype=torch.long))  # animal
    assert calls == {"all": [1]}


def _reference_features(head, x0):
    """All neurons everywhere, recursively, with the concatenation and the convolutions written out."""

    def features(name):
        neuron = head.neuron(name)
        above = [n for n in head.names if n in TREE.ancestors(name)]
        if head.block == "sum" and above:
            inputs = [x0, sum(features(a) for a in above)]
        elif head.block == "parent" and above:
            inputs = [features(a) for a in neuron.sources]
        else:
            inputs = [x0, *(features(a) for a in above)]
        weight = torch.cat([conv.weight for conv in neuron.reduce.values()], 1)
        hidden = F.relu(F.conv2d(F.relu(torch.cat(inputs, 1)), weight, neuron.bias))
        return F.relu(F.conv2d(hidden, neuron.evolve.weight, neuron.evolve.bias, padding=1))

    return {name: features(name) for name in head.names}


def _reference_loss(head, x0, targets, concepts, *, softmax=False, masking=True, outside=False, average="position"):
    """One position, one neuron, one child at a time."""
    features = _reference_features(head, x0)
    defined = set(concepts).union(*(TREE.ancestors(c) for c in concepts))
    total, counted = 0.0, 0
    sums, places = {}, {}
    labels = targets[:, ::STRIDE, ::STRIDE]
    for i in range(len(labels)):
        shown = {concepts[k] for k in labels[i].flatten().tolist() if k != 255}
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[i, y, x] == 255:
                    continue
                counted += 1
                own = concepts[labels[i, y, x]]
                for name in head.names:
                    children = [c for c in TREE.children[name] if c in defined or not masking]
                    valid = sum(c in defined for c in TREE.children[name])
                    awake = any(name in TREE.ancestors(c) for c in shown)
                    if valid < 2 or not awake or not (outside or name in TREE.ancestors(own)):
                        continue
                    logits = torch.stack(
                        [
                            F.conv2d(features[name], conv.weight, conv.bias)[i, 0, y, x]
                            for conv in (head.neuron(name).classify[key_of(c)] for c in children)
                        ]
                    )
                    truth = [float(c == own or c in TREE.ancestors(own)) for c in children]
                    if softmax:
                        loss = logits.logsumexp(0) - logits[torch.tensor(truth) > 0].logsumexp(0)
                    else:
                        loss = F.binary_cross_entropy_with_logits(logits, torch.tensor(truth), reduction="sum")
                    sums[name] = sums.get(name, 0) + loss
                    places[name] = places.get(name, 0) + 1
    for name, value in sums.items():
        total = total + value / (counted if average == "position" else places[name])
    return total


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, {}),
        ({"block": "sum"}, {}),
        ({"block": "parent"}, {}),
        ({"softmax": True}, {"softmax": True}),
        ({"concept_masking": False}, {"masking": False}),
        ({"outside_negative": True}, {"outside": True}),
        ({"average": "neuron"}, {"average": "neuron"}),
    ],
)
def test_loss_equals_the_reference(options, reference):
    head = _head(**options)
    targets = _labels([0, 2, 7, 255], [5, 255, 8, 8])
    x = {"p2": torch.rand(2, 3, 6, 8)}
    with EventStorage():
        losses = head(x, targets)[1]
    with torch.no_grad():
        expected = _reference_loss(head, head.transition(x["p2"]), targets, LABELS["fine"], **reference)
    assert float(losses["loss_sem_seg"].detach()) == pytest.approx(float(expected), rel=1e-4)


def test_fixed_structure_has_the_same_loss_and_runs_everything(monkeypatch):
    head = _head()
    x, targets = {"p2": torch.rand(2, 3, 6, 8)}, _labels([0, 7], [5])
    with EventStorage():
        dynamic = head(x, targets)[1]["loss_sem_seg"]
        calls = _count_calls(head, monkeypatch)
        head.dynamic = False
        assert torch.allclose(head(x, targets)[1]["loss_sem_seg"], dynamic, rtol=1e-5)
    assert calls == {name: [2] for name in head.plan_of("fine").needed}


def _kept_for_backward(head, x0, targets) -> int:
    """Elements of the tensors that the backward pass waits for; views of one tensor count once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), EventStorage():
        head.losses(x0, targets)["loss_sem_seg"].backward()
    return sum(kept.values())


def test_memory_grows_with_the_active_neurons():
    head, x0 = _head(), torch.rand(1, 5, 40, 40, requires_grad=True)
    amounts = []
    for labels in ([7], [7, 0], [7, 0, 2, 5]):
        targets = torch.tensor(labels).repeat_interleave(160 // len(labels)).expand(1, 160, 160)
        amounts.append(_kept_for_backward(head, x0, targets))
    head.dynamic = False
    amounts.append(_kept_for_backward(head, x0, targets))
    assert amounts == sorted(amounts) and amounts[0] < 0.5 * amounts[-1]


@pytest.mark.parametrize("targets", [torch.full((2, 24, 32), 255), torch.zeros(0, 24, 32, dtype=torch.long)])
def test_nothing_to_learn_is_a_connected_zero(targets):
    head, x = _head(), torch.rand(len(targets), 3, 6, 8, requires_grad=True)
    with EventStorage():
        loss = head({"p2": x}, targets)[1]["loss_sem_seg"]
    loss.backward()
    assert float(loss.detach()) == 0 and x.grad is not None


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match="label maps hold 9, but the data set has 9 labels"):
        _head()({"p2": torch.rand(1, 3, 6, 8)}, torch.full((1, 24, 32), 9))
    with pytest.raises(KeyError, match="not for 'other'"), _head().labels_of("other"):
        _head().plan_of("other")
    with pytest.raises(ValueError, match="MODEL.DSSPN.BLOCK is 'dense'"):
        _head(block="dense")


@torch.no_grad()
def _balance(head, x) -> None:
    """Biases with which no child is far ahead of its siblings on ``x``, so that pixels take many ways."""
    for name, features in _reference_features(head, head.transition(x)).items():
        for conv in head.neuron(name).classify.values():
            conv.bias -= F.conv2d(features, conv.weight, conv.bias).mean()


def _reference_ends(head, x0, concepts):
    """(N, h, w) label and its score: each position walks down the tree by itself."""
    features = _reference_features(head, x0)
    leads = set(concepts).union(*(TREE.ancestors(c) for c in concepts))
    n, _, height, width = x0.shape
    ends, scores = torch.zeros(n, height, width, dtype=torch.long), torch.ones(n, height, width)
    for i, y, x in torch.cartesian_prod(torch.arange(n), torch.arange(height), torch.arange(width)).tolist():
        here = TREE.root
        while here not in concepts:
            children = [c for c in TREE.children[here] if c in leads]
            if len(children) > 1:
                convs = [head.neuron(here).classify[key_of(c)] for c in children]
                logits = [F.conv2d(features[here], c.weight, c.bias)[i, 0, y, x] for c in convs]
                values = torch.stack(logits)
                values = values.softmax(0) if head.softmax else values.sigmoid()
                scores[i, y, x] *= values.max()
                here = children[int(torch.stack(logits).argmax())]
            else:
                here = children[0]
        ends[i, y, x] = concepts.index(here)
    return ends, scores


@pytest.mark.parametrize("dynamic", [True, False], ids=["regions", "everywhere"])
@pytest.mark.parametrize("options", [{}, {"block": "sum"}, {"block": "parent"}, {"softmax": True}], ids=str)
@pytest.mark.parametrize("dataset", LABELS)
def test_pixels_walk_down_the_tree(dataset, options, dynamic):
    head = _head(dataset, dynamic=dynamic, **options).eval()
    x = torch.randn(2, 3, 7, 6)
    _balance(head, x)
    with torch.no_grad():
        ends, scores = _reference_ends(head, head.transition(x), LABELS[dataset])
        output, losses = head({"p2": x})
    assert losses == {} and output.shape == (2, len(LABELS[dataset]), 7 * STRIDE, 6 * STRIDE)
    found = output[:, :, ::STRIDE, ::STRIDE]
    assert torch.equal(found.argmax(1), ends)
    assert torch.allclose(found.amax(1), scores, atol=1e-5)
    assert dataset == "one" or len(ends.unique()) > 2


def test_neurons_run_on_their_regions_only():
    head = _head().eval()
    x = torch.randn(2, 3, 12, 12)
    _balance(head, x)
    regions, everywhere = [], []
    for dynamic, costs in ((True, regions), (False, everywhere)):
        head.dynamic = dynamic
        with recording() as trace, torch.no_grad():
            output = head({"p2": x})[0]
        costs += [trace.executed(), trace.dense(), output, trace.routes()]
    assert torch.allclose(regions[2], everywhere[2], atol=1e-5)
    assert regions[1] == everywhere[1] and torch.allclose(everywhere[0], torch.full((2,), everywhere[1]))
    assert (regions[0] < everywhere[0]).all()
    assert all(route.open["neuron.all"].all() for route in regions[3])


def test_a_sky_needs_no_animal():
    head = _head().eval()
    with torch.no_grad():
        for child, bias in (("animal", -50), ("stuff", 50), ("thing", -50)):
            conv = head.neuron("all").classify[key_of(child)]
            conv.weight.zero_(), conv.bias.fill_(bias)
        with recording() as trace:
            head({"p2": torch.rand(1, 3, 6, 8)})
    (route,) = trace.routes()
    assert {name for name, opened in route.open.items() if opened.any()} == {"neuron.all", "neuron.stuff"}
    costs = {cost.name: float(cost.executed) for cost in trace.costs}
    reduce = {"all": 5, "stuff": 5 + 6}
    by_hand = {
        name: 48 * (channels * 8 + 9 * 8 * 6 + {"all": 3, "stuff": 2}[name] * 6) for name, channels in reduce.items()
    }
    assert {name: costs[f"neuron.{name}"] for name in by_hand} == by_hand
    assert (
        costs["transition"] == 48 * 2 * 9 * 3 * 5 and sum(costs.values()) == sum(by_hand.values()) + costs["transition"]
    )


def test_padding_is_not_looked_at():
    head = _head().eval()
    x = torch.randn(1, 3, 8, 8)
    with recording() as trace, torch.no_grad():
        trace.context.image_sizes = [(12, 20)]
        cut = head({"p2": x})[0]
    whole = head({"p2": x})[0]
    assert torch.allclose(cut[..., :12, :20], whole[..., :12, :20], atol=1e-6)
    assert not cut[..., 16:, :].any() and not cut[..., 24:].any() and whole[..., 16:, :].any()


def test_feature_maps_of_a_pyramid_are_added():
    shapes = {"p3": ShapeSpec(channels=3, stride=8), "p2": ShapeSpec(channels=3, stride=4)}
    head = DSSPNHead(shapes, tree=TREE, labels=LABELS, train_sets=["fine"], test_sets=["coarse"]).eval()
    features = {"p2": torch.rand(1, 3, 8, 8), "p3": torch.rand(1, 3, 4, 4)}
    assert head(features)[0].shape == (1, 5, 32, 32)
    with head.labels_of("fine"):
        assert head(features)[0].shape[1] == 9


def test_a_head_says_which_data_sets_do_not_go_together():
    shapes = {"p2": ShapeSpec(channels=3, stride=4)}
    labels = LABELS | {"again": LABELS["fine"]}
    head = DSSPNHead(shapes, tree=TREE, labels=labels, train_sets=["fine"], test_sets=["coarse", "fine"])
    assert head.label_set_problem(["fine", "again"], False) is None
    assert head.label_set_problem(["fine", "coarse"], True).startswith("fine, coarse have different labels")
    assert head.plan is head.plan_of("fine")
    with pytest.raises(ValueError, match="coarse, fine have different labels.*HierarchicalSegmentor"):
        _ = head.eval().plan


def test_upsampling_puts_positions_on_every_stride_th_pixel():
    scores = torch.rand(2, 3, 4, 5)
    grown = upsample(scores, 8)
    assert grown.shape == (2, 3, 32, 40) and torch.allclose(grown[..., ::8, ::8], scores)
    assert torch.allclose(grown[..., 4, 0], (scores[..., 0, 0] + scores[..., 1, 0]) / 2)


def test_levels_are_the_concepts_on_the_way():
    head = _head()
    levels = head.plan_of("fine").levels(torch.tensor([[0, 7]]))
    names = [[TREE.concepts[i] for i in row] for row in levels[:, 0].tolist()]
    assert names == [["all", "all"], ["animal", "stuff"], ["wild", "sky"], ["lion", "sky"]]
    assert levels.dtype == torch.int16


def test_every_concept_has_a_module_of_its_own():
    tree = Hierarchy({"all": ["st. bernard", "st_ bernard", "st%2e bernard"]})
    head = DSSPNHead(
        {"p2": ShapeSpec(channels=3, stride=4)}, tree=tree, labels={"a": list(tree.leaves)}, train_sets=["a"]
    )
    assert len(head.neuron("all").classify) == 3 and not any("." in key_of(name) for name in tree.concepts)


def test_number_of_parameters():
    """Table 6, in megabytes of float32: 217.3 for R-101 with DSSPN, which without a classifier has 42.5 million
    parameters. That leaves 11.8 million for the head over the paper's four data sets."""
    sets = ("coco_stuff", "ade20k", "cityscapes", "mapillary")
    tree = load_hierarchy("universal").cut(*sets)
    labels = {name: list(tree.labels(name).values()) for name in sets}
    head = DSSPNHead({"res5": ShapeSpec(channels=2048, stride=8)}, tree=tree, labels=labels, train_sets=sets)
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(11.8e6, rel=0.02)
    assert list(head.neuron("building").reduce) == [TRANSITION, "<entity>", "<building-stuff>"]


@pytest.mark.parametrize("name", ["transition", "ancestors"])
def test_a_neuron_named_like_another_source_is_refused(name):
    shapes = {"p2": ShapeSpec(channels=3, stride=4)}
    concepts = {"all": [name, "sky"], name: ["cat", "dog"]}
    with pytest.raises(ValueError, match=f"concept '{name}' .* give it another name"):
        DSSPNHead(shapes, tree=Hierarchy(concepts), labels={"pets": ["cat", "dog", "sky"]}, train_sets=["pets"])
    leaf = Hierarchy({"all": [name, "sky"]})
    DSSPNHead(shapes, tree=leaf, labels={"pets": [name, "sky"]}, train_sets=["pets"])
