"""Vision tokens of pictures already seen, by image key, least recently used first out.

A picture is encoded once and reused over rounds, questions and samples. Knows no text.
Shape letters: N tiles, S vision tokens of one picture, D text width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

from internvl.engine.vision_disk import VisionDisk
from internvl.errors import InputError


class VisionCache:
    """Encodes pictures by `encode` (tiles (N, 3, H, W) to (N, tokens, D)), remembers up to `max_bytes`, and
    with a `disk` also what other processes have encoded."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        max_bytes: int = 256 * 2**20,
        disk: VisionDisk | None = None,
    ) -> None:
        if max_bytes < 0:
            raise InputError(f"max_bytes must be at least 0 (0 = keep nothing), got {max_bytes}")
        self.max_bytes, self.disk = max_bytes, disk
        self.num_bytes = self.num_hits = self.num_misses = self.num_disk_hits = 0
        self._encode = encode
        self._tokens: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    def vision_tokens(self, keys: Sequence[bytes], tiles: Sequence[Tensor]) -> list[Tensor]:
        """Vision tokens (S, D) of every picture, in order; `tiles[i]` is (N_i, 3, H, W).

        Pictures not in the cache are encoded together in one call; equal keys are encoded once.
        """
        found = {key: tokens for key in dict.fromkeys(keys) if (tokens := self.find(key)) is not None}
        missing = {key: part for key, part in zip(keys, tiles, strict=True) if key not in found}
        if missing:
            counts = [len(part) for part in missing.values()]
            encoded = self._encode(torch.cat(list(missing.values()))).split(counts)
            fresh = {key: part.flatten(0, 1) for key, part in zip(missing, encoded, strict=True)}
            for key, tokens in fresh.items():
                self.keep(key, tokens)
            found |= fresh
        return [found[key] for key in keys]

    def find(self, key: bytes) -> Tensor | None:
        """Vision tokens (S, D) of a picture that is here."""
        with self._lock:
            if (tokens := self._tokens.get(key)) is not None:
                self.num_hits += 1
                self._tokens.move_to_end(key)
                return tokens
        tokens = self.disk.find(key) if self.disk else None
        if tokens is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self.num_disk_hits += 1
        self._remember(key, tokens)
        return tokens

    def keep(self, key: bytes, tokens_SD: Tensor) -> None:
        """Remembers the vision tokens of a picture, unless they alone are too many."""
        self._remember(key, tokens_SD)
        if self.disk:
            self.disk.keep(key, tokens_SD)

    def _remember(self, key: bytes, tokens_SD: Tensor) -> None:
        with self._lock:
            if tokens_SD.nbytes <= self.max_bytes and key not in self._tokens:
                self._tokens[key] = tokens_SD.clone()  # a view would hold the whole batch in memory
                self.num_bytes += tokens_SD.nbytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._tokens.popitem(last=False)
                self.num_bytes -= oldest.nbytes

    def clear(self) -> None:
        """Forgets everything; the disk, whose files are of the weights as they were, is given up."""
        self.disk = None
        with self._lock:
            self._tokens.clear()
            self.num_bytes = 0
