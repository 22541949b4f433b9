"""Other sizes for a built model: the position table of a tower, alone, in a chat model or in a dual encoder,
and the vocabulary of a language model.

All change the module in place, give it its new configuration, and return that. Knows no files.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from internvl.config import ChatConfig, ContrastiveConfig, TextConfig, VisionConfig
from internvl.errors import InputError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vit import VisionTower, resize_positions
from internvl.models.vlm import VLM

INPUT_ROW_STD = 0.02
"""Spread of new input embeddings, as in the released training code."""


def resize_position_table(tower: VisionTower, image_size: int) -> VisionConfig:
    """Make the position table that of `image_size` px (bicubic, class entry kept).

    The tower runs at any size without this; it matters for saving a checkpoint at the new size.

    Raises:
        InputError: a size that is not a positive multiple of the patch size.
    """
    grid = grid_of(image_size, tower.config)
    old = tower.embed.position
    with torch.no_grad():
        table = resize_positions(old.detach(), grid, grid)
    tower.embed.position = nn.Parameter(table, requires_grad=old.requires_grad)
    tower.config = replace(tower.config, image_size=image_size)
    return tower.config


def resize_images(model: DualEncoder, image_size: int) -> ContrastiveConfig:
    """Make a contrastive model one for pictures of `image_size` px, as its fine-tuned variants are for 364.

    Raises:
        InputError: a size that is not a positive multiple of the patch size.
    """
    vision = resize_position_table(model.vit, image_size)
    model.config = replace(model.config, vision=vision, image_size=image_size)
    return model.config


def resize_vocabulary(model: VLM, size: int, generator: torch.Generator | None = None) -> ChatConfig:
    """Add rows to the embeddings and the head so that ids below `size` exist.

    New output rows are the mean of the old ones, so that no new token is likely before training;
    new input rows are drawn from a normal distribution.

    Raises:
        InputError: fewer rows than there are.
    """
    text = model.config.text
    extra = num_new_rows(text, size)
    inputs_VD, outputs_VD = model.llm.embed.weight, model.llm.head.weight
    new_VD = new_input_rows(extra, text.width, generator).to(inputs_VD.device)
    model.llm.embed.weight = _extended(inputs_VD, new_VD)
    model.llm.head.weight = _extended(outputs_VD, new_output_rows(extra, outputs_VD.detach()))
    model.llm.embed.num_embeddings = model.llm.head.out_features = size
    model.llm.config = replace(text, vocab_size=size)
    model.config = replace(model.config, text=model.llm.config)
    return model.config


def grid_of(image_size: int, config: VisionConfig) -> int:
    """Patches per side of a picture.

    Raises:
        InputError: a size that is not a positive multiple of the patch size.
    """
    patch = config.patch_size
    if image_size <= 0 or image_size % patch:
        raise InputError(f"image size {image_size} is not a positive multiple of the patch size {patch}")
    return image_size // patch


def num_new_rows(config: TextConfig, size: int) -> int:
    """Rows that a vocabulary of `size` has beyond those there are.

    Raises:
        InputError: fewer rows than there are.
    """
    if size < config.vocab_size:
        raise InputError(f"the vocabulary has {config.vocab_size} rows and cannot shrink to {size}")
    return size - config.vocab_size


def new_input_rows(count: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Random input embeddings (count, width) in float32."""
    return torch.empty(count, width).normal_(std=INPUT_ROW_STD, generator=generator)


def new_output_rows(count: int, head_VD: Tensor) -> Tensor:
    """The mean of the output rows, (count, D) in float32."""
    return head_VD.float().mean(0, keepdim=True).expand(count, -1)


def _extended(rows_VD: Tensor, new_VD: Tensor) -> nn.Parameter:
    extended_VD = torch.cat((rows_VD.detach(), new_VD.to(rows_VD.dtype)))
    return nn.Parameter(extended_VD, requires_grad=rows_VD.requires_grad)
