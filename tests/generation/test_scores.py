"""Penalties and filters on scores small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from internvl.generation import scores
from internvl.generation.sampling import Sampling

SCORES = (2.0, -1.0, 0.5, 0.0, 3.0)
BANNED = -math.inf


def given() -> Tensor:
    return torch.tensor(SCORES)


def same(found: Tensor, expected: list[float]) -> bool:
    return found.tolist() == pytest.approx(expected)


def test_repetition_divides_positive_and_multiplies_negative_once() -> None:
    found = scores.penalise_repetition(given(), [0, 1, 0, 0], 2.0)
    assert same(found, [1.0, -2.0, 0.5, 0.0, 3.0])


def test_presence_counts_once_and_frequency_every_time() -> None:
    found = scores.penalise_counts(given(), [4, 2, 4, 4], 0.5, 0.25)
    assert same(found, [2.0, -1.0, 0.5 - 0.75, 0.0, 3.0 - 1.25])


def test_nothing_generated_changes_nothing() -> None:
    assert same(scores.penalise_counts(given(), [], 0.5, 0.25), list(SCORES))
    assert same(scores.penalise_repetition(given(), [], 2.0), list(SCORES))


def test_bias_and_ban() -> None:
    assert same(scores.bias(given(), {1: 5.0, 4: -1.0}), [2.0, 4.0, 0.5, 0.0, 2.0])
    assert same(scores.ban(given(), (4, 0)), [BANNED, -1.0, 0.5, 0.0, BANNED])


def test_edit_goes_in_the_documented_order() -> None:
    sampling = Sampling(
        logit_bias={1: 3.0}, repetition_penalty=2.0, presence_penalty=0.5, min_new_tokens=3, stop_ids=(4,)
    )
    found = scores.edit(given(), sampling, seen_ids=[0], new_ids=[1, 2])
    assert same(found, [1.0, 2.0 / 2 - 0.5, 0.25 - 0.5, 0.0, BANNED])
    enough = scores.edit(given(), sampling, seen_ids=[0], new_ids=[1, 2, 1])
    assert enough[4] == 3.0


def test_top_k_keeps_ties() -> None:
    tied = torch.tensor([1.0, 2.0, 2.0, 3.0])
    assert same(scores.keep_top_k(tied, 2), [BANNED, 2.0, 2.0, 3.0])
    assert same(scores.keep_top_k(tied, 99), tied.tolist())


def test_top_p_reaches_the_mass() -> None:
    scores_V = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    kept = [bool(keep) for keep in scores.keep_top_p(scores_V, 0.69) > BANNED]
    assert kept == [False, False, True, True]
    kept = [bool(keep) for keep in scores.keep_top_p(scores_V, 0.71) > BANNED]
    assert kept == [False, True, True, True]
    assert int((scores.keep_top_p(scores_V, 1e-9) > BANNED).sum()) == 1


def test_top_p_after_a_ban() -> None:
    scores_V = torch.tensor([BANNED, 0.0, BANNED, 0.0])
    assert same(scores.keep_top_p(scores_V, 0.999), [BANNED, 0.0, BANNED, 0.0])


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_top_p_by_candidates_equals_the_full_sort(top_p: float, spread: float) -> None:
    scores_V = torch.randn(5000) * spread
    expected = scores_V.masked_fill(~scores._nucleus(scores_V, top_p), BANNED)
    assert scores.keep_top_p(scores_V, top_p).equal(expected)


def test_min_p_is_relative_to_the_best() -> None:
    scores_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert [bool(keep) for keep in scores.keep_min_p(scores_V, 0.31) > BANNED] == [True, True, False, False]


def test_warp_at_low_temperature_sharpens() -> None:
    warped = scores.warp(given(), Sampling(temperature=0.5))
    assert same(warped, [2 * score for score in SCORES])


def test_report() -> None:
    found = scores.report(given(), chosen=2, num_best=2)
    total = math.log(sum(math.exp(score) for score in SCORES))
    assert (found.id, [index for index, _ in found.top]) == (2, [4, 0])
    assert found.logprob == pytest.approx(0.5 - total)
    assert [value for _, value in found.top] == pytest.approx([3.0 - total, 2.0 - total])


def test_report_of_more_than_there_is() -> None:
    assert len(scores.report(given(), chosen=0, num_best=20).top) == len(SCORES)


def test_arguments_are_not_changed() -> None:
    scores_V = given()
    settings = Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.5, logit_bias={0: 1.0})
    scores.warp(scores.edit(scores_V, settings, [0], [1]), settings)
    scores.penalise_repetition(scores_V, [0], 2.0)
    scores.penalise_counts(scores_V, [0], 1.0, 1.0)
    scores.ban(scores_V, [0])
    assert scores_V.tolist() == list(SCORES)
