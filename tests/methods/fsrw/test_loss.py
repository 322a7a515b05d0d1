"""The loss of YOLOv2 and FSRW against loops over every anchor of every cell."""

import math

import pytest
import torch

from dyn_d2.methods.fsrw.yolo import Objects, Predictions, YoloLoss, keep_slots, shape_iou
from dyn_d2.methods.fsrw.yolo.loss import assign, last_claims

ANCHORS = torch.tensor([[1.0, 1.5], [2.5, 2.0]])
B, N, A, H, W = 2, 3, 2, 4, 5


def predictions(slots: int = N) -> Predictions:
    return Predictions(
        torch.randn(B, slots, A, 4, H, W).requires_grad_(),
        torch.randn(B, slots, A, H, W).requires_grad_(),
        torch.randn(B, N, A, H, W).requires_grad_(),
    )


def objects(by_class: bool = True) -> Objects:
    image = torch.tensor([0, 0, 1, 1, 1])
    label = torch.tensor([0, 2, 1, 1, 0])
    boxes = torch.tensor(
        [[1.2, 1.7, 1.1, 1.4], [1.4, 1.6, 0.9, 1.6], [4.9, 3.9, 3.0, 2.0], [0.5, 0.5, 1.0, 1.0], [0.6, 0.4, 1.0, 1.2]]
    )
    return Objects(image, label.clone() if by_class else label * 0, label, boxes)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def iou(a: list[float], b: list[float]) -> float:
    left, right = max(a[0] - a[2] / 2, b[0] - b[2] / 2), min(a[0] + a[2] / 2, b[0] + b[2] / 2)
    top, bottom = max(a[1] - a[3] / 2, b[1] - b[3] / 2), min(a[1] + a[3] / 2, b[1] + b[3] / 2)
    common = max(0.0, right - left) * max(0.0, bottom - top)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def slow_losses(found: Predictions, truth: Objects, kept: torch.Tensor, settings: YoloLoss, prior: bool) -> dict:
    """As the facts state them, number by number."""
    t, o, c = found.offsets.tolist(), found.objectness.tolist(), found.classes.tolist()
    anchors, box_loss, object_loss, class_loss = ANCHORS.tolist(), 0.0, 0.0, 0.0
    owners: dict[tuple, int] = {}
    for m, (x, y, w, h) in enumerate(truth.boxes.tolist()):
        fits = [iou([0, 0, w, h], [0, 0, *anchor]) for anchor in anchors]
        owners[int(truth.image[m]), int(truth.slot[m]), fits.index(max(fits)), int(y), int(x)] = m
    for b in range(B):
        for s in range(found.objectness.shape[1]):
            mine = [
                box for box, i, j in zip(truth.boxes.tolist(), truth.image, truth.slot, strict=True) if (i, j) == (b, s)
            ]
            for a in range(A):
                for y in range(H):
                    for x in range(W):
                        tx, ty, tw, th = (t[b][s][a][k][y][x] for k in range(4))
                        box = [
                            sigmoid(tx) + x, sigmoid(ty) + y, anchors[a][0] * math.exp(tw), anchors[a][1] * math.exp(th)
                        ]  # fmt: skip
                        m = owners.get((b, s, a, y, x))
                        if m is not None:
                            gx, gy, gw, gh = truth.boxes[m].tolist()
                            target = [gx - x, gy - y, math.log(gw / anchors[a][0]), math.log(gh / anchors[a][1])]
                            weight, wanted = settings.object_scale, iou(box, [gx, gy, gw, gh])
                        else:
                            target = [0.5, 0.5, 0.0, 0.0]
                            best = max((iou(box, other) for other in mine), default=0.0)
                            weight, wanted = float(best <= settings.ignore_iou), 0.0
                        distance = sum(
                            (p - q) ** 2 for p, q in zip([sigmoid(tx), sigmoid(ty), tw, th], target, strict=True)
                        )
                        if m is not None or (prior and kept[b, s]):
                            box_loss += distance / 2
                        if kept[b, s]:
                            object_loss += weight * (sigmoid(o[b][s][a][y][x]) - wanted) ** 2 / 2
                        if m is not None:
                            logits, label = [c[b][i][a][y][x] for i in range(N)], int(truth.label[m])
                            if settings.class_loss == "softmax":  # Eq. 6.3
                                class_loss -= math.log(math.exp(logits[label]) / sum(map(math.exp, logits)))
                            else:
                                class_loss -= sum(
                                    math.log(sigmoid(v) if i == label else 1 - sigmoid(v)) for i, v in enumerate(logits)
                                )
    return {"loss_class": class_loss / B, "loss_box": box_loss / B, "loss_objectness": object_loss / B}


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("class_loss", ["softmax", "multi_binary"])
@pytest.mark.parametrize("by_class", [True, False], ids=["slots", "shared"])
def test_losses_are_those_of_a_loop(by_class, class_loss, prior):
    found, truth = predictions(N if by_class else 1), objects(by_class)
    settings = YoloLoss(class_loss, object_scale=5.0, ignore_iou=0.3)
    kept = keep_slots(truth, B, N if by_class else 1, 0.0)
    losses = settings(found, truth, ANCHORS, kept, prior)
    expected = slow_losses(found, truth, kept, settings, prior)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    sum(losses.values()).backward()
    assert all(x.grad is not None for x in (found.offsets, found.objectness, found.classes))


