"""Low-rank adapters: what their tensors are called in PEFT's files, and how they merge.

Knows names and arithmetic; where the tensors come from is the caller's affair.
Shape letters: O rows and I columns of a weight, R rank.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from torch import Tensor

ALPHA_PER_RANK = 2
"""InternVL trains every adapter with alpha = 2 r, so the scale is 2 at any rank."""

Role = Literal["weight", "down", "up"]

_WRAPPER = re.compile(r"(^|\.)base_model\.model\.")
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.(?:[^.]+\.)?weight")


class PeftName(NamedTuple):
    """A tensor's name without PEFT's wrapping, and its part in the sum."""

    name: str
    role: Role


def parse_name(key: str) -> PeftName:
    """`a.base_model.model.b.lora_A.default.weight` is the factor "down" of `a.b.weight`."""
    key = _WRAPPER.sub(r"\1", key, count=1)
    factor = _FACTOR.fullmatch(key)
    if factor:
        return PeftName(f"{factor[1]}.weight", "down" if factor[2] == "A" else "up")
    return PeftName(key.replace(".base_layer.", "."), "weight")


def merge(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """`weight + scale * up @ down` in the dtype of `weight`, computed in float32."""
    merged_OI = weight_OI.float().addmm(up_OR.float(), down_RI.float(), alpha=scale)
    return merged_OI.to(weight_OI.dtype)
