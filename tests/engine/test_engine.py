"""Requests in, pieces of answers out: how they end, what they report, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.engine.engine import Engine
from internvl.engine.settings import EngineSettings
from internvl.errors import (
    CapacityError,
    ContextOverflowError,
    DeadlineError,
    ImageError,
    InputError,
    PromptError,
    QueueFullError,
)
from internvl.models.vlm import VLM
from tests.engine.tiny import (
    SLOT,
    TOKENS,
    expected,
    finish,
    ids_of,
    last_of,
    make_engine,
    make_image,
    make_request,
    make_vlm,
)


def test_ids_text_reason_and_usage(vlm: VLM) -> None:
    engine = make_engine(vlm)
    request = make_request("a", [1, 2, 3], [make_image(1, 2)], max_new_tokens=6)
    engine.submit(request)
    deltas = finish(engine)
    answer, last = expected(vlm, request), last_of(deltas, "a")
    assert ids_of(deltas, "a") == answer.ids
    assert "".join(delta.text for delta in deltas) == answer.text
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2 * TOKENS + 3, 6)
    assert (last.usage.cached_tokens, last.usage.image_tokens) == (0, 2 * TOKENS)


def test_stop_ids_and_stop_strings(vlm: VLM) -> None:
    free = expected(vlm, make_request("a", [1, 2, 3], max_new_tokens=12))
    engine = make_engine(vlm)
    requests = [
        make_request("id", [1, 2, 3], stop_ids=(free.ids[5],), max_new_tokens=12),
        make_request("text", [1, 2, 3], stop=free.text[4:7], max_new_tokens=12),
    ]
    for request in requests:
        engine.submit(request)
    deltas = finish(engine)
    for request in requests:
        answer = expected(vlm, request)
        assert ids_of(deltas, request.key) == answer.ids
        assert "".join(delta.text for delta in deltas if delta.key == request.key) == answer.text
        assert last_of(deltas, request.key).finish_reason == "stop"


def test_several_answers_compute_their_prompt_once(vlm: VLM) -> None:
    engine = make_engine(vlm)
    request = make_request("a", range(17), n=3, temperature=1.0, seed=5, max_new_tokens=6)
    engine.submit(request)
    deltas = finish(engine)
    answers = [ids_of(deltas, "a", index) for index in range(3)]
    for index, ids in enumerate(answers):
        alone = replace(request, n=1, sampling=replace(request.sampling, seed=5 + index))
        assert ids == expected(vlm, alone).ids
    assert len(set(answers)) == 3
    assert engine.stats().prefix_hits == 32
    usages = [delta.usage for delta in deltas if delta.usage]
    assert [(one.prompt_tokens, one.completion_tokens, one.cached_tokens) for one in usages] == [(17, 18, 0)]
    assert deltas[-1].usage is not None


def test_penalties_bias_and_logprobs_are_those_of_generate(vlm: VLM) -> None:
    engine = make_engine(vlm)
    ways = [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {4: 30.0}, "logprobs": 2},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 9, "seed": 1, "logprobs": 1},
        {"temperature": 1.5, "min_p": 0.1, "seed": 2, "min_new_tokens": 5, "stop_ids": (1, 2, 3)},
    ]
    requests = [
        make_request(str(number), [1, 2, 3], max_new_tokens=8, **way) for number, way in enumerate(ways)
    ]
    for request in requests:
        engine.submit(request)
    deltas = finish(engine)
    for request in requests:
        answer = expected(vlm, request)
        assert ids_of(deltas, request.key) == answer.ids
        found = [delta.token.logprob for delta in deltas if delta.key == request.key and delta.token]
        for mine, theirs in zip([report for report in found if report], answer.logprobs, strict=True):
            assert mine.id == theirs.id
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"max_step_tokens": 8}, {"num_pages": 9, "max_running": 2}])
def test_prompt_logprobs(vlm: VLM, settings: dict[str, int]) -> None:
    engine = make_engine(vlm, **settings)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
    engine.submit(make_request("other", range(12), max_new_tokens=20))
    engine.submit(make_request("a", prompt, prompt_logprobs=2, max_new_tokens=2))
    deltas = finish(engine)
    (reports,) = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs)
    assert reports[0] is None
    assert [report.id for report in reports[1:] if report] == prompt[1:]
    for position in (1, 7, 14):
        forced = make_request("b", prompt[:position], max_new_tokens=1, logprobs=2)
        best = expected(vlm, forced).logprobs[0].top
        report = reports[position]
        assert report is not None
        assert [id for id, _ in report.top] == [id for id, _ in best]
        assert [value for _, value in report.top] == pytest.approx([value for _, value in best], abs=1e-4)


def test_the_same_question_again_is_nearly_all_cached(vlm: VLM) -> None:
    engine = make_engine(vlm)
    for key in ("first", "again"):
        engine.submit(make_request(key, [1, 2, 3], [make_image(1, 3)], max_new_tokens=3))
        deltas = finish(engine)
        usage = last_of(deltas, key).usage
        assert usage is not None
        assert usage.cached_tokens == (0 if key == "first" else 12)
    assert engine.stats().tiles == 3  # pictures whose positions are all known are not even looked up
    assert engine.stats().prefix_hits == 12


def test_a_conversation_goes_on_where_it_was(vlm: VLM) -> None:
    engine = make_engine(vlm)
    first = make_request("a", range(10), max_new_tokens=6)
    engine.submit(first)
    answer = ids_of(finish(engine), "a")
    second = make_request("b", [*first.ids, *answer, 1, 2], max_new_tokens=4)
    engine.submit(second)
    deltas = finish(engine)
    assert ids_of(deltas, "b") == expected(vlm, second).ids
    assert last_of(deltas, "b").usage.cached_tokens == 12  # type: ignore[union-attr]  # of 10 + 5 computed


def test_two_pictures_of_one_size_with_one_prompt_keep_their_answers(vlm: VLM) -> None:
    engine = make_engine(vlm)
    requests = [
        make_request(f"{seed}-{turn}", [2, 7], [make_image(seed)], max_new_tokens=8)
        for turn in range(2)
        for seed in (1, 2, 3)
    ]
    for request in requests:
        engine.submit(request)
        if request.key == "3-0":
            finish_first = finish(engine)
    deltas = finish_first + finish(engine)
    answers = {request.key: ids_of(deltas, request.key) for request in requests}
    assert all(answers[request.key] == expected(vlm, request).ids for request in requests)
    assert len({answers[f"{seed}-0"] for seed in (1, 2, 3)}) == 3
    assert engine.stats().prefix_hits > 0


def test_tiles_that_are_the_same_are_encoded_once(vlm: VLM) -> None:
    blank = make_image(1)
    twice = replace(make_image(2, 2), key=b"other", tiles_N3HW=blank.tiles_N3HW.repeat(2, 1, 1, 1))
    engine = make_engine(vlm)
    requests = [
        make_request("a", [1], [blank, twice], max_new_tokens=3),
        make_request("b", [2], [blank], max_new_tokens=3),
    ]
    for request in requests:
        engine.submit(request)
    deltas = finish(engine)
    assert engine.stats().tiles == 1
    assert ids_of(deltas, "a") == expected(vlm, requests[0]).ids


def test_pictures_do_not_hold_up_who_has_none(vlm: VLM) -> None:
    engine = make_engine(vlm, max_step_tiles=1)
    engine.submit(make_request("many", [1], [make_image(1, 6)], max_new_tokens=2))
    engine.submit(make_request("none", [1, 2], max_new_tokens=5))
    deltas = [delta for _ in range(5) for delta in engine.step()]
    assert {delta.key for delta in deltas} == {"none"}
    assert engine.stats().tiles == 5
    assert last_of(finish(engine), "many").finish_reason == "length"


def test_cancelling_at_any_moment(vlm: VLM) -> None:
    request = make_request("a", range(20), [make_image(1, 3)], max_new_tokens=6)
    for num_steps in range(9):
        engine = make_engine(vlm, max_step_tiles=1, max_step_tokens=8)
        engine.submit(request)
        before = [delta for _ in range(num_steps) for delta in engine.step()]
        engine.cancel("a")
        engine.cancel("a")
        engine.cancel("unknown")
        deltas = before + finish(engine)
        assert last_of(deltas, "a").finish_reason == "cancelled"
        assert ids_of(deltas, "a") == expected(vlm, request).ids[: len(ids_of(deltas, "a"))]
        assert engine.stats().pages_used == 0


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_deadlines_end_waiting_and_running_requests(vlm: VLM) -> None:
    engine, clock = make_engine(vlm, max_running=1), Clock()
    engine.clock = clock
    engine.submit(make_request("runs", [1], max_new_tokens=20, deadline=105.0))
    engine.submit(make_request("late", [2], max_new_tokens=20, deadline=101.0))
    engine.submit(make_request("free", [3], max_new_tokens=20))
    first = engine.step()
    clock.now = 101.0
    deltas = engine.step()
    late = last_of(deltas, "late")
    assert (late.finish_reason, late.text, late.token) == ("error", "", None)
    assert isinstance(late.error, DeadlineError)
    assert "2 answers are waiting" in str(late.error)
    clock.now = 106.0
    deltas = [*first, *deltas, *finish(engine)]
    runs = last_of(deltas, "runs")
    assert (runs.finish_reason, runs.error) == ("deadline", None)
    assert runs.usage is not None
    assert runs.usage.completion_tokens == len(ids_of(deltas, "runs")) == 2
    assert len(ids_of(deltas, "free")) == 20
    assert engine.stats().pages_used == 0


def test_an_answer_that_has_ended_is_not_lost_with_those_that_are_late(vlm: VLM) -> None:
    engine, clock = make_engine(vlm, max_running=1), Clock()
    engine.clock = clock
    engine.submit(make_request("a", [1], max_new_tokens=3, n=2, deadline=101.0))
    deltas = [delta for _ in range(3) for delta in engine.step()]
    assert last_of(deltas, "a", 0).finish_reason == "length"
    clock.now = 101.0
    (late,) = finish(engine)
    assert (late.index, late.finish_reason, late.error) == (1, "deadline", None)


def test_text_held_back_comes_with_the_end(vlm: VLM) -> None:
    free = expected(vlm, make_request("a", [1, 2, 3], max_new_tokens=4))
    engine = make_engine(vlm)
    engine.submit(make_request("a", [1, 2, 3], stop=free.text[:3] + "?", max_new_tokens=9))
    deltas = [*engine.step(), *engine.step()]
    engine.cancel("a")
    deltas += finish(engine)
    assert [delta.text for delta in deltas] == ["", "", free.text[:2]]


def test_a_small_pool_preempts_and_the_answers_stay(vlm: VLM) -> None:
    engine = make_engine(vlm, num_pages=10, max_running=4)
    requests = [
        make_request(str(k), range(k, k + 6), [make_image(k)], max_new_tokens=16, temperature=k % 2, seed=k)
        for k in range(5)
    ]
    for request in requests:
        engine.submit(request)
    deltas = finish(engine)
    assert engine.stats().preemptions > 0
    assert engine.stats().evictions > 0
    for request in requests:
        assert ids_of(deltas, request.key) == expected(vlm, request).ids


def test_scores_that_are_no_numbers_end_one_answer_only() -> None:
    vlm = make_vlm()
    with torch.no_grad():
        vlm.llm.embed.weight[7] = float("nan")
    engine = make_engine(vlm)
    good, bad = make_request("good", [1, 2], max_new_tokens=4), make_request("bad", [7, 2], max_new_tokens=4)
    engine.submit(bad)
    engine.submit(good)
    deltas = finish(engine)
    assert (last_of(deltas, "bad").finish_reason, ids_of(deltas, "bad")) == ("error", ())
    assert "not finite" in str(last_of(deltas, "bad").error)
    assert len(ids_of(deltas, "good")) == 4


def test_plan_says_what_a_request_takes(vlm: VLM) -> None:
    engine = make_engine(vlm)
    plan = engine.plan(make_request("a", [1, 2, 3], [make_image(1, 2)], max_new_tokens=10))
    assert (plan.prompt_tokens, plan.image_tokens, plan.new_tokens) == (2 * TOKENS + 3, 2 * TOKENS, 10)
    assert (plan.tiles, plan.pages) == (2, 6)
    assert plan.cache_bytes == 6 * 4 * 2 * 2 * 2 * 4 * 4  # positions, keys and values, layers, heads, width
    assert plan.tile_bytes == 2 * 3 * 8 * 8 * 4
    assert plan.vision_bytes == 2 * TOKENS * 16 * 4
    assert not engine.has_work


def test_what_can_never_run_is_refused_with_the_numbers(vlm: VLM) -> None:
    engine = make_engine(vlm, num_pages=8, max_model_len=60, max_waiting_tiles=2)
    image = make_image(1)
    with pytest.raises(ContextOverflowError, match="1 tokens \\+ max_new_tokens 256 = 257"):
        engine.submit(make_request("a", [1]))
    with pytest.raises(ContextOverflowError, match="max_model_len is 60"):
        engine.submit(make_request("a", [1], max_new_tokens=60))
    with pytest.raises(CapacityError, match="take 10 pages of 4, but the engine has 8"):
        engine.submit(make_request("a", [1], max_new_tokens=39))
    with pytest.raises(CapacityError, match="3 tiles in one request"):
        engine.submit(make_request("a", [1], [make_image(1, 3)], max_new_tokens=2))
    with pytest.raises(PromptError, match="no ids"):
        engine.submit(make_request("a", [], max_new_tokens=2))
    with pytest.raises(PromptError, match="ids go from 1 to 99"):
        engine.submit(make_request("a", [1, 99], max_new_tokens=2))
    with pytest.raises(PromptError, match="4 slots for vision tokens, but 2 tiles of 4 give 8"):
        engine.submit(replace(make_request("a", [1], [image], max_new_tokens=2), images=(image, image)))
    with pytest.raises(PromptError, match="spread over positions 0 to 4"):
        engine.submit(
            replace(make_request("a", [1], [image], max_new_tokens=2), ids=(SLOT, 1, SLOT, SLOT, SLOT))
        )
    with pytest.raises(ImageError, match="tiles of shape"):
        engine.submit(
            replace(
                make_request("a", [1], [image], max_new_tokens=2),
                images=(replace(image, tiles_N3HW=torch.zeros(1, 3, 4, 4)),),
            )
        )
    with pytest.raises(InputError, match="stop_ids has id 77"):
        engine.submit(make_request("a", [1], max_new_tokens=2, stop_ids=(77,)))
    with pytest.raises(InputError, match="n must be from 1"):
        make_request("a", [1], n=0)
    assert not engine.has_work


def test_stop_strings_need_decode(vlm: VLM) -> None:
    with pytest.raises(InputError, match="stop strings need"):
        Engine(vlm).submit(make_request("a", [1], stop="x", max_new_tokens=2))


def test_keys_are_unique_until_the_request_has_ended(vlm: VLM) -> None:
    engine = make_engine(vlm)
    for _ in range(2):
        engine.submit(make_request("a", [1], max_new_tokens=2))
        with pytest.raises(InputError, match="'a' is there already"):
            engine.submit(make_request("a", [1], max_new_tokens=2))
        finish(engine)


def test_a_full_queue(vlm: VLM) -> None:
    engine = make_engine(vlm, max_waiting=2, max_waiting_tiles=4)
    engine.submit(make_request("a", [1], [make_image(1, 3)], max_new_tokens=2))
    with pytest.raises(QueueFullError, match="3 tiles are waiting; 2 more exceed the limit of 4"):
        engine.submit(make_request("b", [1], [make_image(2, 2)], max_new_tokens=2))
    engine.submit(make_request("b", [1], max_new_tokens=2))
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        engine.submit(make_request("c", [1], max_new_tokens=2))
    engine.step()
    engine.submit(make_request("c", [1], max_new_tokens=2))
    assert {delta.key for delta in finish(engine)} == {"a", "b", "c"}


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="page_size must be at least 1, got 0"):
        EngineSettings(page_size=0)
    with pytest.raises(InputError, match="max_step_tokens=4 is less than max_running=8"):
        EngineSettings(max_step_tokens=4, max_running=8)
    with pytest.raises(CapacityError, match="less than one page"):
        make_engine(make_vlm(), num_pages=None, cache_bytes=8)


def test_bytes_become_pages(vlm: VLM) -> None:
    page = 4 * 2 * 2 * 2 * 4 * 4
    engine = make_engine(vlm, num_pages=None, cache_bytes=page * 5 + 1)
    assert engine.stats().pages_total == 5
    assert make_engine(vlm, num_pages=None, cache_bytes=2**28).stats().pages_total == 2**16


def test_between_steps_nothing_is_switched_off(vlm: VLM) -> None:
    engine = make_engine(vlm)
    engine.submit(make_request("a", [1], [make_image(1)], max_new_tokens=3))
    finish(engine)
    assert not torch.is_inference_mode_enabled()


def test_half_precision() -> None:
    vlm = make_vlm().to(torch.bfloat16)
    engine = make_engine(vlm)
    engine.submit(make_request("a", [1, 2, 3], [make_image(1)], max_new_tokens=4))
    assert len(ids_of(finish(engine), "a")) == 4
