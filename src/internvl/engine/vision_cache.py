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

from internvl.errors import InputError


class VisionCache:
    """Encodes pictures by `encode` (tiles (N, 3, H, W) to (N, tokens, D)), remembers up to `max_bytes`."""

    def __init__(self, encode: Callable[[Tensor], Tensor], max_bytes: int = 256 * 2**20) -> None:
        if max_bytes < 0:
            raise InputError(f"max_bytes must be at least 0 (0 = keep nothing), got {max_bytes}")
        self.max_bytes = max_bytes
        self.num_bytes = self.num_hits = self.num_misses = 0
        self._encode = encode
        self._tokens: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def vision_tokens(self, keys: Sequence[str], tiles: Sequence[Tensor]) -> list[Tensor]:
        """Vision tokens (S, D) of every picture, in order; `tiles[i]` is (N_i, 3, H, W).

        Pictures not in the cache are encoded together in one call; equal keys are encoded once.
        """
        with self._lock:
            found = {key: self._tokens[key] for key in set(keys) if key in self._tokens}
            for key in found:
                self._tokens.move_to_end(key)
            missing = {key: part for key, part in zip(keys, tiles, strict=True) if key not in found}
            self.num_hits += len(found)
            self.num_misses += len(missing)
        if missing:
            counts = [len(part) for part in missing.values()]
            encoded = self._encode(torch.cat(list(missing.values()))).split(counts)
            fresh = {key: part.flatten(0, 1) for key, part in zip(missing, encoded, strict=True)}
            self._keep(fresh)
            found |= fresh
        return [found[key] for key in keys]

    def clear(self) -> None:
        with self._lock:
            self._tokens.clear()
            self.num_bytes = 0

    def _keep(self, fresh: dict[str, Tensor]) -> None:
        with self._lock:
            for key, tokens in fresh.items():
                if tokens.nbytes <= self.max_bytes and key not in self._tokens:
                    self._tokens[key] = tokens.clone()  # a view would hold the whole batch in memory
                    self.num_bytes += tokens.nbytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._tokens.popitem(last=False)
                self.num_bytes -= oldest.nbytes
