"""Changes to a checkpoint on its way from disk to disk: a part alone, another language model, other sizes.

Works on unread tensors under our names, so that what is not changed stays as it is to the bit. Knows no
files (see `checkpoints.convert`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from internvl.adapt.resize import grid_of, new_input_rows, new_output_rows, num_new_rows
from internvl.checkpoints.layouts import OURS
from internvl.checkpoints.lazy import Held, Lazy, Rows, Stack, fetch, num_rows
from internvl.config import ChatConfig, ContrastiveConfig, TextConfig, VisionConfig
from internvl.errors import ConfigError, InputError
from internvl.models.vit import resize_positions

Part = Literal["vit", "projector", "llm"]
Tensors = Mapping[str, Lazy]
Whole = ChatConfig | ContrastiveConfig
POSITIONS = "embed.position"
SHAPE: tuple[str, ...] = (
    "width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_width",
    "qkv_bias",
    "out_bias",
    "qk_norm",
)
"""Fields in which two language models agree where one can take the other's place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Other sizes of a model; None keeps what there is.

    `image_size` is that of a tile: the position table is resized (bicubic). `vocabulary` adds rows: new
    inputs are random, new outputs the mean of the old ones.
    """

    image_size: int | None = None
    vocabulary: int | None = None


def resize(
    tensors: Tensors, config: Whole | VisionConfig, sizes: Resize
) -> tuple[Tensors, Whole | VisionConfig]:
    """The checkpoint in other sizes.

    Raises:
        InputError: a size that no model can have, a smaller vocabulary, or a tower without one.
    """
    if sizes.image_size is not None:
        tensors, config = _resize_positions(tensors, config, sizes.image_size)
    if sizes.vocabulary is not None:
        if isinstance(config, VisionConfig):
            raise InputError("a vision tower has no vocabulary to resize")
        tensors, config = _resize_vocabulary(tensors, config, sizes.vocabulary)
    return tensors, config


def _resize_positions(
    tensors: Tensors, config: Whole | VisionConfig, size: int
) -> tuple[Tensors, Whole | VisionConfig]:
    vision, prefix = (config, "") if isinstance(config, VisionConfig) else (config.vision, "vit.")
    name = f"{prefix}{POSITIONS}"
    grid = grid_of(size, vision)
    table = resize_positions(fetch(tensors[name]), grid, grid)
    vision = replace(vision, image_size=size)
    tensors = {**tensors, name: Held(table, name)}
    if isinstance(config, VisionConfig):
        return tensors, vision
    if isinstance(config, ContrastiveConfig):
        return tensors, replace(config, vision=vision, image_size=size)
    if config.projector.shuffle and grid % config.projector.factor:
        raise InputError(
            f"tiles of {size} px give {grid} patches a side, which the projector cannot take in squares of "
            f"{config.projector.factor}: choose a multiple of {vision.patch_size * config.projector.factor}"
        )
    return tensors, replace(config, vision=vision, tiling=replace(config.tiling, tile_size=size))


def _resize_vocabulary(tensors: Tensors, config: Whole, size: int) -> tuple[Tensors, Whole]:
    extra = num_new_rows(config.text, size)
    prefix = OURS["chat" if isinstance(config, ChatConfig) else "contrastive"]
    inputs = new_input_rows(extra, config.text.width, torch.Generator().manual_seed(0))
    extended = {f"{prefix}embed.weight": _extended(tensors[f"{prefix}embed.weight"], inputs)}
    name = f"{prefix}head.weight"
    if name in tensors:  # InternVL-C alone writes nothing
        extended[name] = _extended(tensors[name], new_output_rows(extra, fetch(tensors[name])))
    return {**tensors, **extended}, replace(config, text=replace(config.text, vocab_size=size))


def _extended(rows: Lazy, new: torch.Tensor) -> Lazy:
    return Stack([rows, Held(new.to(rows.dtype), "new rows")])


def extract(tensors: Tensors, config: Whole, part: Part) -> tuple[Tensors, VisionConfig | TextConfig | None]:
    """One part of a model, under the names it has alone, and its configuration (none of a projector).

    Raises:
        ConfigError: a contrastive model has no such part.
    """
    if isinstance(config, ContrastiveConfig) and part != "vit":
        raise ConfigError(f"a contrastive model has no {part} that works alone, only its vision tower (vit)")
    prefix = f"{part}."
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if part == "projector":
        return found, None
    return found, config.vision if part == "vit" else config.text


def replace_language(
    tensors: Tensors, config: ChatConfig, others: Tensors, other: TextConfig, num_kept_by_other: int
) -> tuple[Tensors, ChatConfig]:
    """The chat model with the weights of another language model of the same shape.

    Vocabulary rows from `num_kept_by_other` on, the tokens a chat model adds, stay the chat model's.

    Raises:
        ConfigError: the language models differ in shape, or the other has too few rows.
    """
    differing = [
        f"{name} {getattr(config.text, name)} and {getattr(other, name)}"
        for name in SHAPE
        if getattr(config.text, name) != getattr(other, name)
    ]
    if differing:
        raise ConfigError(f"the language models differ: {', '.join(differing)}")
    if other.vocab_size < num_kept_by_other:
        raise ConfigError(
            f"the language model has {other.vocab_size} vocabulary rows; the chat model's own tokens begin "
            f"at {num_kept_by_other}, so its vocabulary is another"
        )
    replaced = {f"llm.{name}": value for name, value in others.items()}
    for name in ("llm.embed.weight", "llm.head.weight"):
        own = tensors[name]
        added = Rows(own, num_kept_by_other, num_rows(own))
        replaced[name] = Stack([Rows(replaced[name], 0, num_kept_by_other), added])
    text = replace(other, vocab_size=config.text.vocab_size)
    return {**tensors, **replaced}, replace(config, text=text)
