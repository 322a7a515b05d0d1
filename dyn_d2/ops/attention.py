"""What attention costs on a CPU, where torch runs it as one operator that its FlopCounterMode does not know."""

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


if _FUSED not in flop_registry:  # a later torch may know it

    @register_flop_formula(_FUSED)
    def _flops(query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)
