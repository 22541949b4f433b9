"""Vectors of texts and pictures, from InternVL-C and -G or from a vision tower alone.

Knows no HTTP. One request is computed at a time, in a thread. Shape letters: E width of the vectors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from internvl.api.contrastive import ContrastiveModel
from internvl.api.vision import VisionModel
from internvl.errors import RequestError
from internvl.serving.protocol_embeddings import EmbeddingRequest
from internvl.serving.threads import in_thread

Item = str | Image.Image


@dataclass(frozen=True, slots=True)
class Embedded:
    """One vector an item, in order, and the tokens of the texts."""

    vectors: list[list[float]]
    num_tokens: int


class Embedder:
    """Embeds with one model."""

    def __init__(self, model: ContrastiveModel | VisionModel) -> None:
        self.model = model
        self._turn = asyncio.Lock()

    async def embed(self, asked: EmbeddingRequest, items: Sequence[Item]) -> Embedded:
        """Raises InputError for items this model has no vectors for."""
        async with self._turn:
            return await in_thread(self._embed, asked, items)

    def _embed(self, asked: EmbeddingRequest, items: Sequence[Item]) -> Embedded:
        texts = [item for item in items if isinstance(item, str)]
        images = [item for item in items if not isinstance(item, str)]
        rows_of_texts, num_tokens = self._texts(texts, asked) if texts else ((), 0)
        of_texts = iter(rows_of_texts)
        of_images = iter(self._images(images, asked) if images else ())
        rows = [next(of_texts if isinstance(item, str) else of_images) for item in items]
        vectors_BE = torch.stack(rows).float()
        if asked.normalize:
            vectors_BE = normalize(vectors_BE, dim=-1)
        return Embedded(vectors_BE.tolist(), num_tokens)

    def _texts(self, texts: list[str], asked: EmbeddingRequest) -> tuple[Iterable[Tensor], int]:
        """One vector a text, and the tokens of all."""
        if not isinstance(self.model, ContrastiveModel):
            raise RequestError(
                "this model is a vision tower: it has vectors of pictures, not of texts", param="input"
            )
        ids = [self.model.processor.ids(text, truncate=asked.truncate) for text in texts]
        return self.model.embed_ids(ids), sum(map(len, ids))

    def _images(self, images: list[Any], asked: EmbeddingRequest) -> Tensor:
        if isinstance(self.model, ContrastiveModel):
            if asked.mode == "G" and not self.model.encoder.config.num_queries:
                raise RequestError("this model has no query tokens: leave mode out, or C", param="mode")
            return self.model.embed_images(images, asked.mode, fit=asked.fit or "squash")
        if asked.mode != "C" or asked.fit == "squash":
            raise RequestError(
                "this model is a vision tower, which sees the centre of a picture: leave mode and fit out",
                param="mode" if asked.mode != "C" else "fit",
            )
        return self.model.features(images).pooled
