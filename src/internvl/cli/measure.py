"""Seconds and bytes of answering: vision, prompt, first token, further tokens, peak memory.

Works on a built model and on ids, so text and files play no part. Also used by the benchmark scripts.
Shape letters: N tiles, T prompt tokens, S slots, D width.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl.config import ChatConfig
from internvl.errors import InputError
from internvl.generation.generate import stream
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM

TEXT_TOKENS = 40
"""Tokens of a prompt besides the vision tokens: a system message and a short question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt of random pictures and words: tiles (N, 3, H, W), ids (T,), slots (S,)."""

    tiles_N3HW: Tensor
    ids_T: Tensor
    slots_S: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One answer, or the medians of several. Seconds, tokens and bytes.

    `first_token_seconds` are from tiles to the first id: vision, prompt and choice. `tokens_per_second`
    counts the tokens after the first. `peak_bytes` is the process's largest resident size while answering.
    """

    num_tiles: int
    prompt_tokens: int
    new_tokens: int
    vision_seconds: float
    seconds_per_tile: float
    prompt_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    total_seconds: float
    peak_bytes: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_question(
    config: ChatConfig, num_tiles: int, *, text_tokens: int = TEXT_TOKENS, seed: int = 0
) -> Question:
    """Random tiles, their slots after the first half of the words, and random ids."""
    if num_tiles < 0 or text_tokens < 2:
        raise InputError(
            f"a question needs 0 tiles or more and 2 words or more, not {num_tiles} and {text_tokens}"
        )
    generator = torch.Generator().manual_seed(seed)
    size, num_slots = config.tiling.tile_size, num_tiles * config.tokens_per_tile
    before = text_tokens // 2
    return Question(
        tiles_N3HW=torch.randn(num_tiles, 3, size, size, generator=generator),
        ids_T=torch.randint(0, config.text.vocab_size, (text_tokens + num_slots,), generator=generator),
        slots_S=torch.arange(before, before + num_slots),
    )


@torch.inference_mode()
def answer(model: VLM, question: Question, new_tokens: int) -> Timing:
    """Answers greedily with exactly `new_tokens` (2 or more) and tells what it took."""
    if new_tokens < 2:
        raise InputError(f"speed is measured over 2 new tokens or more, not {new_tokens}")
    device, num_tiles = model.llm.embed.weight.device, len(question.tiles_N3HW)
    reset_peak()
    start = time.perf_counter()
    tiles_N3HW = question.tiles_N3HW.to(device, model.llm.embed.weight.dtype)
    vision_SD = model.encode_tiles(tiles_N3HW).flatten(0, 1) if num_tiles else _nothing(model)
    encoded = _now(device)
    x_TD = model.embed(question.ids_T.to(device), question.slots_S.to(device), vision_SD)
    tokens = stream(model.llm, [Prompt(x_TD, Sampling(max_new_tokens=new_tokens))])
    next(tokens)
    first = _now(device)
    num_further = sum(1 for _ in tokens)
    end = _now(device)
    return Timing(
        num_tiles=num_tiles,
        prompt_tokens=len(question.ids_T),
        new_tokens=1 + num_further,
        vision_seconds=encoded - start,
        seconds_per_tile=(encoded - start) / max(num_tiles, 1),
        prompt_seconds=first - encoded,
        first_token_seconds=first - start,
        tokens_per_second=num_further / (end - first),
        total_seconds=end - start,
        peak_bytes=peak_bytes(),
    )


def measure(
    model: VLM,
    num_tiles: int,
    *,
    new_tokens: int = 64,
    repeat: int = 5,
    text_tokens: int = TEXT_TOKENS,
    after_each: Callable[[int], None] | None = None,
) -> Timing:
    """Medians of `repeat` answers after one to warm up; the peak is the largest of all."""
    if repeat < 1:
        raise InputError(f"repeat must be at least 1, got {repeat}")
    question = make_question(model.config, num_tiles, text_tokens=text_tokens)
    timings = []
    for count in range(repeat + 1):
        timings.append(answer(model, question, new_tokens))
        if after_each:
            after_each(count + 1)
    return median(timings[1:], peak=max(timing.peak_bytes for timing in timings))


def median(timings: Sequence[Timing], *, peak: int) -> Timing:
    """Every field's median on its own; `peak` is given."""
    middles = {
        field.name: statistics.median(getattr(timing, field.name) for timing in timings)
        for field in fields(Timing)
    }
    counts = {name: int(middles[name]) for name in ("num_tiles", "prompt_tokens", "new_tokens")}
    return Timing(**{**middles, **counts, "peak_bytes": peak})


def reset_peak() -> None:
    """Starts a new high-water mark of the resident size, where the system allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_bytes() -> int:
    """The largest resident size since `reset_peak`, or of the whole process where there is no such mark."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _now(device: torch.device) -> float:
    """The time once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _nothing(model: VLM) -> Tensor:
    return model.llm.embed.weight.new_empty(0, model.config.text.width)
