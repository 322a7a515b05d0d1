"""The trace: nesting, sums, and one route an image."""

import numpy as np
import pytest
import torch

from dyn_d2.gating import Cost, Decision, Step, Trace, Unit, current_trace, recording


def _trace() -> Trace:
    """Two images; a stem, a block that only the first runs, three groups, and a gate."""
    trace = Trace()
    images = torch.zeros(2, 3, 4, 4)
    trace.add_fixed("stem", 100.0, images)
    block = Decision(torch.tensor([1.0, 0.0]), torch.tensor([0.75, 0.25]))
    trace.steps.append(Step(Unit("res2.0", "block", 8), block, torch.tensor([40.0])))
    trace.costs.append(Cost("res2.0", 40.0, torch.tensor([40.0, 0.0]), torch.tensor([30.0, 10.0])))
    groups = Decision(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    trace.steps.append(Step(Unit("res2.1", "group", 8, size=3), groups, torch.tensor([5.0, 5.0, 5.0])))
    trace.costs.append(Cost("res2.1", 15.0, torch.tensor([10.0, 0.0]), torch.tensor([10.0, 0.0])))
    trace.add_fixed("policy.res2.0", 2.0, images, gate=True)
    return trace


def test_dense_expected_executed_and_gates_are_kept_apart():
    trace = _trace()
    assert trace.dense() == 155.0  # a gate costs the dense network nothing
    assert trace.executed().tolist() == [152.0, 102.0]
    assert trace.expected().tolist() == [142.0, 112.0]
    assert trace.gates().tolist() == [2.0, 2.0]
    assert trace.rates() == pytest.approx({"res2.0": 0.5, "res2.1": 1 / 3})


def test_routes_take_the_trace_apart_by_image():
    first, second = _trace().routes()
    assert first.open["res2.0"].tolist() == [True] and second.open["res2.0"].tolist() == [False]
    assert first.open["res2.1"].tolist() == [True, False, True]
    assert isinstance(first.open["res2.1"], np.ndarray)
    assert (first.dense, first.executed, first.expected, first.gates) == (155.0, 152.0, 142.0, 2.0)
    assert (second.executed, second.expected) == (102.0, 112.0)


def test_routes_detach_from_the_graph():
    prob = torch.tensor([0.6], requires_grad=True)
    trace = Trace()
    trace.steps.append(Step(Unit("b", "block", 1), Decision(prob, prob), torch.tensor([3.0])))
    trace.costs.append(Cost("b", 3.0, torch.tensor([3.0]), prob * 3))
    assert trace.routes()[0].expected == pytest.approx(1.8)
    trace.expected().sum().backward()
    assert prob.grad.tolist() == [3.0]


def test_no_gate_means_no_cost_of_gates():
    trace = Trace()
    trace.add_fixed("stem", 7.0, torch.zeros(3, 1), dense=9.0)
    assert trace.gates().tolist() == [0.0, 0.0, 0.0]
    assert trace.dense() == 9.0 and trace.executed().tolist() == [7.0] * 3


def test_empty_batch_has_no_routes():
    trace = Trace()
    trace.add_fixed("stem", 7.0, torch.zeros(0, 3, 4, 4))
    assert trace.routes() == [] and trace.executed().shape == (0,)


def test_the_innermost_recording_records_and_the_outer_one_comes_back():
    assert current_trace() is None
    with recording() as outer:
        assert current_trace() is outer
        with recording() as inner:
            assert current_trace() is inner is not outer
        assert current_trace() is outer
    assert current_trace() is None


def test_a_failure_inside_ends_the_recording():
    with pytest.raises(RuntimeError), recording():
        raise RuntimeError
    assert current_trace() is None
