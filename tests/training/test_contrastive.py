"""Contrastive losses against PyTorch's cross entropy and against formulas written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from internvl.errors import TrainingError
from internvl.training.contrastive import MAX_SCALE
from internvl.training.dual_forward import embed_texts, image_features
from internvl.training.loss import Loss
from internvl.training.objective_spec import Contrastive
from internvl.training.objectives import make_objective
from internvl.training.world import World
from tests.training.dual import dual_encoder, pairs


def cosines(mode: str = "C") -> Tensor:
    model, batch = dual_encoder(), pairs()
    images = model.pool_images(model.vit(batch.tiles_B3HW), generative=mode == "G")
    texts = model.embed_texts(batch.contrastive_ids)
    return (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).detach()


def loss(spec: Contrastive) -> Loss:
    return make_objective(spec)(dual_encoder(), pairs())


def mean(one: Loss) -> float:
    return float(one.total.detach()) / one.weight


@pytest.mark.parametrize("mode", ["C", "G"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_cross_entropy_both_ways(mode: str, smoothing: float) -> None:
    logits, target = cosines(mode) / 0.07, torch.arange(6)
    expected = sum(F.cross_entropy(x, target, label_smoothing=smoothing) for x in (logits, logits.T)) / 2
    made = loss(Contrastive(label_smoothing=smoothing, mode="G" if mode == "G" else "C"))
    assert mean(made) == pytest.approx(float(expected), rel=1e-5)
    assert made.weight == 6
    assert made.metrics["accuracy"] == int((logits.argmax(1) == target).sum())
    assert made.metrics["scale"] / 6 == pytest.approx(1 / 0.07, rel=1e-5)


def test_captions_of_one_picture_share_the_target() -> None:
    logits = cosines() / 0.07
    target = torch.eye(6)
    target[0, 3] = target[3, 0] = 1
    target /= target.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert mean(loss(Contrastive(soft_targets=True))) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_sigmoid_is_a_yes_or_no_of_every_pair(soft: bool) -> None:
    belongs = torch.eye(6)
    if soft:
        belongs[0, 3] = belongs[3, 0] = 1
    logits = cosines() / 0.07 - 4
    expected = F.binary_cross_entropy_with_logits(logits, belongs, reduction="sum") / 6
    made = loss(Contrastive(loss="sigmoid", bias=-4.0, soft_targets=soft))
    assert mean(made) == pytest.approx(float(expected), rel=1e-5)


def test_the_forward_passes_are_those_of_the_model() -> None:
    model, batch = dual_encoder(), pairs()
    features = image_features(model, batch.tiles_B3HW)
    torch.testing.assert_close(features, model.vit(batch.tiles_B3HW))
    assert image_features(model, batch.tiles_B3HW, features) is features
    ids = batch.contrastive_ids
    torch.testing.assert_close(embed_texts(model, ids), model.embed_texts(ids), rtol=1e-4, atol=1e-5)
    alone = dual_encoder(num_queries=0)
    torch.testing.assert_close(embed_texts(alone, ids), alone.embed_texts(ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(TrainingError, match="caption is empty"):
        embed_texts(model, [(1, 2), ()])


def test_cached_features_give_the_same_loss() -> None:
    batch = pairs()
    cached = replace(batch, features_BPC=dual_encoder().vit(batch.tiles_B3HW).detach())
    made = make_objective(Contrastive())(dual_encoder(), cached)
    assert mean(made) == pytest.approx(mean(loss(Contrastive())), rel=1e-6)


def test_everything_learns_but_what_belongs_to_queries() -> None:
    model = dual_encoder()
    make_objective(Contrastive())(model, pairs()).total.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert {name.split(".")[0] for name in without} == {"qllama", "query_pool", "itm_head"}
    of_text = {name for name in without if name.startswith("qllama") and ".cross." not in name}
    assert of_text == {"qllama.queries", "qllama.head.weight"}


def test_bfloat16_is_near_and_a_large_scale_is_held() -> None:
    exact = mean(loss(Contrastive()))
    with torch.autocast("cpu", torch.bfloat16):
        assert mean(loss(Contrastive())) == pytest.approx(exact, rel=0.05)
    model = dual_encoder()
    model.logit_scale.data.fill_(10.0)
    made = make_objective(Contrastive())(model, pairs())
    assert made.metrics["scale"] / 6 == pytest.approx(MAX_SCALE)
    made.total.backward()
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad != 0  # so it can come down again


def test_held_out_pairs_are_measured_by_each_process_alone() -> None:
    """A process may have more of them than another, so nothing is exchanged."""
    with torch.no_grad():
        alone = make_objective(Contrastive(), world=World(rank=0, size=2))(dual_encoder(), pairs())
    assert mean(alone) == pytest.approx(mean(loss(Contrastive())))
