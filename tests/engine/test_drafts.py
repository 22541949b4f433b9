"""Guesses come from repetitions, and never change an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from internvl.engine.drafts import PromptLookup
from internvl.errors import InputError
from internvl.models.vlm import VLM
from tests.engine.tiny import finish, ids_of, last_of, make_engine, make_image, make_request, make_vlm


def lookup(ids: list[int], count: int = 4) -> list[int]:
    source = PromptLookup()
    for id in ids:
        source.extend([id])
    return source.propose(count)


def test_what_followed_the_last_ids_before_may_follow_again() -> None:
    assert lookup([1, 2, 3, 4, 5, 9, 2, 3]) == [4, 5, 9, 2]
    assert lookup([1, 2, 3, 4, 9, 2, 3, 7, 2, 3]) == [7, 2, 3]  # the last time counts
    assert lookup([5, 2, 3, 4, 6, 2, 3, 7, 5, 2, 3]) == [4, 6, 2, 3]  # the longest repetition counts


def test_nothing_repeats_nothing_is_guessed() -> None:
    assert lookup([]) == lookup([1]) == lookup([1, 2, 3, 1]) == []
    assert lookup([1, 2, 3, 1, 2], count=1) == [3]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return make_vlm(std=0.3)


def test_answers_are_those_without_guesses(vlm: VLM) -> None:
    prompt = [3, 4, 5, 6, 3, 4, 5, 6, 3, 4]
    requests = [
        make_request("greedy", prompt, [make_image(1)], max_new_tokens=30),
        make_request("drawn", prompt, max_new_tokens=30, temperature=0.4, seed=3),
        make_request("penalised", prompt, max_new_tokens=30, frequency_penalty=0.2, logprobs=1),
        make_request("stops", prompt, max_new_tokens=30, stop="e", stop_ids=(7,)),
    ]
    answers = []
    for num_drafts in (0, 5):
        engine = make_engine(vlm, num_drafts=num_drafts, num_pages=40, max_step_tokens=24)
        for request in requests:
            engine.submit(request)
        deltas = finish(engine)
        answers.append(
            [(ids_of(deltas, one.key), last_of(deltas, one.key).finish_reason) for one in requests]
        )
    assert answers[0] == answers[1]
    stats = engine.stats()
    assert 0 < stats.drafts_right <= stats.drafts


def test_right_guesses_save_steps(vlm: VLM) -> None:
    plain = make_engine(vlm)
    request = make_request("a", [3, 4], max_new_tokens=40)
    plain.submit(request)
    ids = ids_of(finish(plain), "a")
    told = replace(make_request("a", [3, 4, *ids, 3, 4], max_new_tokens=40))
    steps = []
    for num_drafts in (0, 6):
        engine = make_engine(vlm, num_drafts=num_drafts)
        engine.submit(told)
        finish(engine)
        steps.append(engine.stats().steps)
    assert steps[0] - steps[1] == engine.stats().drafts_right


def test_guesses_depend_on_nothing_that_is_promised_not_to_matter() -> None:
    with pytest.raises(InputError, match="is_batch_invariant needs num_drafts=0, got 3"):
        make_engine(make_vlm(), num_drafts=3, is_batch_invariant=True)
