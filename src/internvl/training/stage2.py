"""The second stage of InternVL 1.0 (arXiv 2312.14238): query tokens compare, match and write; and the losses
of retrieval fine-tuning.

Texts that are compared run first, so that wrong texts for matching can be drawn by similarity; everything
that looks at pictures is one pass after it. Shape letters: B pairs of this process, G pairs of all, M texts
matched with a picture, L longest text, E width of the common space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from internvl.data.pairs import PairBatch
from internvl.models.dual_encoder import DualEncoder
from internvl.training.contrastive import (
    exact,
    gather_pairs,
    hits,
    matching,
    own_scale,
    softmax_losses,
    world_of_step,
)
from internvl.training.cross_entropy import cross_entropy
from internvl.training.dual_forward import Ids, QueryStates, embed_texts, image_features, query_states
from internvl.training.loss import Loss
from internvl.training.objective_spec import Stage2
from internvl.training.world import World

LEVELS = 1 << 30


class Sums(NamedTuple):
    """A sum of losses over the own rows, and their number."""

    total: Tensor
    rows: float


class Matches(NamedTuple):
    """Texts matched with each picture, M for all: which belong to it, and which of them count."""

    ids: Sequence[Sequence[Ids]]
    belongs_BM: Tensor
    counts_BM: Tensor


def compare(
    model: DualEncoder,
    images: Sequence[Tensor],
    texts_BE: Tensor,
    *,
    spec: Stage2,
    world: World,
    image_ids_B: Tensor | None = None,
    counts_B: Tensor | None = None,
) -> tuple[Sums, float]:
    """ITC: the softmax loss of each of `images` with the texts, added; and hits of the first of them.

    Pairs where `counts_B` is false have no loss of their own, yet the others are compared with them.
    """
    with exact(texts_BE.device):
        embeddings = gather_pairs(images, texts_BE, world)
        belongs_BG = matching(embeddings[0], image_ids_B if spec.soft_targets else None, world)
        scale = own_scale(model)
        losses = [softmax_losses(one, scale, belongs_BG, spec.label_smoothing) for one in embeddings]
    losses_B = torch.stack(losses).sum(0)
    if counts_B is not None:
        losses_B = losses_B[counts_B]
    return Sums(losses_B.sum(), float(len(losses_B))), hits(embeddings[0], belongs_BG)


def match(model: DualEncoder, states: QueryStates, matches: Matches) -> tuple[Sums, float]:
    """ITM: cross entropy of right or wrong, by the mean of all queries; and how many are told right."""
    logits_BM2 = model.itm_head(states.matched_BMQD).mean(2).float()
    losses_BM = F.cross_entropy(
        logits_BM2.flatten(0, 1), matches.belongs_BM.long().flatten(), reduction="none"
    )
    kept = matches.counts_BM.flatten()
    right = (logits_BM2.argmax(-1) == matches.belongs_BM.long()) & matches.counts_BM
    return Sums(losses_BM[kept].sum(), float(kept.sum())), float(right.sum())


def write(model: DualEncoder, states: QueryStates) -> Sums:
    """ITG: next-token loss of the captions."""
    weights_A = torch.ones_like(states.targets_A, dtype=torch.float32)
    made = cross_entropy(states.written_AD, model.generator.head, states.targets_A, weights_A)
    return Sums(made.total, float(len(weights_A)))


def total_loss(parts: Mapping[str, Sums], spec: Stage2, num_pairs: int, world: World) -> Loss:
    """The weighted sum of the means of `parts` ("itc", "itm", "itg"), each over its rows of all processes.

    Its weight is the number of pairs, `num_pairs` of them on this process.
    """
    device = next(iter(parts.values())).total.device
    counts = [num_pairs, *(part.rows for part in parts.values())]
    pairs, *counted = world.sum(torch.tensor(counts, dtype=torch.float64, device=device)).tolist()
    means = {
        name: part.total * (pairs / max(1.0, count))
        for (name, part), count in zip(parts.items(), counted, strict=True)
    }
    total = torch.stack([getattr(spec, name) * mean for name, mean in means.items()]).sum()
    metrics = {name: float(mean.detach()) for name, mean in means.items()}
    return Loss(total=total, weight=float(num_pairs), metrics=metrics)


def draw_matches(
    texts: Sequence[Ids],
    image_ids_B: Tensor,
    draws_B: Tensor,
    similarity_BG: Tensor,
    spec: Stage2,
    world: World,
) -> Matches:
    """For each picture its own text, a wrong one, or both.

    A wrong text is drawn among those of all processes by softmax of `similarity_BG`, or evenly without
    `hard_negatives`; never a text of the same picture, nor one with the same words. Where there is no other,
    nothing counts. What is drawn follows from the pairs' own numbers `draws_B`: it depends on seed and place
    in the run, not on how processes share a step.
    """
    texts_GL, first = _all_texts(texts, world, image_ids_B.device)
    words_G = texts_GL.unique(dim=0, return_inverse=True)[1]
    own_B = slice(first, first + len(texts))
    excluded_BG = (image_ids_B[:, None] == world.gather(image_ids_B)) | (words_G[own_B, None] == words_G)
    logits_BG = similarity_BG.double() if spec.hard_negatives else torch.zeros_like(similarity_BG).double()
    share_BG = logits_BG.masked_fill(excluded_BG, -torch.inf).softmax(1).nan_to_num()
    order_G = world.gather(draws_B).argsort(stable=True)
    sums_BG = share_BG[:, order_G].cumsum(1)
    level_B1 = sums_BG[:, -1:] * _level(draws_B).to(sums_BG)[:, None]
    wrong_B = order_G[torch.searchsorted(sums_BG, level_B1)[:, 0].clamp(max=len(order_G) - 1)]
    exists_B = ~excluded_BG.all(1)
    wrong = [
        [id for id in row if id >= 0] if exists else own
        for row, exists, own in zip(texts_GL[wrong_B].tolist(), exists_B.tolist(), texts, strict=True)
    ]
    if spec.matches == "both":
        belongs_B2 = torch.tensor([False, True], device=exists_B.device).expand(len(texts), 2)
        counts_B2 = torch.stack((exists_B, torch.ones_like(exists_B)), dim=1)
        return Matches(list(zip(wrong, texts, strict=True)), belongs_B2, counts_B2)
    right_B = order_G.argsort()[own_B] % 2 == 1
    chosen = [
        [own if right else other] for own, other, right in zip(texts, wrong, right_B.tolist(), strict=True)
    ]
    return Matches(chosen, right_B[:, None], (exists_B | right_B)[:, None])


def _all_texts(texts: Sequence[Ids], world: World, device: torch.device) -> tuple[Tensor, int]:
    """(G, L) ids of all processes, -1 behind each text; and where this process's begin."""
    lengths_G = world.gather(torch.tensor([len(ids) for ids in texts], device=device))
    table_BL = torch.full((len(texts), int(lengths_G.max())), -1)
    for row_L, ids in zip(table_BL, texts, strict=True):
        row_L[: len(ids)] = torch.tensor(ids)
    return world.gather(table_BL.to(device)), world.place(len(texts))[0]


