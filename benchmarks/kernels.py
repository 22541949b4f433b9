"""Every kernel alone, with its share of what this processor can do at most.

    scripts/bench kernels [--threads 2] [--repeats 9]

Shapes are those of InternVL2.5-1B: the tower's and the language model's linear layers. Limits are measured in
the same run: multiply-adds and products of bytes in registers, reading memory (docs/performance.md).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from internvl.adapt.quantize import quantize
from internvl.config import VisionConfig
from internvl.models.vit import VisionTower
from internvl.ops.gated_mlp import gated_mlp
from internvl.ops.native import kind_in_use, library
from internvl.ops.packed import SCHEMES, Scheme, pack, packed_linear
from internvl.ops.swiglu import swiglu
from internvl.ops.tile_attention import tile_attention

MANY = {
    "vit qkv": (1025, 1024, 3072),
    "vit out": (1025, 1024, 1024),
    "vit fc1": (1025, 1024, 4096),
    "vit fc2": (1025, 4096, 1024),
    "prefill gate+up": (296, 896, 9728),
    "prefill down": (296, 4864, 896),
}
FEW = {"decode gate+up": (1, 896, 9728), "decode head": (1, 896, 151_674), "4 rows, head": (4, 896, 151_674)}
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 4.5 / 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native = library()
    if native is None:
        raise SystemExit("no kernels were built")
    for rate in (
        native.multiply_add_rate,
        native.byte_product_rate,
        native.short_product_rate,
        native.read_rate,
    ):
        rate.restype = ctypes.c_double
    flops = lambda: native.multiply_add_rate(ctypes.c_double(0.3))  # noqa: E731
    byte_products = lambda: native.byte_product_rate(ctypes.c_double(0.3))  # noqa: E731
    products = lambda scheme: byte_products() if scheme.startswith("int") else flops()  # noqa: E731
    reads = lambda: native.read_rate(ctypes.c_int64(1 << 29), ctypes.c_int64(3))  # noqa: E731
    print(
        json.dumps(
            {
                "kernels": kind_in_use(),
                "torch": torch.__version__,
                "threads": options.threads,
                "GFLOP/s": flops() / 1e9,
                "GOP/s in bytes": byte_products() / 1e9,
                "GB/s": reads() / 1e9,
            }
        )
    )
    for name, (rows, inputs, outputs) in (MANY | FEW).items():
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) * 0.02
        row(name, "torch", options.repeats, lambda: F.linear(x, weight), rows, inputs, outputs, flops())  # noqa: B023
        for scheme in SCHEMES:
            packed = pack(weight, scheme)
            limit = products(scheme) if rows > 4 else reads()
            call = lambda: packed_linear(x, packed)  # noqa: B023, E731
            row(name, scheme, options.repeats, call, rows, inputs, outputs, limit, BYTES[scheme])
    for in_16_bits in (False, True):
        attention(
            in_16_bits,
            options.repeats,
            native.short_product_rate(ctypes.c_double(0.3)) if in_16_bits else flops(),
        )
    for tokens in (296, 1832):
        for mlp_scheme in SCHEMES:
            gated(tokens, mlp_scheme, options.repeats, products(mlp_scheme))
    for block_scheme in (None, "bfloat16", "int8"):
        block(block_scheme, options.repeats)


def attention(in_16_bits: bool, repeats: int, limit: float) -> None:
    qkv = torch.randn(1, 1025, 3072)
    seconds = timed(repeats, lambda: tile_attention(qkv, 16, in_16_bits=in_16_bits))
    rate = 4 * 1025**2 * 1024 / seconds
    print(
        json.dumps(
            {
                "what": "vit attention, 16 bits" if in_16_bits else "vit attention",
                "ms": round(seconds * 1e3, 3),
                "GFLOP/s": round(rate / 1e9, 1),
                "share": round(rate / limit, 3),
            }
        )
    )


def gated(tokens: int, scheme: Scheme, repeats: int, limit: float) -> None:
    """The gated MLP of a prompt, in one call and layer by layer."""
    gate_up, down = pack(torch.randn(9728, 896) * 0.03, scheme), pack(torch.randn(896, 4864) * 0.03, scheme)
    x = torch.randn(tokens, 896)
    ways: dict[str, Callable[[], object]] = {
        "one call": lambda: gated_mlp(x, gate_up.matrix(), down.matrix()),
        "layer by layer": lambda: packed_linear(swiglu(packed_linear(x, gate_up)), down),
    }
    for name, call in ways.items():
        seconds = timed(repeats, call)
        share = 2 * tokens * 3 * 896 * 4864 / seconds / limit
        what = f"gated MLP, {tokens} tokens, {name}"
        print(
            json.dumps(
                {"what": what, "scheme": scheme, "ms": round(seconds * 1e3, 3), "share": round(share, 3)}
            ),
            flush=True,
        )


def block(scheme: Scheme | None, repeats: int) -> None:
    """A whole block of the tower: PyTorch's modules, or packed weights in one call."""
    config = VisionConfig(width=1024, num_layers=1, num_heads=16, mlp_width=4096)
    tower = VisionTower(config).eval()
    if scheme is not None:
        quantize(tower, [(".*", scheme)])
    x = torch.randn(1, 1025, 1024)
    seconds = timed(repeats, lambda: tower.layers[0](x))
    print(
        json.dumps({"what": "vit block", "scheme": scheme or "torch", "ms": round(seconds * 1e3, 3)}),
        flush=True,
    )


def row(
    name: str,
    scheme: Scheme | str,
    repeats: int,
    call: Callable[[], Tensor],
    rows: int,
    inputs: int,
    outputs: int,
    limit: float,
    size: float = 4.0,
) -> None:
    seconds = timed(repeats, call)
    work = 2 * rows * inputs * outputs if rows > 4 or scheme == "torch" else size * inputs * outputs
    rate = work / seconds
    unit = "GOP/s" if rows > 4 or scheme == "torch" else "GB/s"
    print(
        json.dumps(
            {
                "what": name,
                "scheme": scheme,
                "ms": round(seconds * 1e3, 3),
                unit: round(rate / 1e9, 1),
                "share": round(rate / limit, 3),
            }
        ),
        flush=True,
    )


@torch.inference_mode()
def timed(repeats: int, call: Callable[[], object]) -> float:
    """Median seconds of a call, after one to warm up; fast calls are timed many at a time."""
    call()
    start = time.perf_counter()
    call()
    inner = max(1, int(0.02 / max(time.perf_counter() - start, 1e-6)))
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(inner):
            call()
        found.append((time.perf_counter() - start) / inner)
    return statistics.median(found)


if __name__ == "__main__":
    main()
