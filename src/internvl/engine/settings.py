"""The size and the habits of an engine, and what it has done.

Plain values, checked when they are made; knows no torch and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from internvl.errors import InputError

KVFormat = Literal["model", "int8"]
"""Keys and values in the model's own format, or in int8 with a scale for each head and position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Defaults suit a CPU.

    `cache_bytes` of keys and values are divided into pages of `page_size` positions; `num_pages` says it in
    pages instead. A beam search may take `beam_cache_bytes` beside them. A step runs at most
    `max_step_tokens` of `max_running` answers, and encodes `max_step_tiles` tiles. `max_model_len` shortens
    the model's context. More than `max_waiting` requests, or `max_waiting_tiles` tiles of theirs, are
    refused. `patience` steps of waiting count as one level of priority. `shares_prefixes` keeps pages for
    prompts that begin alike. `num_drafts` tokens a step are guessed from what the sequence repeats
    (`drafts`); answers stay the same. `kv_format` "int8" takes a quarter of the memory of float32 and changes
    answers a little. `is_batch_invariant`: an answer does not depend, bit for bit, on what else runs; there
    is little to be gained from running together then (docs/decisions/0007). Vision tokens are kept in memory,
    and in `vision_directory` for the next start.
    """

    page_size: int = 16
    cache_bytes: int = 2**30
    num_pages: int | None = None
    beam_cache_bytes: int = 2**30
    max_running: int = 16
    max_step_tokens: int = 512
    max_step_tiles: int = 4
    max_model_len: int | None = None
    max_waiting: int = 256
    max_waiting_tiles: int = 1024
    patience: int = 1000
    shares_prefixes: bool = True
    num_drafts: int = 0
    kv_format: KVFormat = "model"
    is_batch_invariant: bool = False
    vision_cache_bytes: int = 256 * 2**20
    vision_directory: str | None = None
    vision_directory_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        at_least = {
            "page_size": 1,
            "cache_bytes": 1,
            "num_pages": 1,
            "beam_cache_bytes": 0,
            "max_running": 1,
            "max_step_tokens": 1,
            "max_step_tiles": 1,
            "max_model_len": 2,
            "max_waiting": 1,
            "max_waiting_tiles": 1,
            "patience": 1,
            "num_drafts": 0,
            "vision_cache_bytes": 0,
            "vision_directory_bytes": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.max_step_tokens < self.max_running:
            raise InputError(
                f"max_step_tokens={self.max_step_tokens} is less than max_running={self.max_running}: every "
                "running answer needs a token of each step"
            )
        if self.kv_format not in get_args(KVFormat):
            raise InputError(f"kv_format must be one of {get_args(KVFormat)}, got {self.kv_format!r}")
        if self.is_batch_invariant and (self.num_drafts or not self.fixed_chunk):
            raise InputError(
                f"is_batch_invariant needs num_drafts=0, got {self.num_drafts}, and max_step_tokens of at "
                f"least max_running + page_size, {self.max_running + self.page_size}, got "
                f"{self.max_step_tokens}"
            )

    @property
    def fixed_chunk(self) -> int:
        """Prefills are cut at its multiples where answers must not depend on what else runs: whole pages that
        fit into any step beside a token of each running answer."""
        return (self.max_step_tokens - self.max_running) // self.page_size * self.page_size


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What is going on, and sums since the engine was made. Times are in seconds.

    `prefix_queries` and `prefix_hits` are prompt tokens; `vision_queries` and `vision_hits` are pictures.
    """

    running: int
    waiting: int
    pages_used: int
    pages_idle: int
    pages_total: int
    steps: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    prefix_queries: int
    prefix_hits: int
    drafts: int
    drafts_right: int
    preemptions: int
    evictions: int
    vision_queries: int
    vision_hits: int
    vision_disk_hits: int
    tiles: int
    tiles_waiting: int
    vit_seconds: float
    llm_seconds: float