def _level(draws_B: Tensor) -> Tensor:
    """Numbers in (0, 1] of the low bits; the high ones order the pairs."""
    return (draws_B % LEVELS + 1).double() / LEVELS


class Stage2Objective:
    """Over the pairs of a step. A loss weighs its number of pairs; parts of weight 0 are left out."""

    def __init__(self, spec: Stage2, world: World) -> None:
        self.spec, self.world = spec, world

    def __call__(self, model: DualEncoder, batch: PairBatch) -> Loss:
        spec, world = self.spec, world_of_step(self.world)
        features_BPC = image_features(model, batch.tiles_B3HW, batch.features_BPC)
        with torch.set_grad_enabled(torch.is_grad_enabled() and spec.backbone and spec.itc > 0):
            pooled_BE = model.pool_images(features_BPC)
        texts_BE = embed_texts(model, batch.contrastive_ids)
        matches = self._matches(model, batch, pooled_BE, texts_BE, world)
        captions = list(zip(batch.caption_ids, batch.prompt_lengths, strict=True)) if spec.itg else []
        states = query_states(model, features_BPC, captions, matches.ids)
        parts, metrics = {}, {"scale": float(own_scale(model).detach()) * len(texts_BE)}
        if spec.itc:
            images = [model.query_pool(states.alone_BQD), *([pooled_BE] if spec.backbone else [])]
            parts["itc"], metrics["accuracy"] = compare(
                model, images, texts_BE, spec=spec, world=world, image_ids_B=batch.image_ids_B
            )
        if spec.itm:
            parts["itm"], right = match(model, states, matches)
            metrics["match_accuracy"] = right / matches.belongs_BM.shape[1]
        if spec.itg:
            parts["itg"] = write(model, states)
        loss = total_loss(parts, spec, len(texts_BE), world)
        return Loss(total=loss.total, weight=loss.weight, metrics={**loss.metrics, **metrics})

    def _matches(
        self, model: DualEncoder, batch: PairBatch, pooled_BE: Tensor, texts_BE: Tensor, world: World
    ) -> Matches:
        if not self.spec.itm:
            none_B0 = torch.zeros(len(texts_BE), 0, dtype=torch.bool, device=texts_BE.device)
            return Matches([()] * len(texts_BE), none_B0, none_B0)
        with exact(texts_BE.device):
            (pairs,) = gather_pairs([pooled_BE.detach()], texts_BE.detach(), world)
            similarity_BG = own_scale(model).detach() * pairs.images_BE @ pairs.texts_GE.T
        return draw_matches(
            batch.match_ids, batch.image_ids_B, batch.draws_B, similarity_BG, self.spec, world
        )
