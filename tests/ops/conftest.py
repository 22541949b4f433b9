"""Every library of kernels that this machine can run, and none."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from internvl.ops import (
    causal_attention,
    decoder_step,
    gated_mlp,
    packed,
    rms_norm,
    rotate,
    tile_attention,
    tower_block,
)
from internvl.ops.native import KINDS, load_library, runs_here


@pytest.fixture(params=["pytorch", *KINDS])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL | None:
    """The operations of `internvl.ops` on one library; None is their PyTorch path."""
    library = None
    if request.param != "pytorch":
        if not runs_here(request.param):
            pytest.skip(f"this processor has no instructions for the {request.param} kernels")
        library = load_library(request.param)
        assert library is not None, (
            "not built: is there a C++ compiler? scripts/test installs again after a change"
        )
    operations = (
        packed,
        tile_attention,
        causal_attention,
        decoder_step,
        tower_block,
        gated_mlp,
        rms_norm,
        rotate,
    )
    for module in operations:
        monkeypatch.setattr(module, "library", lambda: library)
    return library


@pytest.fixture
def three_threads() -> Iterator[None]:
    """So that work is divided, unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
