"""Beam searches in the engine: the answers of `generate`, beside all else, a step at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.engine.constraint import Constraint
from internvl.errors import CapacityError, DeadlineError, InputError
from internvl.generation.beam import search
from internvl.models.vlm import VLM
from tests.engine.tiny import (
    expected,
    finish,
    ids_of,
    last_of,
    make_engine,
    make_image,
    make_request,
    make_vlm,
)
from tests.generation.tiny import make_prompt


def test_answers_are_those_of_generate(vlm: VLM) -> None:
    engine = make_engine(vlm, max_step_tiles=1)
    requests = [
        make_request("a", [1, 2, 3], [make_image(1, 2)], num_beams=3, max_new_tokens=6, stop_ids=(9,)),
        make_request("b", range(20), max_new_tokens=9),
        make_request("c", range(20), num_beams=2, max_new_tokens=5, length_penalty=0.5),
        make_request("d", [4], [make_image(1, 2)], num_beams=2, max_new_tokens=3, priority=-1),
    ]
    for request in requests:
        engine.submit(request)
    deltas = finish(engine)
    for request in requests:
        answer = expected(vlm, request)
        assert ids_of(deltas, request.key) == answer.ids
        assert last_of(deltas, request.key).finish_reason == answer.finish_reason
        assert "".join(delta.text for delta in deltas if delta.key == request.key) == answer.text
    order = [delta.key for delta in deltas if delta.usage]
    assert order.index("d") < order.index("c")
    assert engine.stats().tiles == 2
    usage = last_of(deltas, "a").usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (11, len(ids_of(deltas, "a")))


def test_the_best_few_beams(vlm: VLM) -> None:
    engine = make_engine(vlm)
    engine.submit(make_request("a", [1, 2, 3], num_beams=4, n=3, max_new_tokens=5))
    deltas = finish(engine)
    best = search(vlm.llm, make_prompt(vlm.llm, [1, 2, 3], num_beams=4, max_new_tokens=5)).best(3)
    assert [ids_of(deltas, "a", index) for index in range(3)] == [beam.ids for beam in best]
    assert [delta.usage is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]


def test_a_search_does_not_hold_others_up(vlm: VLM) -> None:
    engine = make_engine(vlm)
    engine.submit(make_request("beams", range(24), num_beams=2, max_new_tokens=20))
    engine.submit(make_request("plain", [1], max_new_tokens=5))
    deltas = [delta for _ in range(5) for delta in engine.step()]
    assert [delta.key for delta in deltas] == ["plain"] * 5
    finish(engine)


def test_ending_a_search(vlm: VLM) -> None:
    for num_steps in range(4):
        engine = make_engine(vlm)
        engine.submit(make_request("a", range(20), [make_image(3)], num_beams=2, n=2, max_new_tokens=9))
        for _ in range(num_steps):
            assert engine.step() == []
        assert engine.holds("a")
        engine.cancel("a")
        deltas = finish(engine)
        assert [delta.finish_reason for delta in deltas] == ["cancelled"] * 2
        assert not engine.holds("a")


def test_late_searches_give_the_best_beams_so_far(vlm: VLM) -> None:
    now = [0.0]
    engine = make_engine(vlm)
    engine.clock = lambda: now[0]
    for key in ("runs", "waits"):
        engine.submit(make_request(key, [1, 2], num_beams=3, n=2, max_new_tokens=9, deadline=5.0))
    for _ in range(6):
        assert engine.step() == []
    assert engine.searches.waiting[0].beams is not None
    count = len(engine.searches.waiting[0].beams.running.ids[0])
    assert count > 1
    now[0] = 5.0
    deltas = finish(engine)
    best = search(vlm.llm, make_prompt(vlm.llm, [1, 2], num_beams=3, max_new_tokens=count)).best(2)
    assert [ids_of(deltas, "runs", index) for index in range(2)] == [beam.ids for beam in best]
    assert [last_of(deltas, "runs", index).finish_reason for index in range(2)] == ["deadline"] * 2
    assert isinstance(last_of(deltas, "waits", 1).error, DeadlineError)


def test_clients_take_turns(vlm: VLM) -> None:
    engine = make_engine(vlm)
    for number, client in enumerate("aaabb"):
        engine.submit(make_request(f"{client}{number}", [1], num_beams=2, max_new_tokens=2, client=client))
    engine.submit(make_request("first", [1], num_beams=2, max_new_tokens=2, client="a", priority=-1))
    order = [delta.key for delta in finish(engine) if delta.finish_reason]
    assert order == ["first", "b3", "a0", "b4", "a1", "a2"]


def test_scores_that_are_no_numbers_end_the_search_only() -> None:
    vlm = make_vlm()
    with torch.no_grad():
        vlm.llm.embed.weight[7] = float("nan")
    engine = make_engine(vlm)
    engine.submit(make_request("bad", [7], num_beams=2, max_new_tokens=4))
    engine.submit(make_request("good", [1], num_beams=2, max_new_tokens=4, logit_bias={7: -1000}))
    deltas = finish(engine)
    assert "not finite" in str(last_of(deltas, "bad").error)
    assert len(ids_of(deltas, "good")) == 4


def test_what_is_refused(vlm: VLM) -> None:
    engine = make_engine(vlm, beam_cache_bytes=5000)
    fits = make_request("a", [1], num_beams=2, max_new_tokens=8)
    plan = engine.plan(fits)
    assert (plan.pages, plan.cache_bytes) == (0, 2 * 9 * 128)
    with pytest.raises(CapacityError, match="4 beams of 10 tokens take 5120 bytes, but the engine has 5000"):
        engine.submit(make_request("a", [1], num_beams=4, max_new_tokens=9))
    with pytest.raises(InputError, match="n=3 answers of num_beams=2"):
        replace(fits, n=3)
    for field in ({"prompt_logprobs": 1}, {"constraint": Constraint(kind="regex", value="a")}):
        with pytest.raises(InputError, match="takes neither"):
            replace(fits, **field)  # type: ignore[arg-type]
