"""What PEFT calls the tensors of an adapter. Knows strings only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

Role = Literal["weight", "down", "up", "magnitude"]

_WRAPPER = re.compile(r"(^|\.)base_model\.model\.")
_FACTOR = re.compile(r"(.+)\.lora_(A|B|magnitude_vector)(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
_ROLES: Mapping[str, Role] = {"A": "down", "B": "up", "magnitude_vector": "magnitude"}


class PeftName(NamedTuple):
    """A tensor's name without PEFT's wrapping, and its part in the sum."""

    name: str
    role: Role


def parse_name(key: str) -> PeftName:
    """`a.base_model.model.b.lora_A.default.weight` is the factor "down" of `a.b.weight`."""
    key = _WRAPPER.sub(r"\1", key, count=1)
    factor = _FACTOR.fullmatch(key)
    if factor:
        return PeftName(f"{factor[1]}.weight", _ROLES[factor[2]])
    return PeftName(key.replace(".base_layer.", "."), "weight")