def test_single_binary_asks_whether_an_object_is_of_the_class():
    found = predictions(1)
    found = Predictions(found.offsets, found.objectness, found.classes[:, :1])
    truth = objects()
    of_it = (truth.label == 1).long()
    truth = Objects(truth.image, of_it - 1, of_it, truth.boxes)
    losses = YoloLoss("single_binary")(found, truth, ANCHORS, keep_slots(truth, B, 1, -1))
    place, total = assign(truth, ANCHORS, (H, W)), 0.0
    places = {}
    for m in range(len(truth)):
        key = (int(truth.image[m]), *place[m].tolist())
        places[key] = max(places.get(key, 0), int(of_it[m]))  # an object of the class wins an anchor
    for (image, anchor, row, column), target in places.items():
        p = sigmoid(found.classes[image, 0, anchor, row, column].item())
        total -= math.log(p if target else 1 - p)
    assert losses["loss_class"].item() == pytest.approx(total / B)


@pytest.mark.parametrize("class_loss", ["softmax", "multi_binary", "single_binary"])
def test_a_batch_without_objects_has_losses_and_gradients(class_loss):
    found = predictions()
    nothing = objects().take(torch.zeros(0, dtype=torch.long))
    losses = YoloLoss(class_loss)(found, nothing, ANCHORS, keep_slots(nothing, B, N, 1.0), True)
    assert losses["loss_class"] == 0 and losses["loss_objectness"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(x.grad).all() for x in (found.offsets, found.objectness, found.classes))


def test_perfect_predictions_cost_nothing_but_the_class():
    truth = objects().take(torch.tensor([2]))
    found = predictions()
    with torch.no_grad():
        found.objectness.fill_(-50)
        found.objectness[1, 1, 1, 3, 4] = 50
        found.offsets[1, 1, 1, :, 3, 4] = torch.tensor([math.log(9), math.log(9), math.log(3 / 2.5), 0.0])
        found.classes[1, 1, 1, 3, 4] = 60
    losses = YoloLoss()(found, truth, ANCHORS, keep_slots(truth, B, N, -1.0))
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in losses.values())


def test_slots_with_objects_are_kept_and_some_without():
    truth = objects()
    positive = {(0, 0), (0, 2), (1, 1), (1, 0)}
    for negatives, count in ((0.0, 4), (0.25, 5), (1.0, 6), (-1.0, 6)):
        kept = keep_slots(truth, B, N, negatives)
        assert kept.sum() == count and all(kept[place] for place in positive)
    many = {tuple(keep_slots(truth, 2, 40, 1.0).flatten().tolist()) for _ in range(5)}
    assert len(many) == 5


def test_the_last_of_several_objects_owns_a_place():
    image, slot = torch.tensor([0, 0, 1, 0]), torch.tensor([1, 1, 1, 2])
    place = torch.tensor([[0, 1, 1]] * 4)
    assert last_claims(image, slot, place).tolist() == [1, 2, 3]
    assert last_claims(image, slot, place, order=torch.tensor([1, 0, 0, 0])).tolist() == [0, 2, 3]
    assert last_claims(image[:0], slot[:0], place[:0]).tolist() == []


def test_anchors_are_chosen_by_shape():
    assert shape_iou(torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 4.0], [2.0, 2.0], [4.0, 4.0]])).tolist() == [
        [pytest.approx(1 / 3), 1.0, 0.25]
    ]
    outside = Objects(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.tensor([[5.0, 4.0, 1.0, 1.0]]))
    assert assign(outside, ANCHORS, (H, W)).tolist() == [[0, H - 1, W - 1]]  # a centre on the border
