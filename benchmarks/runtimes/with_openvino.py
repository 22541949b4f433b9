"""OpenVINO's runtime with the tower and projector as a graph, in float32."""

from __future__ import annotations

import time
from typing import Any

import openvino

from runtimes.files import Files


class Side:
    def __init__(self, files: Files, variant: str, threads: int) -> None:
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        graph = files.path("onnx") / "vision.onnx"
        self.compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
        self.work = files.workload()

    def vision(self, tiles: int, turn: int) -> tuple[float, Any, dict[str, float]]:
        pixels = self.work.tiles(tiles, seed=turn)
        start = time.perf_counter()
        tokens = self.compiled(pixels)[0]
        return time.perf_counter() - start, tokens, {}
