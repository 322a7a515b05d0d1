"""From the resolution that a network worked at to the resolution that its user asked for."""

import torch
from torch.nn import functional as F

from detectron2.structures import Instances, ROIMasks


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Bring the detections of one image to another image size.

    Args:
        results: detections in pixels of the network's input, whose size is ``results.image_size``. They need the field
            "pred_boxes" or "proposal_boxes"; "pred_masks" may be :class:`ROIMasks` or an (N, 1, M, M) tensor of
            probabilities inside each box. They are left unchanged.
        output_height, output_width: the wanted size in pixels.
        mask_threshold: a pixel belongs to a mask where its probability is at least this.

    Returns:
        Detections of the wanted size without those whose box became empty; "pred_masks" is then an
        (N, output_height, output_width) bool tensor.

    Raises:
        ValueError: there is neither "pred_boxes" nor "proposal_boxes".
    """
    box_field = next((name for name in ("pred_boxes", "proposal_boxes") if results.has(name)), None)
    if box_field is None:
        raise ValueError("detector_postprocess needs detections with 'pred_boxes' or 'proposal_boxes'.")
    scale_x = output_width / results.image_size[1]
    scale_y = output_height / results.image_size[0]

    resized = Instances((output_height, output_width), **results.get_fields())
    boxes = results.get(box_field).clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip(resized.image_size)
    resized.set(box_field, boxes)
    resized = resized[boxes.nonempty()]

    if resized.has("pred_masks"):
        masks = resized.pred_masks if isinstance(resized.pred_masks, ROIMasks) else ROIMasks(resized.pred_masks[:, 0])
        resized.pred_masks = masks.to_bitmasks(resized.pred_boxes, output_height, output_width, mask_threshold).tensor
    if resized.has("pred_keypoints"):  # from a user's own head: (N, keypoints, 3) with x, y, score; a copy by now
        resized.pred_keypoints[..., 0] *= scale_x
        resized.pred_keypoints[..., 1] *= scale_y
    return resized


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off a map of class scores, then resize it bilinearly.

    Args:
        result: (K, H, W) scores of K classes, padded on the right and at the bottom.
        img_size: (height, width) of the network's input without its padding.
        output_height, output_width: the wanted size in pixels.

    Returns:
        (K, output_height, output_width) scores.
    """
    unpadded = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(unpadded, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
