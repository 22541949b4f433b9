"""What a request will take, before anything runs, and refusal of what can never run.

Knows numbers and configurations; no tensors beyond their shapes, no state of an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from internvl.config import ChatConfig, TextConfig
from internvl.engine.page_keys import Span
from internvl.engine.request import EngineImage, EngineRequest
from internvl.engine.settings import EngineSettings
from internvl.errors import CapacityError, ContextOverflowError, ImageError, InputError, PromptError
from internvl.generation.prompt import check_ids, check_room

MAX_PAGES = 2**16
"""Of a cache given in bytes: the books of more would cost steps milliseconds. Larger pages reach further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The most that one answer of a request can take. `pages` and `cache_bytes` are its keys and values
    (those of a beam search have no pages),
    `tile_bytes` its pictures as they came, `vision_bytes` the vision tokens of those."""

    prompt_tokens: int
    image_tokens: int
    new_tokens: int
    tiles: int
    pages: int
    cache_bytes: int
    tile_bytes: int
    vision_bytes: int


def plan_request(
    request: EngineRequest,
    slots: Sequence[int],
    config: ChatConfig,
    settings: EngineSettings,
    sizes: Sizes,
) -> Plan:
    """The numbers of a request whose vision tokens fill `slots`.

    Raises:
        PromptError: no ids, ids that the model does not have, or slots that the pictures do not fill.
        ImageError: tiles of a shape that the model does not read.
        ContextOverflowError: prompt and answer exceed the model's positions, or `max_model_len`.
        CapacityError: they exceed all pages, or the tiles all that may wait.
        InputError: settings of the answer that name ids the model does not have.
    """
    _check_prompt(request, config.text)
    _check_images(request, slots, config)
    check_ids(request.sampling, (), config.text)
    length, new = len(request.ids), request.sampling.max_new_tokens
    _check_length(length, new, config.text, settings)
    num_tiles = sum(len(image.tiles_N3HW) for image in request.images)
    num_beams = request.sampling.num_beams
    pages = 0 if num_beams > 1 else -(-(length + new) // settings.page_size)
    beam_bytes = num_beams * (length + new) * sizes.beam_bytes if num_beams > 1 else 0
    if beam_bytes > settings.beam_cache_bytes:
        raise CapacityError(
            f"{num_beams} beams of {length + new} tokens take {beam_bytes} bytes, but the engine has "
            f"{settings.beam_cache_bytes} for them: lower num_beams or max_new_tokens, or raise "
            "beam_cache_bytes"
        )
    if pages > sizes.num_pages:
        raise CapacityError(
            f"prompt of {length} tokens + max_new_tokens {new} take {pages} pages of {settings.page_size}, "
            f"but the engine has {sizes.num_pages}: lower max_new_tokens, shorten the prompt (max_tiles), "
            "or raise cache_bytes"
        )
    if num_tiles > settings.max_waiting_tiles:
        raise CapacityError(
            f"{num_tiles} tiles in one request, but at most {settings.max_waiting_tiles} may wait: lower "
            "max_tiles, or raise max_waiting_tiles"
        )
    return Plan(
        prompt_tokens=length,
        image_tokens=len(slots),
        new_tokens=new,
        tiles=num_tiles,
        pages=pages,
        cache_bytes=pages * sizes.page_bytes + beam_bytes,
        tile_bytes=sum(image.tiles_N3HW.nbytes for image in request.images),
        vision_bytes=len(slots) * config.text.width * sizes.value_bytes,
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the settings come to for one model. `beam_bytes` are those of a position of one beam."""

    num_pages: int
    page_bytes: int
    beam_bytes: int
    value_bytes: int


def measure(settings: EngineSettings, config: TextConfig, value_bytes: int) -> Sizes:
    """Pages and bytes of an engine; `value_bytes` is the size of one weight. Raises CapacityError if not even
    one page fits."""
    heads = 2 * config.num_layers * config.num_kv_heads * settings.page_size  # keys and values
    per_head = config.head_dim * value_bytes
    if settings.kv_format == "int8":
        per_head = config.head_dim + value_bytes  # and a scale
    page_bytes, beam_bytes = heads * per_head, heads * config.head_dim * value_bytes // settings.page_size
    if settings.num_pages is not None:
        return Sizes(settings.num_pages, page_bytes, beam_bytes, value_bytes)
    if settings.cache_bytes < page_bytes:
        raise CapacityError(
            f"cache_bytes={settings.cache_bytes} is less than one page of {page_bytes} bytes: raise it"
        )
    return Sizes(min(settings.cache_bytes // page_bytes, MAX_PAGES), page_bytes, beam_bytes, value_bytes)


def find_spans(slots: Sequence[int], images: Sequence[EngineImage], tokens_per_tile: int) -> list[Span]:
    """The slots of each picture. Raises PromptError if other tokens stand between those of one."""
    spans: list[Span] = []
    first = 0
    for number, image in enumerate(images):
        mine = slots[first : first + len(image.tiles_N3HW) * tokens_per_tile]
        if mine[-1] - mine[0] + 1 != len(mine):
            raise PromptError(
                f"the {len(mine)} slots of picture {number} are spread over positions {mine[0]} to "
                f"{mine[-1]}: they must stand in a row"
            )
        spans.append(Span(mine[0], mine[-1] + 1, image.key))
        first += len(mine)
    return spans


def _check_prompt(request: EngineRequest, config: TextConfig) -> None:
    if not request.ids:
        raise PromptError("the prompt has no ids")
    least, most = min(request.ids), max(request.ids)
    if least < 0 or most >= config.vocab_size:
        raise PromptError(f"ids go from {least} to {most}, the vocabulary from 0 to {config.vocab_size - 1}")


def _check_images(request: EngineRequest, slots: Sequence[int], config: ChatConfig) -> None:
    size = config.tiling.tile_size
    for number, image in enumerate(request.images):
        shape = tuple(image.tiles_N3HW.shape)
        if len(shape) != 4 or shape[0] < 1 or shape[1:] != (3, size, size):
            raise ImageError(
                f"picture {number} has tiles of shape {shape}; this model reads (N, 3, {size}, {size})"
            )
        if not image.tiles_N3HW.isfinite().all():
            raise ImageError(f"picture {number} has values that are not finite")
    num_tiles = sum(len(image.tiles_N3HW) for image in request.images)
    if len(slots) != num_tiles * config.tokens_per_tile:
        raise PromptError(
            f"the prompt has {len(slots)} slots for vision tokens, but {num_tiles} tiles of "
            f"{config.tokens_per_tile} give {num_tiles * config.tokens_per_tile}"
        )
    if any(first >= second for first, second in pairwise(slots)) or (
        slots and not 0 <= slots[0] <= slots[-1] < len(request.ids)
    ):
        raise InputError(f"slots must rise from 0 to {len(request.ids) - 1} at most")
    find_spans(slots, request.images, config.tokens_per_tile)


def _check_length(length: int, new: int, config: TextConfig, settings: EngineSettings) -> None:
    check_room(length, new, config)
    if settings.max_model_len is not None and length + new > settings.max_model_len:
        raise ContextOverflowError(
            f"prompt of {length} tokens + max_new_tokens {new} = {length + new}, but max_model_len is "
            f"{settings.max_model_len}: lower max_new_tokens, or shorten the prompt"
        )
