"""The questions: prompts as ids and as text, pictures as pixels. Equal for every side, and knows no side.

Shape letters: N tiles, H, W pixels.
"""

from __future__ import annotations

import json
import random
import string
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

QUESTIONS = ("What is there to see in this picture?", "Which colours does the picture have??")
"""37 letters: 40 tokens with the marks around a picture and the line break, where a byte is a token."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Pixels = NDArray[np.uint8]
Tiles = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model's tokenizer and tiling make of the questions. `letters` are the ids of a to z."""

    tile_size: int
    tokens_per_tile: int
    start: int
    slot: int
    end: int
    break_ids: tuple[int, ...]
    letters: tuple[int, ...]
    questions: tuple[tuple[int, ...], ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def text_ids(self, length: int) -> list[int]:
        """`length` letters, each a token; `text` is the same in words."""
        return [self.letters[string.ascii_lowercase.index(letter)] for letter in text(length)]

    def picture_ids(self, tiles: int = 1, question: int = 0) -> list[int]:
        """A picture of so many tiles, a line break, a question."""
        slots = [self.slot] * (tiles * self.tokens_per_tile)
        return [self.start, *slots, self.end, *self.break_ids, *self.questions[question]]

    def pixels(self, seed: int) -> Pixels:
        """A picture (H, W, 3) of exactly one tile."""
        shape = (self.tile_size, self.tile_size, 3)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    def tiles(self, count: int, distinct: int | None = None, seed: int = 0) -> Tiles:
        """Normalised tiles (N, 3, H, W), of which the last repeat the first of `distinct`."""
        distinct = distinct or count
        made = [normalise(self.pixels(seed * 1000 + number)) for number in range(distinct)]
        return np.concatenate(made + made[:1] * (count - distinct))


def load(path: Path) -> Workload:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["questions"] = tuple(map(tuple, values["questions"]))
    return Workload(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def text(length: int) -> str:
    return "".join(random.Random(length).choices(string.ascii_lowercase, k=length))


def normalise(pixels_HW3: Pixels) -> Tiles:
    """One tile (1, 3, H, W) as the model reads it."""
    scaled = (pixels_HW3.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], dtype=np.float32)
