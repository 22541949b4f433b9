"""Rotary position embedding (rotate-half form) with the scalings of the released models.

Dynamic NTK (InternLM2) and longrope (Phi-3) depend on how long a token's sequence is, so the
angles are made from positions *and* lengths. Shape letters: T packed tokens, H heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from internvl.config import RopeConfig, TextConfig
from internvl.ops.rotate import rotate

Rotate = Callable[[Tensor], Tensor]
"""Turns q or k (T, H, D) by the positions of its tokens."""


def make_rotation(config: TextConfig, pos_T: Tensor, lengths_T: Tensor, dtype: torch.dtype) -> Rotate:
    """The rotation of packed tokens at positions `pos_T` in sequences of `lengths_T` tokens."""
    cos_TD, sin_TD = (x_TD.to(dtype) for x_TD in make_angles(config, pos_T, lengths_T))
    return partial(rotate, cos_TD=cos_TD, sin_TD=sin_TD)


def rotation_regime(config: TextConfig, length: int) -> int:
    """Sequences whose lengths have equal regimes rotate alike, so that their keys can be exchanged."""
    if config.rope.scaling == "dynamic":
        return length if length > config.max_positions else 0
    return int(config.rope.scaling == "longrope" and length > _original(config))


def make_angles(config: TextConfig, pos_T: Tensor, lengths_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of that rotation, (T, D) each, float32."""
    angles_TD = pos_T.float()[:, None] * _frequencies(config, lengths_T)
    angles_TD = torch.cat((angles_TD, angles_TD), dim=-1)
    scale = _magnitude(config)
    return angles_TD.cos() * scale, angles_TD.sin() * scale


def _frequencies(config: TextConfig, lengths_T: Tensor) -> Tensor:
    """Inverse wavelengths, (1, D/2) when all tokens share them, else (T, D/2)."""
    if config.rope.scaling not in ("dynamic", "longrope"):
        return _row(config, 0, lengths_T.device)[None]
    lengths, index_T = torch.unique(lengths_T, return_inverse=True)
    rows = torch.stack([_row(config, length, lengths_T.device) for length in lengths.tolist()])
    return rows if len(rows) == 1 else rows[index_T]


@lru_cache(maxsize=64)
def _row(config: TextConfig, length: int, device: torch.device) -> Tensor:
    """(D/2,) inverse wavelengths for a sequence of `length` tokens; not to be written to. Asked for at every
    step."""
    rope, dim = config.rope, config.head_dim
    exponents = torch.arange(0, dim, 2, device=device).float() / dim
    if rope.scaling == "linear":
        return 1.0 / (rope.theta**exponents) / rope.factor
    if rope.scaling == "longrope":
        factors = rope.long_factors if length > _original(config) else rope.short_factors
        return 1.0 / (torch.tensor(factors, device=device) * rope.theta**exponents)
    return 1.0 / (_dynamic_theta(rope, dim, length, config.max_positions) ** exponents)


def _dynamic_theta(rope: RopeConfig, dim: int, length: int, max_positions: int) -> float:
    """NTK-aware base: grows once a sequence is longer than the model was trained for."""
    if rope.scaling != "dynamic" or length <= max_positions:
        return rope.theta
    stretch = rope.factor * length / max_positions - (rope.factor - 1)
    return float(rope.theta * stretch ** (dim / (dim - 2)))


def _magnitude(config: TextConfig) -> float:
    """Longrope compensates attention entropy by scaling cos and sin."""
    if config.rope.scaling != "longrope":
        return 1.0
    stretch = config.rope.factor
    return math.sqrt(1 + math.log(stretch) / math.log(_original(config))) if stretch > 1 else 1.0


def _original(config: TextConfig) -> int:
    return config.rope.original_max_positions or config.max_positions
