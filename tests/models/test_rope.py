"""Rotary positions: the plain form against complex numbers, and each scaling against its formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from internvl.config import RopeConfig, TextConfig
from internvl.models.rope import make_rotation


def angles(config: TextConfig, positions: Tensor, length: int) -> Tensor:
    """Angle of every pair, measured by rotating the unit vector (1, 0)."""
    probe = torch.cat((torch.ones(len(positions), 1, 4), torch.zeros(len(positions), 1, 4)), dim=-1)
    turned = make_rotation(config, positions, torch.full_like(positions, length), torch.float32)(probe)
    return torch.atan2(turned[:, 0, 4:], turned[:, 0, :4])


def test_equals_complex_multiplication(text_config: TextConfig) -> None:
    q = torch.randn(5, 3, 8)
    positions = torch.tensor([0, 1, 2, 9, 40])
    out = make_rotation(text_config, positions, positions + 1, torch.float32)(q)
    frequencies = 1e4 ** (-torch.arange(0, 8, 2) / 8)
    turn = torch.polar(torch.ones(5, 4), positions[:, None] * frequencies)[:, None]
    expected = torch.complex(q[..., :4], q[..., 4:]) * turn
    torch.testing.assert_close(out, torch.cat((expected.real, expected.imag), dim=-1))


def test_linear_scaling_divides_positions(text_config: TextConfig) -> None:
    scaled = replace(text_config, rope=RopeConfig(scaling="linear", factor=4.0))
    torch.testing.assert_close(
        angles(scaled, torch.tensor([8]), 9), angles(text_config, torch.tensor([2]), 3)
    )


def test_dynamic_scaling_starts_beyond_the_trained_length(text_config: TextConfig) -> None:
    scaled = replace(text_config, rope=RopeConfig(scaling="dynamic", factor=2.0))
    position = torch.tensor([3])
    torch.testing.assert_close(angles(scaled, position, 64), angles(text_config, position, 64))
    base = 1e4 * (2.0 * 80 / 64 - 1.0) ** (8 / 6)
    expected = 3 * base ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(angles(scaled, position, 80)[0], expected, atol=1e-5, rtol=1e-5)


def test_dynamic_scaling_follows_each_sequence_of_a_pack(text_config: TextConfig) -> None:
    scaled = replace(text_config, rope=RopeConfig(scaling="dynamic", factor=2.0))
    x = torch.randn(2, 1, 8)
    both = make_rotation(scaled, torch.tensor([3, 3]), torch.tensor([10, 80]), torch.float32)(x)
    for index, length in enumerate((10, 80)):
        alone = make_rotation(scaled, torch.tensor([3]), torch.tensor([length]), torch.float32)
        torch.testing.assert_close(both[index : index + 1], alone(x[index : index + 1]))


@pytest.mark.parametrize(("length", "factor"), [(16, 2.0), (17, 5.0)])
def test_longrope_chooses_factors_by_length(text_config: TextConfig, length: int, factor: float) -> None:
    rope = RopeConfig(
        scaling="longrope",
        original_max_positions=16,
        short_factors=(2.0,) * 4,
        long_factors=(5.0,) * 4,
    )
    scaled = replace(text_config, rope=rope)
    expected = 3 * 1e4 ** (-torch.arange(0, 8, 2) / 8) / factor
    torch.testing.assert_close(angles(scaled, torch.tensor([3]), length)[0], expected, atol=1e-5, rtol=1e-5)


def test_longrope_scales_magnitude(text_config: TextConfig) -> None:
    rope = RopeConfig(
        scaling="longrope",
        factor=4.0,
        original_max_positions=16,
        short_factors=(1.0,) * 4,
        long_factors=(1.0,) * 4,
    )
    x = torch.randn(1, 2, 8)
    rotate = make_rotation(
        replace(text_config, rope=rope), torch.tensor([7]), torch.tensor([8]), torch.float32
    )
    expected = math.sqrt(1 + math.log(64 / 16) / math.log(16))
    torch.testing.assert_close(rotate(x).norm() / x.norm(), torch.tensor(expected))
