"""RoIAlign (Mask R-CNN, Sec. 3)."""

from torch import Tensor, nn
from torchvision.ops import roi_align


class ROIAlign(nn.Module):
    """Bilinear pooling of boxes into a fixed grid.

    Args:
        output_size: (height, width) of the grid, or one int for both.
        spatial_scale: feature-map cells per unit of the boxes' coordinates.
        sampling_ratio: samples per bin and axis; 0 takes as many as there are cells in the bin.
        aligned: True treats cell (i, j) as centred at (i + 0.5, j + 0.5); False is Detectron's older convention,
            half a cell off (and torchvision's default).
    """

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ):
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool ``rois`` (R, 5), rows (image index, x0, y0, x1, y1), from ``input`` (N, C, H, W) into (R, C, h, w)."""
        if rois.dim() != 2 or rois.size(1) != 5:
            raise ValueError(f"ROIAlign takes (R, 5) regions, got {tuple(rois.shape)}.")
        rois = rois.to(dtype=input.dtype)
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
