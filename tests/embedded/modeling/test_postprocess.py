"""Results at the size that the user asked for."""

import pytest
import torch
from torch.nn import functional as F

from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances


def found(*boxes):
    count = len(boxes)
    return Instances(
        (20, 40),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.arange(count).float(),
        pred_masks=torch.ones(count, 1, 4, 4),
    )


def test_boxes_are_scaled_and_clipped_and_empty_ones_dropped():
    result = detector_postprocess(found((4, 2, 8, 10), (50, 3, 60, 9), (30, 10, 50, 19)), 40, 120)
    assert result.image_size == (40, 120) and result.scores.tolist() == [0, 2]
    assert result.pred_boxes.tensor.tolist() == [[12, 4, 24, 20], [90, 20, 120, 38]]


def test_masks_fill_their_box():
    result = detector_postprocess(found((4, 2, 8, 10)), 20, 40)
    expected = torch.zeros(20, 40, dtype=torch.bool)
    expected[2:10, 4:8] = True
    assert result.pred_masks.dtype == torch.bool and torch.equal(result.pred_masks[0], expected)


def test_nothing_found():
    result = detector_postprocess(found(), 30, 50)
    assert len(result) == 0 and tuple(result.pred_masks.shape) == (0, 30, 50)


def test_proposals_and_a_users_keypoints():
    x = Instances((10, 10), proposal_boxes=Boxes(torch.tensor([[1.0, 1, 5, 5]])))
    x.pred_keypoints = torch.tensor([[[2.0, 3.0, 0.7]]])
    result = detector_postprocess(x, 20, 40)
    assert result.proposal_boxes.tensor.tolist() == [[4, 2, 20, 10]]
    torch.testing.assert_close(result.pred_keypoints, torch.tensor([[[8.0, 6.0, 0.7]]]))


@pytest.mark.embedded
def test_input_is_left_alone_and_boxes_are_required():
    x = found((4, 2, 8, 10))
    detector_postprocess(x, 100, 100)
    assert x.pred_boxes.tensor.tolist() == [[4, 2, 8, 10]]
    with pytest.raises(ValueError, match="pred_boxes"):
        detector_postprocess(Instances((10, 10), scores=torch.zeros(1)), 20, 20)


def test_semantic_scores_lose_their_padding():
    scores = torch.randn(3, 16, 16)
    result = sem_seg_postprocess(scores, (10, 12), 20, 36)
    expected = F.interpolate(scores[None, :, :10, :12], size=(20, 36), mode="bilinear", align_corners=False)[0]
    assert torch.equal(result, expected)
    assert torch.equal(sem_seg_postprocess(scores, (10, 12), 10, 12), scores[:, :10, :12])
