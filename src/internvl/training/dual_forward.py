"""From pictures and token ids to the states that contrastive losses read: the passes of a dual encoder.

Texts are packed into blocks, nothing is padded, each picture's keys are computed once. Every process calls
the same submodules in the same order, as sharded modules must be. Knows no loss. Shape letters: B pictures,
N of them at once, P patches and class token, C vision width, M texts matched with a picture, Q queries, T
packed tokens, A predicted tokens, D text width, E width of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.errors import TrainingError
from internvl.models.attention import Looks
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


class QueryStates(NamedTuple):
    """What queries make of each picture alone (B, Q, D), with each text matched (B, M, Q, D), and the states
    (A, D) that predict `targets_A`."""

    alone_BQD: Tensor
    matched_BMQD: Tensor
    written_AD: Tensor
    targets_A: Tensor


def query_states(
    model: DualEncoder,
    features_BPC: Tensor,
    captions: Sequence[tuple[Ids, int]],
    matches: Sequence[Sequence[Ids]],
) -> QueryStates:
    """One pass for comparing, writing and matching.

    `captions`: ids and how many of the first are given, not predicted; none at all, or one a picture. They
    continue the queries, which see the picture and each other alone: so these are what is compared, too.
    `matches`: for each picture equally many texts; queries and text all see each other.

    Raises InputError as `DualEncoder.generator` does.
    """
    layout, device = _Layout(model.config.num_queries), features_BPC.device
    for number, texts in enumerate(matches):
        layout.add_caption(*(captions[number] if captions else ((), 0)))
        for ids in texts:
            layout.add_match(ids)
    num, count = len(matches), model.config.num_queries
    rows_BR = torch.tensor(layout.rows, device=device).view(num, -1)
    looks = Looks(rows_BR, torch.arange(num, device=device), features_BPC)
    attend = PackedBlocks(layout.seqlens, device, prefixes=layout.prefixes, looks=looks)
    states_TD: Tensor = model.generator(_embedded(model, layout.ids), attend.pos_T, attend)
    queried_BRQD = states_TD.index_select(0, rows_BR.flatten()).view(num, -1, count, states_TD.shape[-1])
    sources_A = torch.tensor(layout.sources, dtype=torch.long, device=device)
    return QueryStates(
        queried_BRQD[:, 0],
        queried_BRQD[:, 1:],
        states_TD.index_select(0, sources_A),
        torch.tensor(layout.targets, dtype=torch.long, device=device),
    )


class _Layout:
    """Where queries and texts stand among the packed tokens; a query's id is its number below 0."""

    def __init__(self, num_queries: int) -> None:
        self.queries = range(-num_queries, 0)
        self.ids: list[int] = []
        self.seqlens: list[int] = []
        self.prefixes: list[int] = []
        self.rows: list[int] = []
        self.sources: list[int] = []
        self.targets: list[int] = []

    def add_caption(self, ids: Ids, given: int) -> None:
        """The last token predicts nothing, so it is not packed."""
        before = len(self.ids) + len(self.queries) - 1
        self.sources += range(before + given, before + len(ids))
        self.targets += ids[given:]
        self._add(ids[:-1], len(self.queries))

    def add_match(self, ids: Ids) -> None:
        self._add(ids, len(self.queries) + len(ids))

    def _add(self, ids: Ids, prefix: int) -> None:
        self.rows += range(len(self.ids), len(self.ids) + len(self.queries))
        self.ids += [*self.queries, *ids]
        self.seqlens.append(len(self.queries) + len(ids))
        self.prefixes.append(prefix)


def _embedded(model: DualEncoder, ids: Ids) -> Tensor:
    """(T, D): of queries their parameters, of other ids the table's rows."""
    queries_QD = model.generator.queries[0]
    device, count = queries_QD.device, len(queries_QD)
    words = [id for id in ids if id >= 0]
    places = accumulate((id >= 0 for id in ids), initial=count)
    order_T = torch.tensor([id + count if id < 0 else place for id, place in zip(ids, places, strict=False)])
    embedded_TD = model.generator.embed(torch.tensor(words, dtype=torch.long, device=device))
    return torch.cat((queries_QD, embedded_TD)).index_select(0, order_T.to(device))
