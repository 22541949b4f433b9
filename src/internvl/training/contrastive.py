"""Contrastive losses of pictures and texts, over the pairs of all processes.

Every process has the losses of its own pairs, each against everything that the others hold, so that sums over
processes are those of one process with the whole batch: a step is one micro-batch. Knows no masks and no
files. Shape letters: B pairs of this process, G pairs of all, E width of the common space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from internvl.data.pairs import PairBatch
from internvl.models.dual_encoder import DualEncoder
from internvl.training.dual_forward import embed_texts, image_features
from internvl.training.loss import Loss
from internvl.training.objective_spec import Contrastive
from internvl.training.world import World

MAX_SCALE = 100.0
"""Of the similarities, as CLIP has it: beyond, one wrong pair outweighs a batch."""


class Pairs(NamedTuple):
    """Directions of this process's pictures and texts among those of all; the own ones begin at `first`."""

    images_BE: Tensor
    texts_BE: Tensor
    images_GE: Tensor
    texts_GE: Tensor
    first: int


def gather_pairs(images: Sequence[Tensor], texts_BE: Tensor, world: World) -> list[Pairs]:
    """Pairs of each of `images`, several embeddings (B, E) of the same pictures, with the texts.

    One exchange for all; everything is normalised here, in float32.
    """
    own_BNE = normalize(torch.stack([*images, texts_BE], dim=1).float(), dim=-1)
    all_GNE, (first, _) = world.gather(own_BNE), world.place(len(own_BNE))
    *images_BE, texts_BE = own_BNE.unbind(1)
    *images_GE, texts_GE = all_GNE.unbind(1)
    return [
        Pairs(own_BE, texts_BE, all_GE, texts_GE, first)
        for own_BE, all_GE in zip(images_BE, images_GE, strict=True)
    ]


def matching(pairs: Pairs, ids_B: Tensor | None, world: World) -> Tensor:
    """(B, G), true where a text belongs to a picture: its own, and with `ids_B` those of equal ids."""
    if ids_B is not None:
        return ids_B[:, None] == world.gather(ids_B)
    place_B = torch.arange(len(pairs.texts_BE), device=pairs.texts_BE.device)
    return pairs.first + place_B[:, None] == torch.arange(len(pairs.texts_GE), device=place_B.device)


def softmax_losses(pairs: Pairs, scale: Tensor, belongs_BG: Tensor, smoothing: float = 0.0) -> Tensor:
    """(B,) cross entropy, mean of picture among texts and text among pictures.

    What belongs together shares the target evenly; `smoothing` of it is spread over everything.
    """
    share_BG = belongs_BG.float() / belongs_BG.sum(1, keepdim=True)
    target_BG = share_BG * (1 - smoothing) + smoothing / belongs_BG.shape[1]
    to_texts_BG = (scale * pairs.images_BE @ pairs.texts_GE.T).log_softmax(1)
    to_images_BG = (scale * pairs.texts_BE @ pairs.images_GE.T).log_softmax(1)
    return -(target_BG * (to_texts_BG + to_images_BG)).sum(1) / 2


def sigmoid_losses(pairs: Pairs, scale: Tensor, belongs_BG: Tensor, bias: float) -> Tensor:
    """(B,) every picture with every text a yes or no of its own (SigLIP, arXiv 2303.15343)."""
    logits_BG = scale * pairs.images_BE @ pairs.texts_GE.T + bias
    return -logsigmoid(torch.where(belongs_BG, logits_BG, -logits_BG)).sum(1)


def hits(pairs: Pairs, belongs_BG: Tensor) -> float:
    """Own pictures whose most similar text belongs to them."""
    best_B = (pairs.images_BE @ pairs.texts_GE.T).argmax(1, keepdim=True)
    return float(belongs_BG.gather(1, best_B).sum())


def own_scale(model: DualEncoder) -> Tensor:
    """At most 100, by holding the parameter there: a limit on its exponential would have no gradient behind
    it, so that a scale that overshot would stay."""
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(MAX_SCALE))
    return model.logit_scale.float().exp()


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """Similarities are scaled up before their softmax: half precision would be too coarse."""
    return torch.autocast(device.type, enabled=False)


def world_of_step(world: World) -> World:
    """Held-out pairs are measured by each process for itself, which may have more of them than another."""
    return world if torch.is_grad_enabled() else World(device=world.device)


class ContrastiveObjective:
    """Over the pairs of a step. The weight of a loss is its number of pairs."""

    def __init__(self, spec: Contrastive, world: World) -> None:
        self.spec, self.world = spec, world

    def __call__(self, model: DualEncoder, batch: PairBatch) -> Loss:
        spec, world = self.spec, world_of_step(self.world)
        features_BPC = image_features(model, batch.tiles_B3HW, batch.features_BPC)
        images_BE = model.pool_images(features_BPC, generative=spec.mode == "G")
        texts_BE = embed_texts(model, batch.contrastive_ids)
        with exact(texts_BE.device):
            (pairs,) = gather_pairs([images_BE], texts_BE, world)
            belongs_BG = matching(pairs, batch.image_ids_B if spec.soft_targets else None, world)
            scale = own_scale(model)
            if spec.loss == "softmax":
                losses_B = softmax_losses(pairs, scale, belongs_BG, spec.label_smoothing)
            else:
                losses_B = sigmoid_losses(pairs, scale, belongs_BG, spec.bias)
        count = len(losses_B)
        metrics = {"accuracy": hits(pairs, belongs_BG), "scale": float(scale.detach()) * count}
        return Loss(total=losses_B.sum(), weight=float(count), metrics=metrics)
