"""OpenVINO GenAI: its picture pipeline for one request, its continuous batching for many.

In float32 (`INFERENCE_PRECISION_HINT`); int8 and int4 are formats of the stored weights. Prompts are text
here; the tokenizer makes the ids that the others are given.
"""

from __future__ import annotations

import time
from typing import Any

import openvino
import openvino_genai

from runtimes.files import Files
from runtimes.workload import QUESTIONS, Pixels, text

Outcome = tuple[float, Any, dict[str, float]]


class Ids(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Keeps the ids, since answers are given out as text, and when the first one came."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[int] = []
        self.first = 0.0

    def write(self, token: Any) -> Any:
        self.first = self.first or time.perf_counter()
        self.ids += token if isinstance(token, list) else [token]
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class Side:
    def __init__(self, files: Files, variant: str, threads: int) -> None:
        self.path, self.work = str(files.path(f"openvino-{variant}")), files.workload()
        self.settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._single: Any = None
        self._batching: Any = None

    def prefill(self, tokens: int, turn: int) -> Outcome:
        """The first id; scores are not given out."""
        seconds, _, ids = self._generate(text(tokens), 1)
        return seconds, ids, {}

    def decode(self, tokens: int, new: int, turn: int) -> Outcome:
        seconds, first, ids = self._generate(text(tokens), new + 1)
        return seconds - first, ids, {}

    def request(self, new: int, turn: int) -> Outcome:
        pixels = openvino.Tensor(self.work.pixels(turn)[None])
        seconds, _, ids = self._generate(QUESTIONS[0], new, images=[pixels])
        return seconds, ids, {}

    def requests(self, count: int, new: int, turn: int) -> Outcome:
        pictures = [self.work.pixels(turn * 1000 + number) for number in range(count)]
        start = time.perf_counter()
        answers = self._answer(QUESTIONS[0], pictures, new, is_sharing=False)
        return time.perf_counter() - start, answers, {}

    def again(self, turn: int) -> Outcome:
        """With its cache of prefixes; the tower runs both times."""
        pixels, times, answer = self.work.pixels(turn), list[float](), list[int]()
        for question in QUESTIONS:
            start = time.perf_counter()
            (answer,) = self._answer(question, [pixels], 1, is_sharing=True)
            times.append(time.perf_counter() - start)
        first, second = times
        return second, answer, {"first question": first, "of the first question": second / first}

    def _generate(self, prompt: str, new: int, **inputs: Any) -> tuple[float, float, list[int]]:
        """Seconds, seconds to the first token, ids."""
        if self._single is None:
            self._single = openvino_genai.VLMPipeline(
                self.path, "CPU", ATTENTION_BACKEND="SDPA", **self.settings
            )
        streamer, start = Ids(), time.perf_counter()
        self._single.generate(prompt, generation_config=_config(new), streamer=streamer, **inputs)
        return time.perf_counter() - start, streamer.first - start, streamer.ids

    def _answer(self, prompt: str, pictures: list[Pixels], new: int, *, is_sharing: bool) -> list[list[int]]:
        if self._batching is None:
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.cache_size, scheduler.max_num_batched_tokens = 1, 2048
            scheduler.enable_prefix_caching = is_sharing
            self._batching = openvino_genai.ContinuousBatchingPipeline(
                self.path, scheduler, "CPU", self.settings
            )
        handles = [
            self._batching.add_request(number, prompt, [openvino.Tensor(pixels[None])], _config(new))
            for number, pixels in enumerate(pictures)
        ]
        while self._batching.has_non_finished_requests():
            self._batching.step()
        return [[id for part in handle.read_all() for id in part.generated_ids] for handle in handles]


def _config(new: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new
    config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
    return config
