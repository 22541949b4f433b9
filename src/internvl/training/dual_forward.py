"""From pictures and token ids to the states that contrastive losses read: the passes of a dual encoder.

Texts are packed into blocks, nothing is padded, each picture's keys are computed once. Every process calls
the same submodules in the same order, as sharded modules must be. Knows no loss. Shape letters: B pictures,
N of them at once, P patches and class token, C vision width, M texts matched with a picture, Q queries, T
packed tokens, A predicted tokens, D text width, E width of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from internvl.errors import TrainingError
from internvl.models.dual_encoder import DualEncoder, TextEncoder
from internvl.models.vlm import POSITIONS_AT_ONCE
from internvl.training.packed_blocks import PackedBlocks
from internvl.training.world import is_sharded

Ids = Sequence[int]


def image_features(model: DualEncoder, tiles_B3HW: Tensor, features_BPC: Tensor | None = None) -> Tensor:
    """The tower's last states (B, P, C); `features_BPC` are those of a frozen tower, where cached."""
    if features_BPC is not None:
        return features_BPC.to(model.vit.embed.position.dtype)
    if tiles_B3HW.device.type != "cpu" or is_sharded(model):
        out: Tensor = model.vit(tiles_B3HW)
        return out
    positions = 1 + tiles_B3HW.shape[2] * tiles_B3HW.shape[3] // model.vit.config.patch_size**2
    parts = tiles_B3HW.split(max(1, POSITIONS_AT_ONCE // positions))
    return torch.cat([model.vit(tiles_N3HW) for tiles_N3HW in parts])


def embed_texts(model: TextEncoder, ids: Sequence[Ids]) -> Tensor:
    """(B, E), as `TextEncoder.embed_texts`. Raises TrainingError for a text without tokens."""
    if not ids or not all(ids):
        raise TrainingError("a text without tokens has no embedding: a record's caption is empty")
    device, seqlens = model.text_projection.device, [len(row) for row in ids]
    attend = PackedBlocks(seqlens, device)
    states_TD: Tensor = model.qllama(
        model.qllama.embed(torch.tensor(list(chain(*ids)), device=device)), attend.pos_T, attend
    )
    last_B = torch.tensor(list(accumulate(seqlens)), device=device) - 1
    return states_TD.index_select(0, last_B) @ model.text_projection
