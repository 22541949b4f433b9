"""InternVL-C and InternVL-G: pictures and texts as vectors of one space, and captions from query tokens.

Embeddings are those of the released encoders, before the final normalisation. Knows no text and no files.
Shape letters: B pictures or texts, P patches and class token, C vision width, Q queries, T packed tokens,
D text width, E width of the common space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from internvl.config import ContrastiveConfig
from internvl.errors import ConfigError, InputError
from internvl.models.attention import Looks, Packed
from internvl.models.decoder import Decoder
from internvl.models.layers import Linear, normal
from internvl.models.pooling import AttentionPool
from internvl.models.qllama import QLlama
from internvl.models.vit import VisionTower

INITIAL_SCALE = math.log(1 / 0.07)


class TextEncoder(nn.Module):
    """Texts to vectors: the text model, read at a text's last token, and a projection."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.qllama = QLlama(config) if config.is_generative else Decoder(config.text)
        if not config.is_generative:
            del self.qllama.head  # embeds, never writes
        self.text_projection = nn.Parameter(
            normal(config.text.width, config.embed_dim) * config.text.width**-0.5
        )

    def text_states(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Final hidden states of each text, (T, D); every token sees those before it."""
        if not ids or not all(ids):
            raise InputError("a text needs at least one token")
        device = self.text_projection.device
        attend = Packed([len(row) for row in ids], device)
        x_TD = self.qllama.embed(torch.tensor([id for row in ids for id in row], device=device))
        states_TD: Tensor = self.qllama(x_TD, attend.pos_T, attend)
        return list(states_TD.split([len(row) for row in ids]))

    def embed_texts(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(B, E): the state of each text's last token, the end mark, projected."""
        last_BD = torch.stack([states_TD[-1] for states_TD in self.text_states(ids)])
        return last_BD @ self.text_projection


class ImageEncoder(nn.Module):
    """Pictures to vectors without a text model, as InternVL-C has them: a vision tower and its pool."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = VisionTower(config.vision)
        self.image_pool = AttentionPool(config.vision.width, config.pool_heads, config.embed_dim)

    def pool_images(self, features_BPC: Tensor, *, generative: bool = False) -> Tensor:
        """(B, E) of the tower's last states. Raises ConfigError for the pictures of InternVL-G, which need
        the text model too."""
        if generative:
            raise ConfigError("only the image side was loaded: for mode G load the whole model")
        pooled_BE: Tensor = self.image_pool(features_BPC)
        return pooled_BE


class DualEncoder(TextEncoder):
    """With a vision tower and its pool; in mode G also queries, their pool and a head that matches pairs."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__(config)
        self.vit = VisionTower(config.vision)
        self.image_pool = AttentionPool(config.vision.width, config.pool_heads, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        if config.is_generative:
            self.query_pool = AttentionPool(config.text.width, config.pool_heads, config.embed_dim)
            self.itm_head = Linear(config.text.width, 2)

    def pool_images(self, features_BPC: Tensor, *, generative: bool = False) -> Tensor:
        """(B, E) of the tower's last states: pooled (InternVL-C), or the sum of both pools' directions, that
        of the states and that of the queries (InternVL-G)."""
        pooled_BE: Tensor = self.image_pool(features_BPC)
        if not generative:
            return pooled_BE
        queried_BE = self.query_pool(self.query_states(features_BPC))
        return normalize(queried_BE, dim=-1) + normalize(pooled_BE, dim=-1)

    def query_states(self, features_BPC: Tensor) -> Tensor:
        """What the queries make of each picture, (B, Q, D); they all see each other."""
        qllama, (num, device) = self.generator, (len(features_BPC), features_BPC.device)
        count = self.config.num_queries
        pictures_B = torch.arange(num, device=device)
        looks = Looks(torch.arange(num * count, device=device).view(num, count), pictures_B, features_BPC)
        attend = Packed([count] * num, device, prefixes=[count] * num, looks=looks)
        x_TD = qllama.queries.expand(num, -1, -1).flatten(0, 1)
        states_TD: Tensor = qllama(x_TD, attend.pos_T, attend)
        return states_TD.view(num, count, -1)

    def match(self, features_BPC: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        """(B, 2): scores that picture i and text i do not belong together, and that they do.

        Queries and text all see each other; every query gives its opinion, the mean counts.
        """
        qllama, (num, device) = self.generator, (len(features_BPC), features_BPC.device)
        if num != len(ids):
            raise InputError(f"{num} pictures and {len(ids)} texts make no pairs: give one text for each")
        lengths = [self.config.num_queries + len(row) for row in ids]
        starts_B = torch.tensor(list(accumulate(lengths, initial=0))[:-1], device=device)
        rows_BQ = starts_B[:, None] + torch.arange(self.config.num_queries, device=device)
        looks = Looks(rows_BQ, torch.arange(num, device=device), features_BPC)
        attend = Packed(lengths, device, prefixes=lengths, looks=looks)
        words = qllama.embed(torch.tensor([id for row in ids for id in row], device=device))
        parts = zip([qllama.queries[0]] * num, words.split([len(row) for row in ids]), strict=True)
        x_TD = torch.cat([part for pair in parts for part in pair])
        scores_BQ2 = self.itm_head(qllama(x_TD, attend.pos_T, attend)[rows_BQ])
        return scores_BQ2.mean(dim=1)  # type: ignore[no-any-return]

    @property
    def generator(self) -> QLlama:
        """The text model with queries. Raises ConfigError for InternVL-C alone."""
        if not isinstance(self.qllama, QLlama):
            raise ConfigError(
                "this checkpoint is InternVL-C alone: without query tokens no mode G, no matching and no "
                "caption"
            )
        return self.qllama
