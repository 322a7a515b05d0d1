"""Transforms that fvcore does not have. Coordinates are (x, y) in pixels, not pixel indices: 0 <= x <= width."""

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import Transform
from PIL import Image

_TORCH_MODE = {Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic", Image.NEAREST: "nearest"}


class ResizeTransform(Transform):
    """Resize (h, w) to (new_h, new_w); uint8 through PIL (anti-aliased), other types through torch (not).

    Args:
        h, w: size of the input.
        new_h, new_w: size of the output.
        interp: a PIL resampling constant; None is bilinear. Segmentations always use the nearest pixel.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"ResizeTransform was made for an image of {(self.h, self.w)}, but got {img.shape[:2]}.")
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            single = img.ndim == 3 and img.shape[2] == 1
            image = Image.fromarray(img[:, :, 0] if single else img)
            result = np.asarray(image.resize((self.new_w, self.new_h), interp))
            return result[:, :, None] if single else result
        mode = _TORCH_MODE[interp]
        planes = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1).permute(2, 0, 1)
        resized = F.interpolate(
            planes[None], (self.new_h, self.new_w), mode=mode, align_corners=None if mode == "nearest" else False
        )
        return resized[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)
