"""Rows to pairs of a picture and a caption, one of the row's captions at each look.

The forms of captions are those of `data.records`. Nothing is cut off: a caption that is too long makes a bad
sample. Knows a tokenizer; no model, and nothing of steps.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from internvl.config import Normalization
from internvl.data.example import Size
from internvl.data.media import listed, resolve
from internvl.data.meta import DataSet
from internvl.data.pairs import PairExample, PairTexts
from internvl.data.random_crop import random_crop
from internvl.data.records import captions_of
from internvl.errors import InputError
from internvl.processing.colour import ImagePolicy
from internvl.processing.conversation import shorten
from internvl.processing.crop import fit_square
from internvl.processing.image import ImageLimits, load_image, read_size
from internvl.processing.texts import CAPTION_PROMPT, TextProcessor
from internvl.processing.tiles import normalize

PROMPTS: Mapping[str, str] = {
    "en": CAPTION_PROMPT,
    "zh": "Chinese caption:",
    "ja": "Japanese caption:",
    "ar": "Arabic caption:",
    "it": "Italian caption:",
    "ko": "Korean caption:",
    "fr": "French caption:",
    "de": "German caption:",
    "es": "Spanish caption:",
    "ru": "Russian caption:",
}
"""What a caption is written after, by its language."""

MAX_WORDS = 50
_CLEANED = re.compile(r'[.!"()*#:;~]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A row to be measured: its picture, all its captions by language, and what names the picture."""

    source: Any
    captions: Mapping[str, tuple[str, ...]]
    image_id: int


class PairExamples:
    """Makes pairs of rows. Safe under threads: nothing changes.

    A picture is squashed to `image_size`; in data sets that ask for augmentation a random part is taken
    instead (`data.random_crop`). `language` and `clean` as in `DataSpec`.
    """

    def __init__(
        self,
        texts: TextProcessor,
        *,
        image_size: int,
        normalization: Normalization = "imagenet",
        language: str | None = None,
        clean: bool = False,
        limits: ImageLimits | None = None,
        policy: ImagePolicy | None = None,
    ) -> None:
        self.texts, self.image_size, self.normalization = texts, image_size, normalization
        self.language, self.clean = language, clean
        self.limits, self.policy = limits or ImageLimits(), policy or ImagePolicy()

    def measure(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int) -> Size:
        """The size of `example` with the same seed; of the picture only the header is read.

        Raises InputError for a bad sample.
        """
        held = self.read(row, dataset)
        read_size(held.source, self.limits, self.policy)
        length = len(self._texts(held, seed).contrastive)
        return Size(tokens=length, tiles=1, trained=length)

    def example(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str) -> PairExample:
        """The pair of a row, a function of the row and the seed. Raises InputError for a bad sample."""
        held = self.read(row, dataset)
        texts = self._texts(held, seed)
        image = load_image(held.source, self.limits, self.policy)
        draw = random.Random(f"pixels {seed}") if dataset.augment else None
        return PairExample(
            key=key,
            tile_3HW=self._tile(image, draw),
            texts=texts,
            image_id=held.image_id,
            draw=_digest(f"{seed} {key}".encode()),
        )

    def read(self, row: Mapping[str, Any], dataset: DataSet) -> Held:
        """The picture, not opened, and the captions of a row. Raises InputError for a bad sample."""
        sources = [resolve(source, dataset.root) for source in listed(row, "image", "images")]
        captions = captions_of(row, self.language)
        if len(sources) != 1 or not captions:
            kind = "captions" if self.language is None else f"captions in {self.language!r}"
            raise InputError(
                f"{len(sources)} pictures and {len(captions) or 'no'} languages of {kind} under the keys "
                f"{', '.join(map(repr, list(row)[:12]))}: a pair is one picture (image) with captions"
            )
        kept = {name: tuple(map(self._caption, texts)) for name, texts in captions.items()}
        return Held(source=sources[0], captions=kept, image_id=image_id(sources[0]))

    def tile(self, held: Held) -> Tensor:
        """The whole picture (3, S, S). Raises ImageError."""
        return self._tile(load_image(held.source, self.limits, self.policy), None)

    def _tile(self, image: Image.Image, draw: random.Random | None) -> Tensor:
        size = self.image_size
        square = fit_square(image, size, "squash") if draw is None else random_crop(image, size, draw)
        return normalize([square], self.normalization)[0]

    def _caption(self, text: str) -> str:
        kept = clean_caption(text) if self.clean else text.strip()
        if not kept:
            raise InputError(f"a caption is empty: {shorten(text)}")
        return kept

    def lengths(self, row: Mapping[str, Any], dataset: DataSet) -> dict[str, list[int]]:
        """Tokens of all captions as they are embedded, by language, of which a run draws one at each look.

        Raises InputError for a bad sample, which a row is with any caption that no run could use.
        """
        held = self.read(row, dataset)
        return {
            language: [len(self._ids(language, text).contrastive) for text in texts]
            for language, texts in held.captions.items()
        }

    def _texts(self, held: Held, seed: int) -> PairTexts:
        draw = random.Random(f"text {seed}")
        return self._ids(
            *draw.choice([(name, one) for name, texts in held.captions.items() for one in texts])
        )

    def _ids(self, language: str, text: str) -> PairTexts:
        prompt = PROMPTS.get(language, CAPTION_PROMPT)
        caption, prompt_length = self.texts.caption(text, prompt=prompt)
        return PairTexts(
            contrastive=tuple(self.texts.ids(text)),
            match=tuple(self.texts.ids(text, prefix="")),
            caption=tuple(caption),
            prompt_length=prompt_length,
        )


def clean_caption(text: str) -> str:
    """In small letters, `. ! " ( ) * # : ; ~` as spaces, single spaces, 50 words at most (InternVL-G,
    retrieval fine-tuning)."""
    return " ".join(_CLEANED.sub(" ", text.lower()).split()[:MAX_WORDS])


def image_id(source: Any) -> int:
    """Names a picture by its path or its bytes, in 63 bits: equal ones have equal ids."""
    if isinstance(source, str | PathLike):
        source = _path_bytes(source)
    content = source if isinstance(source, bytes) else np.asarray(source).tobytes()
    return _digest(content)


def _path_bytes(path: str | PathLike[str]) -> bytes:
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:  # half a character in a JSON text; no file has such a name
        return os.fspath(path).encode("utf-8", "surrogatepass")


def _digest(content: bytes) -> int:
    """63 bits that follow from `content`."""
    return int.from_bytes(blake2b(content, digest_size=8).digest()) >> 1
