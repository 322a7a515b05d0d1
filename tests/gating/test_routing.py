"""The router: order of the questions, what it records, and what the policy is told."""

import pytest
import torch

from dyn_d2.gating import Decision, Router, Unit, current_trace, recording
from dyn_d2.gating.policies import Policy


class Listed(Policy):
    """Gives listed decisions and notes what it was asked."""

    def __init__(self, units, decisions):
        super().__init__(units)
        self.decisions, self.asked, self.sizes = decisions, [], "not asked"

    def begin(self, images, image_sizes):
        self.sizes = image_sizes
        return {"images": len(images)}

    def decide(self, index, features, state):
        self.asked.append((index, tuple(features.shape), state["images"]))
        return self.decisions[index]

    def begin_cost(self, height, width):
        return float(height * width)

    def decision_cost(self, index, height, width):
        return float(index * height)


UNITS = [Unit("a", "block", 2), Unit("b", "group", 2, size=2)]
DECISIONS = [
    Decision(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.9, 0.2, 0.6])),
    Decision(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])),
]


def _run(sizes=None):
    policy = Listed(UNITS, DECISIONS)
    with recording() as trace:
        trace.context.image_sizes = sizes
        router = Router(policy, torch.zeros(3, 3, 8, 6))
        first = router.decide(torch.zeros(3, 2, 4, 3), torch.tensor([10.0]))
        router.record_units("a", first, torch.tensor([10.0]))
        second = router.decide(torch.zeros(3, 2, 2, 2), torch.tensor([3.0, 4.0]))
        router.record_units("b", second, torch.tensor([3.0, 4.0]), dense=6.0)
    return policy, trace


def test_units_are_asked_in_order_with_their_features_and_the_state():
    policy, trace = _run()
    assert policy.asked == [(0, (3, 2, 4, 3), 3), (1, (3, 2, 2, 2), 3)]
    assert trace.context.state == {"images": 3}
    assert [step.unit.name for step in trace.steps] == ["a", "b"]
    assert trace.steps[1].decision is DECISIONS[1]
    assert trace.steps[0].unit_cost.tolist() == [10.0]


def test_costs_of_units_and_of_deciding_are_recorded():
    _, trace = _run()
    begin, ask = 8 * 6, 1 * 2  # the first decision costs nothing and leaves no entry
    assert [cost.name for cost in trace.costs] == ["policy", "a", "policy.b", "b"]
    assert trace.gates().tolist() == [begin + ask] * 3
    assert trace.executed().tolist() == [begin + ask + e for e in (10 + 7, 0 + 4, 10 + 0)]
    assert trace.expected().tolist() == pytest.approx([begin + ask + e for e in (9 + 7, 2 + 4, 6 + 0)])
    assert trace.dense() == 10 + 6


def test_sizes_are_handed_on_only_where_something_is_padded():
    assert _run(None)[0].sizes is None
    assert _run([(8, 6)] * 3)[0].sizes is None
    sizes = [(8, 6), (5, 6), (8, 2)]
    assert _run(sizes)[0].sizes == sizes


def test_without_recording_it_keeps_a_trace_of_its_own():
    router = Router(Listed(UNITS, DECISIONS), torch.zeros(3, 3, 8, 6))
    router.decide(torch.zeros(3, 2, 4, 3))
    assert len(router.trace.steps) == 1
    assert current_trace() is None
