"""Pictures of many requests to vision tokens, a few tiles a step.

Tiles of all pictures that are wanted now go through the tower together; tiles with the same pixels (blank
margins, pictures that repeat) go once. Knows keys and tiles; not who wants them.
Shape letters: N tiles, S vision tokens of one picture, D text width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.engine.request import EngineImage
from internvl.engine.vision_cache import VisionCache

Encode = Callable[[Tensor], Tensor]
"""Tiles (N, 3, H, W) to vision tokens (N, tokens, D)."""


class Wanted(NamedTuple):
    """A picture, and the name of the tower that is to see it. Its key is the picture's in that tower."""

    image: EngineImage
    tower: str = ""


class VisionEncoder:
    """Towers by name, and a cache of what they made."""

    def __init__(self, towers: Mapping[str, Encode], cache: VisionCache) -> None:
        self.cache = cache
        self.num_tiles = self.num_waiting = self.num_queries = self.num_hits = self.num_disk_hits = 0
        self.seconds = 0.0
        self._towers = dict(towers)
        self._digests: dict[bytes, list[bytes]] = {}
        self._made: dict[bytes, Tensor] = {}

    def known(self, wanted: Sequence[Wanted]) -> dict[bytes, Tensor]:
        """Vision tokens (S, D), by key, of the pictures that the cache has."""
        before = self.cache.num_disk_hits
        asked = {one.image.key: self.cache.find(one.image.key) for one in wanted}
        found = {key: tokens_SD for key, tokens_SD in asked.items() if tokens_SD is not None}
        self.num_queries += len(asked)
        self.num_hits += len(found)
        self.num_disk_hits += self.cache.num_disk_hits - before
        return found

    def step(self, wanted: Sequence[Wanted], max_tiles: int) -> dict[bytes, Tensor]:
        """Encodes up to `max_tiles` tiles of the pictures wanted, first ones first; returns vision tokens
        (S, D) of those that are whole now, by key.

        What was begun is kept while it is wanted in the next call.
        """
        by_key = {one.image.key: one for one in wanted}
        self._digests = {key: self._digests.get(key) or _digests(one) for key, one in by_key.items()}
        todo: dict[bytes, tuple[str, Tensor]] = {}
        for key, one in by_key.items():
            for digest, tile_3HW in zip(self._digests[key], one.image.tiles_N3HW, strict=True):
                if digest not in self._made:
                    todo.setdefault(digest, (one.tower, tile_3HW))
        self.num_waiting = max(0, len(todo) - max_tiles)
        now = dict(list(todo.items())[:max_tiles])
        for tower in self._towers:
            self._run(tower, {digest: tile for digest, (name, tile) in now.items() if name == tower})
        done = self._whole(by_key)
        begun = {digest for key in by_key.keys() - done.keys() for digest in self._digests[key]}
        self._made = {digest: made for digest, made in self._made.items() if digest in begun}
        return done

    def _whole(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        done = {}
        for key in keys:
            if all(digest in self._made for digest in self._digests[key]):
                done[key] = torch.cat([self._made[digest] for digest in self._digests[key]])
                self.cache.keep(key, done[key])
        return done

    @torch.inference_mode()
    def _run(self, tower: str, tiles: Mapping[bytes, Tensor]) -> None:
        if not tiles:
            return
        start = time.perf_counter()
        encoded = self._towers[tower](torch.stack(list(tiles.values())))
        self._made.update(zip(tiles, encoded, strict=True))
        self.num_tiles += len(tiles)
        self.seconds += time.perf_counter() - start


def _digests(wanted: Wanted) -> list[bytes]:
    """A digest of the pixels of each tile, for one tower."""
    name = wanted.tower.encode()
    return [
        name + blake2b(tile_3HW.contiguous().cpu().numpy(), digest_size=32).digest()
        for tile_3HW in wanted.image.tiles_N3HW
    ]
