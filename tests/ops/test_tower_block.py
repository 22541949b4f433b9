"""A tower's block in one call, on every library of kernels, against the same written out in float64."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from internvl.ops.packed import PANEL, PackedWeight, Scheme, pack, round_rows, unpack
from internvl.ops.tile_attention import tile_attention
from internvl.ops.tower_block import ACTIVATIONS, Norm, TowerBlock, tower_block

EPS = 1e-6


class Parts(NamedTuple):
    heads: int
    activation: str
    norms: tuple[Norm, Norm]
    scales: tuple[Tensor, Tensor]
    weights: list[PackedWeight]
    biases: list[Tensor | None]

    def call(self, x_NPC: Tensor) -> Tensor:
        padded = [None if b is None else F.pad(b, (0, -len(b) % PANEL)) for b in self.biases]
        matrices = [weight.matrix(bias) for weight, bias in zip(self.weights, padded, strict=True)]
        block = TowerBlock(self.heads, self.activation, EPS, self.norms, self.scales, *matrices)
        return tower_block(block, x_NPC)

    def expected(self, x_NPC: Tensor) -> Tensor:
        x_NPC = x_NPC.double()
        seen_NPC = self._attention(self._linear(0, norm(x_NPC, self.norms[0])))
        x_NPC = x_NPC + self._linear(1, seen_NPC) * self.scales[0].double()
        hidden_NPF = activated(self._linear(2, norm(x_NPC, self.norms[1])), self.activation)
        return x_NPC + self._linear(3, hidden_NPF) * self.scales[1].double()

    def _attention(self, qkv_NPC: Tensor) -> Tensor:
        if self.weights[0].is_integer:
            return tile_attention(qkv_NPC.float(), self.heads, in_16_bits=True).double()
        qkv_NPHD = (x.unflatten(2, (self.heads, -1)) for x in qkv_NPC.chunk(3, dim=-1))
        return (
            F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv_NPHD)).transpose(1, 2).flatten(2)
        )

    def _linear(self, index: int, x_NPI: Tensor) -> Tensor:
        rows_TI = round_rows(x_NPI.flatten(0, 1).float(), self.weights[index].scheme)
        bias = self.biases[index]
        out_TO = F.linear(
            rows_TI.double(), unpack(self.weights[index]).double(), None if bias is None else bias.double()
        )
        return out_TO.view(*x_NPI.shape[:2], out_TO.shape[1])


def norm(x: Tensor, norm: Norm) -> Tensor:
    if norm.bias_C is None:
        return F.rms_norm(x, x.shape[-1:], norm.weight_C.double(), EPS)
    return F.layer_norm(x, x.shape[-1:], norm.weight_C.double(), norm.bias_C.double(), EPS)


def activated(x: Tensor, activation: str) -> Tensor:
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def parts(
    scheme: Scheme, heads: int, width: int, mlp: int, activation: str = "gelu", *, biases: bool = True
) -> Parts:
    torch.manual_seed(heads * width + mlp)
    sizes = ((3 * width, width), (width, width), (mlp, width), (width, mlp))
    return Parts(
        heads,
        activation,
        (Norm(1 + torch.randn(width) / 4, torch.randn(width) if biases else None),) * 2,
        (torch.randn(width), torch.randn(width)),
        [pack(torch.randn(size) / size[1] ** 0.5, scheme) for size in sizes],
        [torch.randn(size[0]) if biases else None for size in sizes],
    )


@pytest.fixture
def compiled(kernels: ctypes.CDLL | None) -> None:
    if kernels is None:
        pytest.skip("the modules of the tower are its PyTorch path")


@pytest.mark.parametrize(
    ("tiles", "patches", "heads", "width", "mlp"),
    [
        (0, 5, 1, 16, 24),
        (1, 1, 1, 16, 9),
        (2, 17, 2, 64, 100),
        (1, 131, 3, 48, 1100),
        (5, 50, 1, 32, 64),
        (1, 700, 1, 16, 24),
    ],
)
@pytest.mark.parametrize("scheme", ["float32", "bfloat16"])
@pytest.mark.usefixtures("compiled")
def test_equals_what_is_written_out(
    scheme: Scheme, tiles: int, patches: int, heads: int, width: int, mlp: int
) -> None:
    block = parts(scheme, heads, width, mlp)
    x_NPC = torch.randn(tiles, patches, width) * 3
    torch.testing.assert_close(block.call(x_NPC).double(), block.expected(x_NPC), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiled", "three_threads")
def test_threads_share_tiles_and_rows() -> None:
    """More threads than heads: several tiles at once, the last time fewer."""
    block = parts("float32", 2, 32, 40)
    x_NPC = torch.randn(5, 21, 32)
    torch.testing.assert_close(block.call(x_NPC).double(), block.expected(x_NPC), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.usefixtures("compiled")
def test_rows_are_rounded_as_layer_by_layer(scheme: Scheme) -> None:
    """Some values lie on a half and round to the other side; nothing else may differ."""
    block = parts(scheme, 2, 64, 200)
    x_NPC = torch.randn(2, 37, 64) * 3
    apart = (block.call(x_NPC) - block.expected(x_NPC)).abs()
    assert apart.median() < 1e-5
    assert apart.max() < 0.2


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.usefixtures("compiled")
def test_activations_and_norms(activation: str, biases: bool) -> None:
    block = parts("float32", 2, 32, 40, activation, biases=biases)
    x_NPC = torch.randn(2, 9, 32) * torch.tensor([1e-3, 50.0])[:, None, None]
    torch.testing.assert_close(block.call(x_NPC).double(), block.expected(x_NPC), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("compiled")
def test_activations_far_from_zero(activation: str) -> None:
    """fc1 hands on values, fc2 shows them: no part of the curve is off by more than float32 is."""
    extremes = torch.tensor([-1e30, -1e4, -100.0, -1e-30, 0.0, 1e-6, 1e4])
    values = torch.cat((torch.linspace(-40, 40, 800), extremes, torch.zeros(9))).view(-1, 16)
    block = parts("float32", 1, 16, 16, activation)
    weights = [
        pack(weight, "float32") for weight in (torch.zeros(16, 16), torch.zeros(16, 16), torch.eye(16))
    ]
    for row in values:
        found = block._replace(
            scales=(torch.ones(16),) * 2,
            weights=[block.weights[0], *weights],
            biases=[torch.zeros(48), torch.zeros(16), row, torch.zeros(16)],
        ).call(torch.zeros(1, 1, 16))
        expected = activated(row.double(), activation)
        torch.testing.assert_close(found[0, 0].double(), expected, rtol=1e-6, atol=4e-7)


@pytest.mark.parametrize("scheme", ["float32", "int8"])
@pytest.mark.usefixtures("compiled")
def test_what_is_no_number_is_not_hidden(scheme: Scheme) -> None:
    x_NPC = torch.randn(2, 7, 32)
    x_NPC[1, 3, 5] = torch.nan
    found = parts(scheme, 2, 32, 40).call(x_NPC)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()
