"""Packed weights and their products, on every library of kernels against plain arithmetic in float64."""

from __future__ import annotations

import ctypes
from functools import partial

import pytest
import torch
from torch import Tensor

from internvl.ops import packed as module
from internvl.ops.native import KINDS, load_library, runs_here
from internvl.ops.packed import (
    PAIR,
    PANEL,
    SCHEMES,
    Scheme,
    layout_digest,
    pack,
    packed_form,
    packed_linear,
    round_rows,
    spread,
    unpack,
)

SHAPES = [
    (1, 4, 1),
    (1, 67, 40),
    (1, 1541, 37),
    (2, 7, 5),
    (3, 48, 16),
    (3, 64, 16),
    (4, 65, 17),
    (5, 128, 40),
    (6, 100, 33),
    (8, 64, 48),
    (7, 400, 33),
    (9, 68, 40),
    (10, 72, 17),
    (11, 1023, 129),
    (31, 300, 48),
    (121, 130, 33),
    (127, 1541, 20),
    (300, 1100, 33),
    (65, 9000, 17),
]
"""Rows, inputs, outputs: every number of rows that a tile has, panels, quads and parts that are not whole,
and more rows than are taken at a time (270 floats, 30 integers where there are 9,000 inputs)."""
EXACT: dict[Scheme, float] = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.008, "int4": 0.12}
"""How far a weight of a normal distribution may lie from what is stored, in units of its row's largest."""


def padded(bias_O: Tensor) -> Tensor:
    return torch.nn.functional.pad(bias_O, (0, -len(bias_O) % PANEL))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("kernels")
