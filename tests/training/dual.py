"""A tiny dual encoder and a batch of pairs."""

from __future__ import annotations

import torch
from torch import nn

from internvl.config import ContrastiveConfig, TextConfig, VisionConfig
from internvl.data.pairs import PairBatch
from internvl.models.dual_encoder import DualEncoder

SIZE = 28


def dual_encoder(num_queries: int = 5) -> DualEncoder:
    """Two layers of everything; weights and queries are random from seed 0."""
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=40, width=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=32
    )
    vision = VisionConfig(image_size=SIZE, width=16, num_layers=2, num_heads=2, mlp_width=24)
    model = DualEncoder(
        ContrastiveConfig(
            vision=vision, text=text, embed_dim=12, pool_heads=2, num_queries=num_queries, image_size=SIZE
        )
    )
    if num_queries:
        nn.init.normal_(model.generator.queries)
    return model


def pairs(first: int = 0, last: int = 6) -> PairBatch:
    """Pairs `first` to `last` (excluded) of six; 0 and 3 have the same picture."""
    captions = [(11, 12), (13,), (14, 15, 16), (17, 12), (18, 19, 20, 21), (22, 11)][first:last]
    pictures = [0, 1, 2, 0, 3, 4][first:last]
    tiles = [torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index)) for index in pictures]
    return PairBatch(
        tiles_B3HW=torch.stack(tiles),
        contrastive_ids=tuple((1, 5, *ids, 2) for ids in captions),
        match_ids=tuple((1, *ids, 2) for ids in captions),
        caption_ids=tuple((1, 6, 7, *ids, 2) for ids in captions),
        prompt_lengths=(3,) * len(captions),
        image_ids_B=torch.tensor(pictures),
        draws_B=draws(6)[first:last],
        keys=tuple(f"pair {index}" for index in range(first, last)),
    )


def draws(count: int, seed: int = 0) -> torch.Tensor:
    """The random numbers of `count` looks at records."""
    return torch.randint(1 << 62, (count,), generator=torch.Generator().manual_seed(seed))
