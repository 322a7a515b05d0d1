"""The re-weighting module M of feature re-weighting (Wang 2020, 6.2): support image and mask in, class vector out.

Letters for shapes: N support images, one of each class of an episode; m channels that are re-weighted.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from dyn_d2.methods.fsrw.darknet import conv_unit, scaled

# What the module looks at (Table 6.6), and how many channels that is.
FORMS = {"image": 3, "image+mask": 4, "image+object": 6, "image+mask+object": 7}
WIDTHS = (32, 64, 128, 256, 512)
SMALLEST = 64  # six poolings


class ReweightingNet(nn.Module):
    """Seven 3x3 convolutions, the first six followed by a 2x2 max pooling, then the maximum over all positions."""

    def __init__(self, out_channels: int, width: float = 1.0, norm: str = "BN", form: str = "image+mask") -> None:
        """
        Args:
            out_channels: m, channels of the features that are re-weighted.
            width: factor of the numbers of channels of the first five convolutions.
            norm: of all convolutions.
            form: one of FORMS.

        Raises:
            ValueError: there is no such form.
        """
        super().__init__()
        self.form, self.out_channels = _known(form), out_channels
        channels = [FORMS[form], *(scaled(c, width) for c in WIDTHS), out_channels, out_channels]
        pairs = zip(channels, channels[1:], strict=False)
        self.convs = nn.ModuleList(conv_unit(before, after, 3, norm) for before, after in pairs)

    def forward(self, images: Tensor, masks: Tensor, boxes: Tensor) -> Tensor:
        """
        Args:
            images: (N, 3, S, S), normalised, S at least 64.
            masks: (N, 1, S, S), 1 inside of the object's box and 0 outside.
            boxes: (N, 4) the same boxes, x0, y0, x1, y1 in pixels.

        Returns:
            (N, m) class vectors w_i.
        """
        x = self.arrange(images, masks, boxes)
        for layer in self.convs[:-1]:
            x = F.max_pool2d(layer(x), 2)
        return self.convs[-1](x).amax((2, 3))

    def arrange(self, images: Tensor, masks: Tensor, boxes: Tensor) -> Tensor:
        """The channels of ``form``; the object is its box, resized to the size of the image."""
        parts = [images]
        if "mask" in self.form:
            parts.append(masks.to(images))
        if "object" in self.form:
            regions = list(boxes.to(images)[:, None].unbind(0))
            parts.append(roi_align(images, regions, images.shape[-2:], sampling_ratio=2, aligned=True))
        return torch.cat(parts, dim=1)


class FeatureReweightingNet(nn.Module):
    """The same task from features of the support image in place of its pixels: what a backbone knows of ImageNet need
    not be learned anew. Two 3x3 convolutions, then the maximum over all positions.

    Not published with feature re-weighting; Meta R-CNN (Yan et al., ICCV 2019) has its class vectors from the backbone.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: float = 1.0, norm: str = "BN", form: str = "image+mask"
    ) -> None:
        """
        Args:
            in_channels: C of the features.
            out_channels: m, channels of the features that are re-weighted.
            width: factor of the 512 channels of the first convolution.
            norm: of both convolutions.
            form: one of FORMS; its parts are features, mask and features of the object's box.

        Raises:
            ValueError: there is no such form.
        """
        super().__init__()
        self.form, self.out_channels = _known(form), out_channels
        given = in_channels * (1 + ("object" in form)) + ("mask" in form)
        middle = scaled(WIDTHS[-1], width)
        self.convs = nn.ModuleList([conv_unit(given, middle, 3, norm), conv_unit(middle, out_channels, 3, norm)])

    def forward(self, features: Tensor, boxes: Tensor, stride: int) -> Tensor:
        """
        Args:
            features: (N, C, H, W) of the support images.
            boxes: (N, 4) of their objects, x0, y0, x1, y1 in pixels.
            stride: pixels of a side of a cell.

        Returns:
            (N, m) class vectors w_i.
        """
        size = (features.shape[-2], features.shape[-1])
        boxes = boxes.to(features) / stride
        parts = [features]
        if "mask" in self.form:
            parts.append(covered(boxes, size))
        if "object" in self.form:
            parts.append(roi_align(features, list(boxes[:, None].unbind(0)), size, sampling_ratio=2, aligned=True))
        x = torch.cat(parts, dim=1)
        for layer in self.convs:
            x = layer(x)
        return x.amax((2, 3))


def covered(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W): which share of each cell of a grid the (N, 4) boxes cover, which are in cells."""
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    rows, columns = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) for count in size)
    wide = (torch.minimum(x1, columns + 1) - torch.maximum(x0, columns)).clamp(min=0)
    high = (torch.minimum(y1, rows + 1) - torch.maximum(y0, rows)).clamp(min=0)
    return (high[:, :, None] * wide[:, None])[:, None]


def _known(form: str) -> str:
    if form not in FORMS:
        raise ValueError(f"MODEL.REWEIGHTING.SUPPORT_FORM is {form!r}: use one of {', '.join(FORMS)}.")
    return form


def reweight(features: Tensor, vectors: Tensor) -> Tensor:
    """Eq. 6.1: the features of each image, multiplied by the vector of each class.

    Args:
        features: (B, C, H, W).
        vectors: (N, m), m <= C; channels after the first m stay as they are ("half" of Table 6.4).

    Returns:
        (B * N, C, H, W); that of image b and class i is at b * N + i.
    """
    return (features[:, None] * widen(vectors, features.shape[1])[None, :, :, None, None]).flatten(0, 1)


def predict_reweighted(features: Tensor, vectors: Tensor, predictor: nn.Conv2d) -> Tensor:
    """``predictor(reweight(features, vectors))`` of a 1x1 convolution without B * N feature maps: both are linear in
    the channels, so the vector of a class is multiplied into the weights instead.

    Returns:
        (B, N, O, H, W) with O the outputs of the predictor.
    """
    weights = predictor.weight * widen(vectors, features.shape[1])[:, None, :, None, None]  # N x O x C x 1 x 1
    bias = None if predictor.bias is None else predictor.bias.repeat(len(vectors))
    return F.conv2d(features, weights.flatten(0, 1), bias).unflatten(1, (len(vectors), predictor.out_channels))


def widen(vectors: Tensor, channels: int) -> Tensor:
    """(N, channels) with 1 after the given ones.

    Raises:
        ValueError: the vectors are wider than the features.
    """
    missing = channels - vectors.shape[1]
    if missing < 0:
        raise ValueError(f"class vectors of width {vectors.shape[1]} cannot re-weight {channels} channels.")
    return vectors if missing == 0 else torch.cat([vectors, vectors.new_ones(len(vectors), missing)], dim=1)
