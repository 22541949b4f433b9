"""What a run reads and how it is laid into steps: frozen values, part of a recipe.

Knows no files beyond their paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from internvl.errors import InputError

Sampling = Literal["length", "sqrt", "weight"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadSamples:
    """What happens to a record that cannot be used; each is written to `bad_samples.jsonl` in any case.

    "replace" takes another record, the same one in every run; "skip" goes on with the next one, for which
    every process decodes all records of a step; "stop" ends the run. More than `limit` of them (a share of
    the records seen, after the first 100, or after the first epoch or the run where those are shorter) end
    the run too.
    """

    policy: Literal["replace", "skip", "stop"] = "replace"
    limit: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= 1:
            raise InputError(f"bad_samples.limit is a share between 0 and 1, got {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """The records of one optimiser step, over all processes and micro-batches.

    Either `examples` records, or `packs` packed sequences filled with records up to `max_tokens` tokens and
    `max_tiles` tiles each. The two limits hold for every record in both cases.
    """

    examples: int | None = None
    packs: int | None = None
    max_tokens: int = 8192
    max_tiles: int = 48

    def __post_init__(self) -> None:
        if (self.examples is None) == (self.packs is None):
            raise InputError("batching: give examples or packs, one of them")
        if min(self.examples or self.packs or 0, self.max_tokens, self.max_tiles) < 1:
            raise InputError(f"batching: every number counts from 1, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """`meta` is a meta JSON (the published form, see `data.meta`), or one file or folder of records.

    `sampling`: "length" takes every record once an epoch (repeat_time allowing), "sqrt" draws data sets by
    the square root of their size, "weight" by their own `weight`. `group_by_length` puts records of like
    length into one step. `share_pictures` lets answers to one picture share its tokens. A record of more than
    `max_length` tokens is a bad sample; nothing is cut. `language` keeps the captions of one language, None
    those of all; `clean_captions` puts them into small letters without punctuation where they are pairs with
    a picture (`data.pair_examples`). `workers` are the threads that read and decode ahead, up to `read_ahead`
    tiles on each process; the default is 300 MB of tiles of 448 pixels. The micro-batch in use comes on top.
    """

    meta: str | None = None
    sampling: Sampling = "length"
    group_by_length: bool = False
    share_pictures: bool = True
    max_length: int = 8192
    language: str | None = None
    clean_captions: bool = False
    batching: Batching = field(default_factory=lambda: Batching(examples=8))
    bad_samples: BadSamples = field(default_factory=BadSamples)
    workers: int = 1
    read_ahead: int = 128

    def __post_init__(self) -> None:
        for name in ("max_length", "workers", "read_ahead"):
            if (number := getattr(self, name)) < 1:
                raise InputError(f"data.{name} counts from 1, got {number}")
        if self.group_by_length and self.batching.examples is None:
            raise InputError("group_by_length is for batching by examples; packs are evenly long already")
