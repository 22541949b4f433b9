"""transformers, in float32 with its own fast attention: its layout of the same checkpoint."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import InternVLForConditionalGeneration

from runtimes.files import Files
from runtimes.workload import normalise

Outcome = tuple[float, Any, dict[str, float]]


class FirstToken:
    """A streamer that notes when the first new token comes; the prompt is given first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Side:
    def __init__(self, files: Files, variant: str, threads: int) -> None:
        torch.set_num_threads(threads)
        model = InternVLForConditionalGeneration.from_pretrained(files.path("hf"), dtype=torch.float32)
        self.model: Any = model.eval()
        self.model.generation_config.eos_token_id = None
        self.work = files.workload()

    @torch.inference_mode()
    def vision(self, tiles: int, turn: int) -> Outcome:
        pixels = torch.from_numpy(self.work.tiles(tiles, seed=turn))
        start = time.perf_counter()
        found = self.model.get_image_features(pixel_values=pixels)
        seconds = time.perf_counter() - start
        return seconds, getattr(found, "pooler_output", found).numpy(), {}

    @torch.inference_mode()
    def prefill(self, tokens: int, turn: int) -> Outcome:
        ids = torch.tensor([self.work.text_ids(tokens)])
        start = time.perf_counter()
        found = self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1
        )
        return time.perf_counter() - start, found.logits[0, -1].numpy(), {}

    def decode(self, tokens: int, new: int, turn: int) -> Outcome:
        streamer = FirstToken()
        answer = self._generate([self.work.text_ids(tokens)], new + 1, streamer=streamer)
        return streamer.times[-1] - streamer.times[1], answer[0], {}

    def request(self, new: int, turn: int) -> Outcome:
        pixels, ids = self.work.pixels(turn), self.work.picture_ids()
        start = time.perf_counter()
        answer = self._generate([ids], new, pixel_values=torch.from_numpy(normalise(pixels)))
        return time.perf_counter() - start, answer[0], {}

    def requests(self, count: int, new: int, turn: int) -> Outcome:
        pictures = [self.work.pixels(turn * 1000 + number) for number in range(count)]
        ids = self.work.picture_ids()
        start = time.perf_counter()
        tiles = torch.cat([torch.from_numpy(normalise(pixels)) for pixels in pictures])
        answers = self._generate([ids] * count, new, pixel_values=tiles)
        return time.perf_counter() - start, answers, {}

    def pictures(self, tiles: int, distinct: int, turn: int) -> Outcome:
        pixels = torch.from_numpy(self.work.tiles(tiles, distinct, turn))
        ids = self.work.picture_ids(tiles)
        start = time.perf_counter()
        answer = self._generate([ids], 1, pixel_values=pixels)
        return time.perf_counter() - start, answer[0], {}

    @torch.inference_mode()
    def _generate(self, ids: list[list[int]], new: int, **inputs: Any) -> list[list[int]]:
        ids_BT = torch.tensor(ids)
        out = self.model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=new, min_new_tokens=new,
            do_sample=False, pad_token_id=0, **inputs,
        )  # fmt: skip
        answers: list[list[int]] = out[:, ids_BT.shape[1] :].tolist()
        return answers
