"""Each equation of Wang 2020, section 5.2, against the slow obvious way: a full kernel for every task."""

import math

import pytest
import torch
from torch.nn import functional as F

from dyn_d2.methods.tafe_net.task_weights import (
    MetaLearner,
    PredictionNetwork,
    TaskConv2d,
    TaskLinear,
    binary_loss,
    calibrated_loss,
    embedding_loss,
    hinged_cosine,
)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("per_task", [False, True], ids=["shared input", "input of each task"])
def test_linear_is_one_full_matrix_a_task(tasks, per_task) -> None:
    layer, weight = TaskLinear(5, 4), torch.randn(tasks, 4)
    x = torch.randn(6, tasks if per_task else 1, 5)
    out = layer(x, weight)
    assert out.shape == (6, tasks, 4)
    for t in range(tasks):
        full = layer.shared.weight.T @ torch.diag(weight[t])  # Eq. 5.4
        expected = x[:, t if per_task else 0] @ full + layer.shared.bias * weight[t]
        assert torch.allclose(out[:, t], expected, atol=1e-5)


@pytest.mark.parametrize("per_task", [False, True], ids=["shared input", "input of each task"])
def test_convolution_is_one_full_kernel_a_task(per_task) -> None:
    layer, weight = TaskConv2d(2, 4, 3, stride=2), torch.randn(3, 4)
    x = torch.randn(2, 3 if per_task else 1, 2, 7, 6)
    out = layer(x, weight)
    for t in range(3):
        full = layer.shared.weight * weight[t][:, None, None, None]  # Eq. 5.3, output channels come first
        expected = F.conv2d(x[:, t if per_task else 0], full, layer.shared.bias * weight[t], stride=2, padding=1)
        assert torch.allclose(out[:, t], expected, atol=1e-5)


def test_no_kernel_of_a_task_is_made(monkeypatch) -> None:
    """The shared product is computed once where the input is the same for all tasks, whatever their number."""
    rows, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: (rows.append(x[..., 0].numel()), linear(x, *rest))[1])
    TaskLinear(5, 4)(torch.randn(6, 1, 5), torch.randn(300, 4))
    assert rows == [6]
    learner = MetaLearner(7, 8, 2, 16, [32, 16])
    assert [generator.out_features for generator in learner.generators] == [32, 16]  # not 32 times 16


@pytest.mark.parametrize("conv", [[], [3, 5]], ids=["linear", "conv"])
def test_a_network_equals_one_network_a_task(conv) -> None:
    shape = (2, 4, 4)
    network = PredictionNetwork(shape, conv, [6, 4], [3], dropout=0.0)
    learner = MetaLearner(9, 8, 3, 4, network.widths).eval()
    images, tasks = torch.randn(5, *shape), torch.randn(4, 9)
    embedded, weights = learner(tasks)
    logits, tafe = network(images, weights)
    assert logits.shape == (5, 4) and tafe.shape == (5, 4, 4) and embedded.shape == (4, 4) and (embedded >= 0).all()
    for t in range(4):
        x, own = images, [weight[t] for weight in weights]
        for layer in network.convs:
            w = own.pop(0)
            x = F.relu(F.conv2d(x, layer.shared.weight * w[:, None, None, None], layer.shared.bias * w, padding=1))
        x = x.mean((2, 3)) if conv else x.flatten(1)
        for i, layer in enumerate(network.linears):
            w = own.pop(0)
            x = x @ (layer.shared.weight.T * w) + layer.shared.bias * w
            x = F.relu(x) if i == 0 else x  # the TAFE itself is not rectified
        assert torch.allclose(tafe[:, t], x, atol=1e-5)
        assert torch.allclose(logits[:, t], network.classifier(x)[:, 0], atol=1e-5)


def test_task_embedding_layers() -> None:
    learner = MetaLearner(9, 8, 3, 4, [2])
    kinds = [type(layer).__name__ for layer in learner.embedding]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "ReLU"]
    assert [learner.embedding[i].bias is None for i in (0, 3, 6)] == [True, True, False]
    with pytest.raises(ValueError, match="TASK_LAYERS is 0"):
        MetaLearner(9, 8, 0, 4, [2])


def test_calibrated_loss_against_equation_5_6() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 3, 1, 2, 0])
    total = 0.0
    for i in range(6):
        for t in range(4):
            if labels[i] == t:
                total += math.log(math.exp(logits[i, t]) / sum(math.exp(logits[i, j]) for j in range(4)))
    assert calibrated_loss(logits, labels).item() == pytest.approx(-total / 6, rel=1e-5)


def test_binary_loss_judges_each_pair_by_itself() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    losses = []
    for i in range(3):
        for t in range(4):
            probability = 1 / (1 + math.exp(-logits[i, t]))
            losses.append(-math.log(probability if labels[i] == t else 1 - probability))
    assert binary_loss(logits, labels).item() == pytest.approx(sum(losses) / 12, rel=1e-5)


@pytest.mark.parametrize("balanced", [False, True])
def test_embedding_loss_against_equation_5_7(balanced) -> None:
    tafe, embedded, labels = torch.randn(5, 3, 8), torch.randn(3, 8), torch.tensor([0, 2, 2, 1, 0])
    similarity = hinged_cosine(tafe, embedded)
    images = []
    for i in range(5):
        errors, weights = [], []
        for t in range(3):
            a, b = tafe[i, t], embedded[t]
            phi = max(0.0, float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
            assert similarity[i, t].item() == pytest.approx(phi, abs=1e-5)
            errors.append((phi - (labels[i] == t).item()) ** 2)
            weights.append(2.0 if balanced and labels[i] == t else 1.0)
        images.append(sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights))
    assert embedding_loss(similarity, labels, balanced).item() == pytest.approx(sum(images) / 5, rel=1e-4)


def test_a_vector_of_zeros_has_a_gradient() -> None:
    tafe = torch.zeros(2, 3, 4, requires_grad=True)
    embedding_loss(hinged_cosine(tafe, torch.rand(3, 4)), torch.tensor([0, 1])).backward()
    assert torch.isfinite(tafe.grad).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"CONV_CHANNELS is \[8\], but the features of the data set are vectors of 64"):
        PredictionNetwork((64,), [8], [4], [])
    with pytest.raises(ValueError, match="FC_DIMS is empty"):
        PredictionNetwork((64,), [], [], [])
