"""What the blocks of a gated backbone have in common."""

from torch import Tensor

from dyn_d2.dynamic import Router, Unit

from detectron2.layers import CNNBlockBase


class GatedBlock(CNNBlockBase):
    """A block of a backbone parts of which a policy can switch off, per image.

    Attributes:
        name: of the block in its backbone, e.g. "res3.1"; set by the backbone.
    """

    name: str = ""

    def units(self, stage: int) -> list[Unit]:
        """What can be switched off, in the order in which ``forward`` asks the router; ``stage`` counts from 0."""
        raise NotImplementedError

    def forward(self, x: Tensor, router: Router) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W).
            router: gives the decisions and takes down the costs.

        Returns:
            (N, out_channels, H / stride, W / stride). In evaluation nothing that was decided away is computed.
        """
        raise NotImplementedError