def test_product_of_what_is_stored(scheme: Scheme, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    torch.manual_seed(sum(shape))
    x_TI, weight_OI, bias_O = (
        torch.randn(rows, inputs) * 3,
        torch.randn(outputs, inputs),
        torch.randn(outputs),
    )
    packed = pack(weight_OI, scheme)
    expected = round_rows(x_TI, scheme).double() @ unpack(packed).double().T + bias_O.double()
    found = packed_linear(x_TI, packed, padded(bias_O))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5 * inputs**0.5)
    torch.testing.assert_close(
        packed_linear(x_TI, packed).double(), expected - bias_O, rtol=1e-5, atol=2e-5 * inputs**0.5
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.usefixtures("kernels", "three_threads")
def test_threads_share_panels(scheme: Scheme) -> None:
    torch.manual_seed(0)
    x_TI, packed = torch.randn(61, 1100), pack(torch.randn(70, 1100), scheme)
    expected = round_rows(x_TI, scheme).double() @ unpack(packed).double().T
    torch.testing.assert_close(packed_linear(x_TI, packed).double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_stored_is_near_the_weight(scheme: Scheme) -> None:
    weight_OI = torch.randn(33, 200, generator=torch.Generator().manual_seed(0))
    packed = pack(weight_OI, scheme)
    away = (unpack(packed) - weight_OI).abs() / weight_OI.abs().amax(1, keepdim=True)
    assert unpack(packed).shape == (33, 200)
    assert away.max() <= EXACT[scheme]


@pytest.mark.parametrize("scheme", ["float32", "bfloat16"])
@pytest.mark.usefixtures("kernels")
def test_bfloat16_weights_lose_nothing(scheme: Scheme) -> None:
    torch.manual_seed(0)
    weight_OI, x_TI = torch.randn(40, 96).bfloat16(), torch.randn(7, 96)
    assert torch.equal(unpack(pack(weight_OI, scheme)), weight_OI.float())
    expected = x_TI.double() @ weight_OI.double().T
    torch.testing.assert_close(
        packed_linear(x_TI, pack(weight_OI, scheme)).double(), expected, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.usefixtures("kernels")
def test_extreme_rows_and_weights(scheme: Scheme) -> None:
    weight_OI = torch.zeros(16, 128)
    weight_OI[1] = 1.0
    weight_OI[2, ::2], weight_OI[2, 1::2] = -1.0, 1.0
    weight_OI[3, 5] = 1e4
    x_TI = torch.zeros(6, 128)
    x_TI[1], x_TI[2], x_TI[3, 7], x_TI[4] = 1e-20, -50.0, 3e4, torch.linspace(0, 1, 128)
    x_TI[5] = -torch.linspace(0, 1e-3, 128)
    packed = pack(weight_OI, scheme)
    expected = round_rows(x_TI, scheme).double() @ unpack(packed).double().T
    found = packed_linear(x_TI, packed)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert not found[:, 0].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.usefixtures("kernels")
def test_a_row_that_is_no_number_gives_none(scheme: Scheme, value: float) -> None:
    x_TI = torch.ones(2, 64)
    x_TI[1, 3] = value
    found = packed_linear(x_TI, pack(torch.ones(16, 64), scheme))
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


def test_neighbouring_weights_fit_sixteen_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.cat((torch.randn(64, 90, generator=generator), torch.ones(16, 90), -torch.ones(16, 90)))
    pairs = pack(weight_OI, "int8").panels.int().unflatten(-1, (2, 2))
    assert 255 * pairs.clamp(min=0).sum(-1).max() < 1 << 15
    assert 255 * pairs.clamp(max=0).sum(-1).min() >= -1 << 15
    assert pairs.sum(-1).abs().max() >= PAIR - 2


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_integers_are_those_of_plain_arithmetic(scheme: Scheme, kernels: ctypes.CDLL | None) -> None:
    """With weights that scales represent exactly."""
    torch.manual_seed(0)
    x_TI, weight_OI = torch.randint(-127, 128, (9, 192)).float(), torch.randint(-4, 4, (32, 192)).float()
    x_TI[:, 0], x_TI[:, 1], weight_OI[:, ::64], weight_OI[:, 1::64] = 127, -128 + (scheme == "int4"), -4, 3
    packed = pack(weight_OI, scheme)
    expected = round_rows(x_TI, scheme).double() @ unpack(packed).double().T
    tolerance = 1e-6 if kernels is not None else 1e-5
    torch.testing.assert_close(packed_linear(x_TI, packed).double(), expected, rtol=tolerance, atol=1e-3)


@pytest.mark.parametrize("width", [16, 48, 384, 400])
def test_spreading_keeps_products_and_undoes_itself(width: int) -> None:
    torch.manual_seed(width)
    x_TI, weight_OI = torch.randn(5, width).double(), torch.randn(7, width).double()
    torch.testing.assert_close(spread(spread(x_TI)), x_TI)
    torch.testing.assert_close(spread(x_TI) @ spread(weight_OI).T, x_TI @ weight_OI.T)
    assert torch.equal(spread(x_TI[:, :-1]), x_TI[:, :-1])  # no multiple of sixteen


def test_one_large_value_of_a_row_costs_the_others_little() -> None:
    torch.manual_seed(0)
    x_TI = torch.randn(32, 256)
    x_TI[:, 17] = 100
    step_T1 = (x_TI.amax(1, keepdim=True).clamp(min=0) - x_TI.amin(1, keepdim=True).clamp(max=0)) / 255
    as_it_is_TI = (x_TI / step_T1).round() * step_T1
    assert (round_rows(x_TI, "int8") - x_TI).norm() < 0.6 * (as_it_is_TI - x_TI).norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_libraries_agree_on_int8(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are integers, and scaled by the same products: bit for bit."""
    rows, inputs, outputs = shape
    torch.manual_seed(sum(shape))
    x_TI, packed = torch.randn(rows, inputs), pack(torch.randn(outputs, inputs), "int8")
    found = []
    for kind in filter(runs_here, KINDS):
        monkeypatch.setattr(module, "library", partial(load_library, kind))
        found.append(packed_linear(x_TI, packed))
    assert len(found) > 0
    assert all(torch.equal(one, found[0]) for one in found)


def test_no_rows() -> None:
    assert packed_linear(torch.empty(0, 8), pack(torch.ones(3, 8), "int8")).shape == (0, 3)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_form_is_that_of_a_packed_weight(scheme: Scheme, shape: tuple[int, int, int]) -> None:
    _, inputs, outputs = shape
    packed = pack(torch.randn(outputs, inputs), scheme)
    tensors = {"panels": packed.panels, "scale_O": packed.scale_O, "sum_O": packed.sum_O}
    found = {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items() if x is not None}
    assert packed_form(scheme, (outputs, inputs)) == found
    assert packed.has_finite_scales


def test_digests_of_layouts() -> None:
    """Files in the world carry these: they may only change together with the layout of the panels."""
    digests = {scheme: layout_digest(scheme) for scheme in SCHEMES}
    assert digests == {
        "float32": "45a32c71bcb9fab0",
        "bfloat16": "7025f9dd5310df0a",
        "int8": "a83e08226387eb0b",
        "int4": "dc9611aa7b0baba9",
    }
