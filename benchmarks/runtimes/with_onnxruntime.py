"""ONNX Runtime with the tower and projector as a graph: float32, or dynamic int8 of the linear layers.

A scale a channel, and seven bits of range, which processors without VNNI need.
"""

from __future__ import annotations

import time
from typing import Any

import onnxruntime

from runtimes.files import Files


class Side:
    def __init__(self, files: Files, variant: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        graph = files.path("onnx" if variant == "float32" else "onnx-int8") / "vision.onnx"
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.work = files.workload()

    def vision(self, tiles: int, turn: int) -> tuple[float, Any, dict[str, float]]:
        pixels = self.work.tiles(tiles, seed=turn)
        start = time.perf_counter()
        (tokens,) = self.session.run(None, {"tiles": pixels})
        return time.perf_counter() - start, tokens, {}
