"""The gate against the same written with autograd's functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from internvl.ops.swiglu import swiglu


def plain(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 12), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_written_out_gate(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype).requires_grad_()
    ours, theirs = swiglu(x), plain(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    grad = torch.randn(ours.shape).to(dtype)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, grad), torch.autograd.grad(theirs, x, grad), rtol=0, atol=0
    )


def test_only_the_input_is_kept() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    out = swiglu(x)
    assert out.grad_fn is not None
    assert [kept is x for kept in out.grad_fn.saved_tensors] == [True]  # type: ignore[attr-defined]
    with torch.no_grad():
        assert swiglu(x).grad_fn is None
