"""Blocks that are a sum of channel groups, each of which a policy switches off per image (CDB, section 3.1).

Every group is a whole branch with batch norms of its own, so that a closed one leaves no trace in the others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dyn_d2.gating import Decision, Router, Unit
from dyn_d2.gating.cost import chain_cost, conv_cost, unit_costs
from dyn_d2.gating.groups import GroupBranch, run_groups
from dyn_d2.utils.modules import ModuleListOf

from detectron2.layers import Conv2d

from .block import GatedBlock, conv_norm, project

# Widths of a group where the plain network has 64 channels: Table 1; N = 4 is not printed there.
_TABLE_WIDTHS = {2: 38, 3: 30, 4: 24}


def bottleneck_width(plain: int, groups: int) -> int:
    """Channels of the 3x3 convolution of each of N groups that stand for a bottleneck of ``plain`` channels w0.

    Table 1 for N = 2 and 3 and what its rule gives for 4; else the even number next to the root of
    8 N w0 w + 9 N w^2 = 17 w0^2, at which groups and plain block have equally many parameters.
    """
    if groups in _TABLE_WIDTHS:
        return max(round(_TABLE_WIDTHS[groups] * plain / 64), 1)
    root = plain * ((16 + 153 / groups) ** 0.5 - 4) / 9
    return plain if groups == 1 else max(2 * round(root / 2), 1)


class GroupSumBlock(GatedBlock):
    """ReLU(skip + sum over n of gate_n F_n(x)), where a policy gives the gates per image.

    Attributes:
        groups: the branches F_1 ... F_N.
        shortcut: projection of the skip path, never gated; None for the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        groups: Sequence[GroupBranch],
        *,
        shortcut: Conv2d | None = None,
        kind: str = "group",
        residual: bool = True,
        relu: bool = True,
        always_open: int = 0,
    ) -> None:
        """
        Args:
            residual: whether there is a skip path; else only the groups are summed.
            kind: "group", or "block" for a single one whose decision has the shape (N,).
            relu: whether ReLU follows the sum.
            always_open: how many of the groups, from the first, are not gated.
        """
        super().__init__(in_channels, out_channels, stride)
        self.groups = ModuleListOf(groups)
        self.shortcut = shortcut
        self._kind, self._residual, self._relu, self._always_open = kind, residual, relu, always_open

    def units(self, stage: int) -> list[Unit]:
        return [Unit(self.name, self._kind, self.in_channels, len(self.groups) - self._always_open, stage)]

    def forward(self, x: Tensor, router: Router) -> Tensor:
        decision = self._decide(x, router)
        return run_groups(
            list(self.groups),
            x,
            self._skip(x, router),
            decision,
            training=self.training,
            relu=self._relu,
            overwrite=router.overwrite,
        )

    def _decide(self, x: Tensor, router: Router) -> Decision:
        """The decision about all groups, (N, G); asks for those that are gated, and records costs."""
        cost = chain_cost(self.groups[0].convs(), *x.shape[-2:])[0]
        for n in range(self._always_open):
            router.trace.add_fixed(f"{self.name}.groups.{n}", cost, x)
        unit_cost = unit_costs(cost, len(self.groups) - self._always_open, x.device)
        decision = router.decide(x, unit_cost)
        router.record_units(self.name, decision, unit_cost)
        gate = decision.gate.reshape(x.shape[0], len(unit_cost))
        if self._always_open:
            gate = torch.cat([gate.new_ones(x.shape[0], self._always_open), gate], 1)
        return Decision(gate)

    def _skip(self, x: Tensor, router: Router) -> Tensor | None:
        if not self._residual:
            return None
        if self.shortcut is None:
            return x
        router.trace.add_fixed(f"{self.name}.shortcut", conv_cost(self.shortcut, *x.shape[-2:])[0], x)
        return project(self.shortcut, x)


class CDBBlock(GroupSumBlock):
    """A residual block of N gated groups (CDB, Eq. 3 and Table 1): ReLU(Id(x) + sum over n of s_n F_n(x)).

    Id is the identity, or a projection where size or channels change. Eq. 3 has no ReLU after the sum; that of ResNet,
    from which the block is derived, is kept, and changes nothing where all groups of a block without projection are
    closed: the block is then the identity, as its input comes from such a ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int = 0,
        groups: int = 2,
        stride: int = 1,
        norm="BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """
        Args:
            bottleneck_channels: width w0 of the plain network's bottleneck block, from which the width of a group
                follows (``bottleneck_width``). 0: groups are basic blocks of two 3x3 convolutions with
                ``out_channels`` / N channels between them; there, N groups have the parameters of the plain block.
            groups: N.
            stride: of the (first) 3x3 convolution; of the first 1x1 one where ``stride_in_1x1``.
            norm: anything that ``layers.get_norm`` takes; each group has its own.
            dilation: of the 3x3 convolutions.

        Raises:
            ValueError: there are fewer than one group.
        """
        if groups < 1:
            raise ValueError(f"MODEL.GATED.GROUPS is {groups}: a block has at least 1 group.")
        branches: list[GroupBranch] = []
        for _ in range(groups):
            if bottleneck_channels:
                width = bottleneck_width(bottleneck_channels, groups)
                first, middle = (stride, 1) if stride_in_1x1 else (1, stride)
                convs = [
                    conv_norm(in_channels, width, 1, norm, first),
                    conv_norm(width, width, 3, norm, middle, dilation),
                    conv_norm(width, out_channels, 1, norm),
                ]
            else:
                width = max(round(out_channels / groups), 1)
                convs = [
                    conv_norm(in_channels, width, 3, norm, stride, dilation),
                    conv_norm(width, out_channels, 3, norm, 1, dilation),
                ]
            branches.append(GroupBranch(convs, F.relu_))
        project = in_channels != out_channels or stride != 1
        shortcut = conv_norm(in_channels, out_channels, 1, norm, stride) if project else None
        super().__init__(in_channels, out_channels, stride, branches, shortcut=shortcut)
