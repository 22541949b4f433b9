"""A tiny chat model, three examples for it, and pairs of answers."""

from __future__ import annotations

import torch
from torch import Tensor

from internvl.config import ChatConfig, ProjectorConfig, RopeConfig, TextConfig, TilingConfig, VisionConfig
from internvl.data.batch import Batch, pack
from internvl.data.example import Branch, Example
from internvl.models.vlm import VLM

CONTEXT = 7
TILE_SIZE = 56


def chat_model() -> VLM:
    """Two layers of everything; 4 vision tokens a tile of 56 px. Weights as the seed of torch has them."""
    text = TextConfig(
        vocab_size=50,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_width=48,
        rope=RopeConfig(theta=1e4),
        max_positions=64,
    )
    vision = VisionConfig(image_size=TILE_SIZE, width=24, num_layers=2, num_heads=3, mlp_width=40)
    return VLM(
        ChatConfig(
            vision=vision,
            projector=ProjectorConfig(),
            text=text,
            tiling=TilingConfig(tile_size=TILE_SIZE, dynamic=False),
            template="internvl2_5",
        )
    )


def branch(*ids: int, reference: float | None = None) -> Branch:
    """A branch trained on all its tokens."""
    return Branch(ids, (True,) * len(ids), reference)


def picture(seed: int) -> Tensor:
    return torch.randn(1, 3, TILE_SIZE, TILE_SIZE, generator=torch.Generator().manual_seed(seed))


def examples() -> tuple[Example, ...]:
    """Three captions of one picture, two of another, a conversation of two rounds without a picture."""
    context = (CONTEXT,) * 4
    return (
        Example(
            key="three",
            prefix=(1, *context, 9, 3),
            branches=(branch(11, 12, 2), branch(13, 2), branch(14, 15, 16, 17, 2)),
            slots=(1, 2, 3, 4),
            tiles_N3HW=picture(1),
        ),
        Example(
            key="two",
            prefix=(1, *context, 5),
            branches=(branch(21, 22, 23, 2), branch(2)),
            slots=(1, 2, 3, 4),
            tiles_N3HW=picture(2),
        ),
        Example(
            key="text",
            prefix=(1, 8, 3),
            branches=(Branch((31, 2, 9, 32, 33, 2), (True, True, False, True, True, True)),),
        ),
    )


def preference_pairs() -> tuple[Example, ...]:
    """Chosen and rejected answers: about two pictures, and to two questions in text."""
    slots, context = (1, 2, 3, 4), (CONTEXT,) * 4
    prefixes = ((1, *context, 9), (1, *context, 5, 6), (1, 8), (1, 8, 9))
    answers = (
        (branch(11, 12, 2), branch(13, 2)),
        (branch(21, 2), branch(22, 23, 24, 2)),
        (Branch((31, 32, 2, 9), (True, True, True, False)), branch(33, 2)),
        (branch(34, 35, 2), branch(36, 2)),
    )
    return tuple(
        Example(
            key=f"pair {index}",
            prefix=prefix,
            branches=pair,
            slots=slots if index < 2 else (),
            tiles_N3HW=picture(index) if index < 2 else None,
        )
        for index, (prefix, pair) in enumerate(zip(prefixes, answers, strict=True))
    )


def batch(*chosen: Example) -> Batch:
    """The examples given, or all, packed."""
    return pack(chosen or examples(), TILE_SIZE)
