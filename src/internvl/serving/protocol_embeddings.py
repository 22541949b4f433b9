"""Requests for vectors of texts and pictures, and their answers. Pure values."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from internvl.serving.protocol import Strict
from internvl.serving.protocol_messages import ImageUrl, MediaReference, TextPart

MAX_ITEMS = 256


class EmbeddedImage(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


EmbeddedPart = Annotated[TextPart | EmbeddedImage, Field(discriminator="type")]
Items = Annotated[list[str | EmbeddedPart], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class EmbeddingRequest(Strict):
    """`/v1/embeddings`. `input` is a text, or a list of texts and of parts as messages have them.

    `mode` "G" adds what InternVL-G's query tokens see in pictures. Vectors have length one unless `normalize`
    is false. A text that is too long is refused unless `truncate`.
    """

    model: str | None = None
    input: str | Items
    encoding_format: Literal["float", "base64"] = "float"
    mode: Literal["C", "G"] = "C"
    fit: Literal["squash", "crop"] | None = None
    normalize: bool = True
    truncate: bool = False
    user: str | None = None

    def items(self) -> list[str | MediaReference]:
        """Texts, and the addresses of pictures, in order."""
        given = [self.input] if isinstance(self.input, str) else self.input
        found: list[str | MediaReference] = []
        for index, one in enumerate(given):
            if isinstance(one, str):
                found.append(one)
            elif isinstance(one, TextPart):
                found.append(one.text)
            else:
                found.append(MediaReference("image", one.image_url.url, {}, f"input[{index}].image_url"))
        return found


def embedding_list(
    vectors: Sequence[Sequence[float]], encoding: str, model: str, num_tokens: int
) -> dict[str, Any]:
    """The protocol's list; base64 is of float32 in little-endian order."""
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
        for index, vector in enumerate(vectors)
    ]
    used = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": model, "usage": used}


def _encoded(vector: Sequence[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
