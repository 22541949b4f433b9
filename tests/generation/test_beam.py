"""Beam search: against trying everything, and its own book-keeping."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from internvl.errors import ContextOverflowError
from internvl.generation.beam import Finals, beam_search, search
from internvl.generation.generate import generate
from internvl.generation.sampling import MAX_LENGTH_PENALTY, Sampling
from internvl.models.attention import Packed
from internvl.models.decoder import Decoder
from tests.generation.tiny import CONFIG, letters, make_decoder, make_prompt


@pytest.fixture(scope="module")
def llm() -> Decoder:
    return make_decoder()


@torch.inference_mode()
def logprob(llm: Decoder, prompt: list[int], answer: tuple[int, ...]) -> float:
    ids = torch.tensor([*prompt, *answer])
    states = llm(llm.embed(ids), torch.arange(len(ids)), Packed([len(ids)]))
    logprobs = llm.logits(states).log_softmax(-1)[len(prompt) - 1 : -1]
    return float(logprobs.gather(1, torch.tensor(answer)[:, None]).sum())


def test_wide_beams_find_the_best_of_all() -> None:
    llm = make_decoder(replace(CONFIG, vocab_size=6))
    prompt = make_prompt(llm, [1, 2], num_beams=36, max_new_tokens=3, length_penalty=0.0)
    everything = sorted(
        ((logprob(llm, [1, 2], ids), ids) for ids in product(range(6), repeat=3)), reverse=True
    )
    for answer, (total, ids) in zip(search(llm, prompt).best(5), everything, strict=False):
        assert answer.ids == ids
        assert answer.score == pytest.approx(total, abs=1e-4)


def test_the_score_is_the_normalised_sum(llm: Decoder) -> None:
    settings = {"num_beams": 4, "max_new_tokens": 8, "stop_ids": (3, 9), "length_penalty": 0.7}
    for answer in search(llm, make_prompt(llm, [5, 6, 7], **settings)).best(4):
        total = logprob(llm, [5, 6, 7], answer.ids)
        assert answer.score == pytest.approx(total / len(answer.ids) ** 0.7, abs=1e-4)
        assert (answer.reason == "stop") == (answer.ids[-1] in (3, 9))


def test_one_beam_is_greedy(llm: Decoder) -> None:
    prompt = make_prompt(llm, [5, 6, 7], max_new_tokens=8)
    assert beam_search(llm, prompt).ids == generate(llm, [prompt])[0].ids


def test_best_first_and_text_without_the_stop_id(llm: Decoder) -> None:
    prompt = make_prompt(llm, [5, 6, 7], num_beams=5, max_new_tokens=8, stop_ids=(3, 9, 14))
    beams = search(llm, prompt).best(5)
    assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
    assert {beam.reason for beam in beams} == {"stop", "length"}
    for stop_ids, reason in (((14,), "length"), ((3, 9, 14), "stop")):
        prompt = make_prompt(llm, [5, 6, 7], num_beams=5, max_new_tokens=8, stop_ids=stop_ids)
        answer, best = beam_search(llm, prompt, decode=letters), search(llm, prompt).best(1)[0]
        assert (answer.ids, answer.score, answer.finish_reason) == (best.ids, best.score, best.reason)
        assert answer.finish_reason == reason
        assert answer.text == letters(answer.ids).rstrip("djo" if reason == "stop" else "")


def test_early_stopping_ends_with_enough_finished_beams(llm: Decoder) -> None:
    settings = {
        "num_beams": 2,
        "max_new_tokens": 40,
        "stop_ids": tuple(range(0, 26, 2)),
        "length_penalty": 3.0,
    }
    patient = search(llm, make_prompt(llm, [5], **settings)).best(2)
    hasty = search(llm, make_prompt(llm, [5], **settings, early_stopping=True)).best(2)
    assert max(len(answer.ids) for answer in hasty) < max(len(answer.ids) for answer in patient)
    assert {answer.reason for answer in hasty} == {"stop"}


def test_more_beams_than_a_small_vocabulary_offers() -> None:
    llm = make_decoder(replace(CONFIG, vocab_size=3))
    prompt = make_prompt(llm, [1], num_beams=5, max_new_tokens=3)
    assert len({answer.ids for answer in search(llm, prompt).best(5)}) == 5


def test_cancelled_returns_the_best_so_far(llm: Decoder) -> None:
    prompt = make_prompt(llm, [5, 6, 7], num_beams=3, max_new_tokens=8)
    answer = beam_search(llm, prompt, is_cancelled=lambda: True)
    assert (len(answer.ids), answer.finish_reason) == (1, "cancelled")


def test_too_long_a_prompt_is_refused(llm: Decoder) -> None:
    with pytest.raises(ContextOverflowError):
        beam_search(llm, make_prompt(llm, [5] * 90, num_beams=3, max_new_tokens=8))


def test_finals_keep_the_best() -> None:
    finals = Finals(Sampling(num_beams=2))
    for total, ids in ((-4.0, [1, 2]), (-3.0, [3]), (-3.0, [4, 5]), (-9.0, [6]), (-1.5, [7])):
        finals.add(total, ids, "stop")
    assert [(beam.score, beam.ids) for beam in finals.best(2)] == [(-1.5, (7,)), (-1.5, (4, 5))]
    finals.add(-1.5, [8], "stop")  # as good as the worst: comes too late
    assert {beam.ids for beam in finals.best(2)} == {(7,), (4, 5)}
    assert finals.is_done(best_total=-6.0, length=4)
    assert not finals.is_done(best_total=-5.9, length=4)


def test_finals_are_not_done_before_they_are_full() -> None:
    finals = Finals(Sampling(num_beams=2, early_stopping=True))
    finals.add(-1.0, [1], "stop")
    assert not finals.is_done(-100.0, 2)
    finals.add(-50.0, [2], "stop")
    assert finals.is_done(-1.0, 2)


@pytest.mark.parametrize("penalty", [-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY])
def test_scores_of_long_beams_are_finite(penalty: float) -> None:
    finals = Finals(Sampling(num_beams=2, length_penalty=penalty))
    finals.add(-1e8, range(1_000_000), "stop")
    (beam,) = finals.best(1)
    assert -math.inf < beam.score < 0
