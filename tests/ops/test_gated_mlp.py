"""A gated MLP in one call, on every library of kernels, against the same written out in float64."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from internvl.ops.gated_mlp import ROWS, gated_mlp
from internvl.ops.packed import PackedWeight, Scheme, pack, round_rows, unpack


@pytest.fixture
def compiled(kernels: ctypes.CDLL | None) -> None:
    if kernels is None:
        pytest.skip("the two layers and the gate are its PyTorch path")


def weights(scheme: Scheme, width: int, mlp: int) -> tuple[PackedWeight, PackedWeight]:
    torch.manual_seed(width + mlp)
    return pack(torch.randn(2 * mlp, width) / width**0.5, scheme), pack(
        torch.randn(width, mlp) / mlp**0.5, scheme
    )


def expected(x_TC: Tensor, gate_up: PackedWeight, down: PackedWeight) -> Tensor:
    def product(x_TI: Tensor, weight: PackedWeight) -> Tensor:
        return round_rows(x_TI.float(), weight.scheme).double() @ unpack(weight).double().T

    gate_TF, up_TF = product(x_TC, gate_up).chunk(2, dim=-1)
    return product(F.silu(gate_TF) * up_TF, down)


@pytest.mark.parametrize(
    ("rows", "width", "mlp"),
    [(2 * ROWS, 16, 16), (2 * ROWS + 1, 40, 144), (271, 33, 128), (610, 1100, 272)],
    ids=["least", "a part of a group of panels", "odd width", "several shares, inputs in parts"],
)
@pytest.mark.parametrize("scheme", ["float32", "bfloat16"])
@pytest.mark.usefixtures("compiled")
def test_equals_what_is_written_out(scheme: Scheme, rows: int, width: int, mlp: int) -> None:
    gate_up, down = weights(scheme, width, mlp)
    x_TC = torch.randn(rows, width) * 3
    found_TC = gated_mlp(x_TC, gate_up.matrix(), down.matrix())
    assert found_TC is not None
    torch.testing.assert_close(found_TC.double(), expected(x_TC, gate_up, down), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiled")
def test_biases_are_added_where_they_belong() -> None:
    """Gates and what they let through are computed by groups of columns, each with its part of the bias."""
    gate_up, down = weights("float32", 32, 272)
    bias_2F, bias_C = torch.randn(544), torch.randn(32)
    x_TC = torch.randn(2 * ROWS, 32)
    found_TC = gated_mlp(x_TC, gate_up.matrix(bias_2F), down.matrix(bias_C))
    gate_TF, up_TF = F.linear(x_TC, unpack(gate_up), bias_2F).chunk(2, dim=-1)
    wanted_TC = F.linear(F.silu(gate_TF) * up_TF, unpack(down), bias_C)
    torch.testing.assert_close(found_TC, wanted_TC, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.usefixtures("compiled", "three_threads")
def test_rows_are_rounded_as_layer_by_layer(scheme: Scheme) -> None:
    """Some values lie on a half and round to the other side; nothing else may differ."""
    gate_up, down = weights(scheme, 70, 208)
    x_TC = torch.randn(391, 70) * 3
    found_TC = gated_mlp(x_TC, gate_up.matrix(), down.matrix())
    assert found_TC is not None
    apart_TC = (found_TC - expected(x_TC, gate_up, down)).abs()
    assert apart_TC.median() < 1e-5
    assert apart_TC.max() < 0.2


@pytest.mark.usefixtures("compiled")
def test_gates_far_from_zero() -> None:
    """Weights that hand on values: no part of the curve is off by more than float32 is. The exponential ends
    at e^88.3, so a gate of -1e30 lets through 1e-8 instead of nothing."""
    gates = torch.tensor([-1e30, -1e4, -89.0, -20.0, -1.0, -1e-30, 0.0, 1e-6, 1.0, 20.0, 89.0, 1e4, 1e30])
    x_TC = torch.zeros(2 * ROWS, 32)
    x_TC[: len(gates), :16] = gates[:, None]
    x_TC[:, 16:] = 3.0
    gate_up, down = pack(torch.eye(32), "float32"), pack(torch.eye(16), "float32")
    found_TC = gated_mlp(x_TC, gate_up.matrix(), down.matrix())
    assert found_TC is not None
    wanted_TC = F.silu(x_TC[:, :16].double()) * 3
    torch.testing.assert_close(found_TC.double(), wanted_TC, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("scheme", ["float32", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.usefixtures("compiled")
def test_what_is_no_number_is_not_hidden(scheme: Scheme, value: float) -> None:
    gate_up, down = weights(scheme, 32, 48)
    x_TC = torch.randn(2 * ROWS, 32)
    x_TC[5, 3] = value
    found_TC = gated_mlp(x_TC, gate_up.matrix(), down.matrix())
    assert found_TC is not None
    assert not found_TC[5].isfinite().any()
    assert found_TC[torch.arange(len(x_TC)) != 5].isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_serves_only_what_it_is_faster_with() -> None:
    gate_up, down = weights("int8", 32, 48)
    few = ROWS * torch.get_num_threads() - 1
    assert gated_mlp(torch.randn(few, 32), gate_up.matrix(), down.matrix()) is None
    gate_up, down = weights("int8", 32, 40)  # gates end within a panel
    assert gated_mlp(torch.randn(few + 1, 32), gate_up.matrix(), down.matrix()) is None
