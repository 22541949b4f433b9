"""A gated MLP of many rows with packed weights, in one call of a kernel.

Layer by layer, gates and what they let through would go to memory and back twice: in InternVL2.5-1B they are
eleven times as large as the input. Knows matrices and rows; no modules. Shape letters: T rows, C width, F
MLP width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from internvl.ops.native import address, count, library, new
from internvl.ops.packed import PANEL, Matrix

ROWS = 40
"""For each thread, at least: fewer do not pay for reading all weights in each of them."""


def gated_mlp(x_TC: Tensor, gate_up: Matrix, down: Matrix) -> Tensor | None:
    """`silu(gate) * up`, times `down`; `gate_up` has the F outputs of the gate before those of `up`.

    None where the kernel cannot serve or would be slower. No matrix is a plain one (`ops.packed`).
    """
    assert gate_up.outputs == 2 * down.inputs, (gate_up.outputs, down.inputs)
    assert x_TC.shape[1] == gate_up.inputs, (x_TC.shape, gate_up.inputs)
    native = library()
    if native is None or down.inputs % PANEL or len(x_TC) < ROWS * torch.get_num_threads():
        return None
    x_TC = x_TC.contiguous()
    out_TC = new(len(x_TC), down.outputs)
    matrices = ctypes.byref(gate_up), ctypes.byref(down)
    native.gated_mlp(*matrices, address(x_TC), count(len(x_TC)), address(out_TC))
    return out_TC
