"""A gated MLP with packed weights in one call equals its layers one by one, which serve all the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from internvl.adapt.quantize import quantize
from internvl.models import layers
from internvl.models.layers import GatedMLP
from internvl.models.packed_layers import packed_mlp, rounds_rows
from internvl.ops.gated_mlp import ROWS
from internvl.ops.native import library
from internvl.ops.packed import Scheme

pytestmark = pytest.mark.skipif(
    library() is None, reason="no kernels were built: there is no call for an MLP"
)


def mlp(scheme: Scheme | None) -> GatedMLP:
    torch.manual_seed(0)
    model = GatedMLP(48, 96).eval()
    if scheme is not None:
        quantize(nn.Sequential(model), [(".*", scheme)])
    return model


@pytest.mark.parametrize("scheme", ["float32", "bfloat16"])
@torch.inference_mode()
def test_equals_the_layers(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x_TC = mlp(scheme), torch.randn(ROWS * torch.get_num_threads(), 48)
    assert packed_mlp(model.gate_up, model.down, x_TC) is not None
    found_TC = model(x_TC)
    monkeypatch.setattr(layers, "packed_mlp", lambda *_: None)
    torch.testing.assert_close(found_TC, model(x_TC), rtol=1e-5, atol=1e-6)


def test_the_kernel_serves_where_it_can() -> None:
    plain, packed = mlp(None), mlp("int8")
    x_TC = torch.randn(ROWS * torch.get_num_threads(), 48)
    with torch.inference_mode():
        assert packed_mlp(packed.gate_up, packed.down, x_TC) is not None
        assert packed_mlp(plain.gate_up, plain.down, x_TC) is None
        assert packed_mlp(packed.gate_up, plain.down, x_TC) is None
        assert packed_mlp(packed.gate_up, packed.down, x_TC.double()) is None
        assert packed_mlp(packed.gate_up, packed.down, x_TC[0]) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packed_mlp(packed.gate_up, packed.down, x_TC) is None
    assert packed_mlp(packed.gate_up, packed.down, x_TC) is None


def test_integers_are_told_from_the_rest() -> None:
    found = [rounds_rows(mlp(scheme).down) for scheme in (None, "float32", "bfloat16", "int8", "int4")]
    assert found == [False, False, False, True, True]
