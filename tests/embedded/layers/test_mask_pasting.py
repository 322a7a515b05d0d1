"""Pasting of masks against F.grid_sample over the whole image."""

import pytest
import torch
from torch.nn import functional as F

from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes


def reference(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear samples of each mask at all pixel centres, in the mask's own coordinates -1..1; zero outside."""
    pasted = []
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        pasted.append(F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0])
    return torch.stack(pasted)


def test_pasting_equals_sampling() -> None:
    centre, size = torch.rand(12, 2) * torch.tensor([50.0, 40.0]), 1 + torch.rand(12, 2) * 40
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=1)  # some reach out of the image
    masks = torch.rand(12, 7, 7)
    expected = reference(masks, boxes, 40, 50)
    for threshold in (0.5, 0.7):
        pasted = paste_masks_in_image(masks, Boxes(boxes), (40, 50), threshold=threshold)
        assert pasted.dtype == torch.bool and pasted.shape == (12, 40, 50)
        sure = (expected - threshold).abs() > 1e-5
        assert torch.equal(pasted[sure], (expected >= threshold)[sure])


def test_soft_pasting_keeps_the_values() -> None:
    masks, boxes = torch.rand(2, 5, 5), torch.tensor([[3.0, 4, 20, 30], [0, 0, 40, 32]])
    soft = paste_masks_in_image(masks, boxes, (32, 40), threshold=-1)
    assert soft.dtype == torch.uint8
    inside = torch.zeros(32, 40, dtype=torch.bool)
    inside[4:30, 3:20] = True
    difference = (soft.float() - reference(masks, boxes, 32, 40) * 255).abs()
    assert difference[0][inside].max() < 1.01 and difference[1].max() < 1.01


def test_full_masks_fill_their_boxes_exactly() -> None:
    boxes = torch.tensor([[2.0, 3, 10, 9], [-5, -5, 4, 100]])
    pasted = paste_masks_in_image(torch.ones(2, 28, 28), boxes, (12, 20))
    expected = torch.zeros(2, 12, 20, dtype=torch.bool)
    expected[0, 3:9, 2:10] = True
    expected[1, :, :4] = True
    assert torch.equal(pasted, expected)


def test_boxes_beside_the_image_and_no_boxes() -> None:
    beside = torch.tensor([[-0.9, -0.9, -0.1, -0.1], [20.2, 5, 22, 9]])
    assert not paste_masks_in_image(torch.ones(2, 4, 4), beside, (12, 20)).any()
    assert paste_masks_in_image(torch.ones(0, 4, 4), torch.zeros(0, 4), (12, 20)).shape == (0, 12, 20)


def test_masks_are_square_and_as_many_as_boxes() -> None:
    with pytest.raises((ValueError, AssertionError)):
        paste_masks_in_image(torch.ones(1, 4, 5), torch.zeros(1, 4), (6, 6))
    with pytest.raises((ValueError, AssertionError)):
        paste_masks_in_image(torch.ones(2, 4, 4), torch.zeros(1, 4), (6, 6))
