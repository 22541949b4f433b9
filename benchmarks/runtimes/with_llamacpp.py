"""llama.cpp's own server, from the wheel of xllamacpp: text, pictures through its encoder, several at once.

Times of prompt and answer are those it reports itself; whole requests are timed from outside. Tiles alone,
and scores, it does not give out.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import xllamacpp
from PIL import Image

from runtimes.files import Files
from runtimes.workload import QUESTIONS, Pixels

Outcome = tuple[float, Any, dict[str, float]]
POSITIONS, PATIENCE = 2048, 1800
"""Positions of one sequence; seconds until an answer is given up."""


class Side:
    def __init__(self, files: Files, variant: str, threads: int) -> None:
        self.work = files.workload()
        tower = files.path("mmproj-q8_0" if variant == "q8_0" else "mmproj-f16")
        self.paths = [str(one / "model.gguf") for one in (files.path(f"gguf-{variant}"), tower)]
        self.threads, self.server, self.address, self.marker = threads, None, "", ""

    def serve(self, slots: int) -> None:
        """Starts the server at the first call: keys and values of so many sequences take memory."""
        if self.server is not None:
            return
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.mmproj.path = self.paths
        settings.mmproj_use_gpu = False
        settings.n_parallel, settings.n_ctx, settings.cache_ram_mib = slots, slots * POSITIONS, 0
        settings.n_batch, settings.n_ubatch = 2048, 512
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = self.threads
        self.server = xllamacpp.Server(settings)
        self.address = self.server.listening_address
        self.marker = self._get("/props").get("media_marker", "<__media__>")

    def prefill(self, tokens: int, turn: int) -> Outcome:
        found = self._complete(self.work.text_ids(tokens), 1)
        return found["timings"]["prompt_ms"] / 1e3, found["tokens"], {}

    def decode(self, tokens: int, new: int, turn: int) -> Outcome:
        """It counts the first token as one of those predicted; its time is that of the others."""
        found = self._complete(self.work.text_ids(tokens), new + 1)
        return found["timings"]["predicted_ms"] / 1e3, found["tokens"], {}

    def request(self, new: int, turn: int) -> Outcome:
        seconds, (answer,) = self._ask([self.work.pixels(turn)], new)
        return seconds, answer, {}

    def requests(self, count: int, new: int, turn: int) -> Outcome:
        seconds, answers = self._ask([self.work.pixels(turn * 1000 + n) for n in range(count)], new)
        return seconds, answers, {}

    def again(self, turn: int) -> Outcome:
        """With its cache of prompts: keys and values of what both questions begin with stay."""
        pixels = self.work.pixels(turn)
        first, _ = self._ask([pixels], 1, is_cached=True)
        seconds, (answer,) = self._ask([pixels], 1, question=1, is_cached=True)
        return seconds, answer, {"first question": first, "of the first question": seconds / first}

    def _ask(
        self, pictures: list[Pixels], new: int, question: int = 0, *, is_cached: bool = False
    ) -> tuple[float, list[list[int]]]:
        """Seconds, and the ids of each answer."""
        self.serve(len(pictures))
        words = f"{self.marker}\n{QUESTIONS[question]}"
        prompts = [{"prompt_string": words, "multimodal_data": [_png(one)]} for one in pictures]
        expected = len(self.work.picture_ids(question=question))
        with ThreadPoolExecutor(len(prompts)) as pool:
            start = time.perf_counter()
            found = list(pool.map(lambda prompt: self._complete(prompt, new, is_cached=is_cached), prompts))
            seconds = time.perf_counter() - start
        for one in found:
            if one["tokens_evaluated"] != expected:
                raise RuntimeError(f"the prompt became {one['tokens_evaluated']} tokens, not {expected}")
        return seconds, [one["tokens"] for one in found]

    def _complete(self, prompt: Any, new: int, *, is_cached: bool = False) -> dict[str, Any]:
        self.serve(1)
        body = {
            "prompt": prompt, "n_predict": new, "ignore_eos": True, "return_tokens": True,
            "temperature": 0, "samplers": ["temperature"], "cache_prompt": is_cached,
        }  # fmt: skip
        request = Request(f"{self.address}/completion", json.dumps(body).encode())
        with urlopen(request, timeout=PATIENCE) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _get(self, path: str) -> dict[str, Any]:
        with urlopen(f"{self.address}{path}", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def _png(pixels: Pixels) -> str:
    with BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return b64encode(file.getvalue()).decode()
