"""Answers: how they end, what they report, and that nothing stays behind when they are interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from internvl.errors import ContextOverflowError, InputError, WeightsError
from internvl.generation.generate import Batch, generate, stream
from internvl.generation.prompt import Prompt
from internvl.generation.result import Generation
from internvl.models.decoder import Decoder
from tests.generation.tiny import letters, make_decoder, make_prompt


@pytest.fixture(scope="module")
def llm() -> Decoder:
    return make_decoder()


def free_run(llm: Decoder, ids: Sequence[int], count: int = 12) -> tuple[int, ...]:
    """The greedy answer that nothing stops."""
    return generate(llm, [make_prompt(llm, ids, max_new_tokens=count)])[0].ids


def test_ends_at_the_limit(llm: Decoder) -> None:
    [answer] = generate(llm, [make_prompt(llm, [1, 2, 3], max_new_tokens=12)], decode=letters)
    assert (len(answer.ids), answer.finish_reason, answer.text) == (12, "length", letters(answer.ids))
    assert (answer.logprobs, answer.score) == ((), None)


def test_ends_at_a_stop_id_which_adds_no_text(llm: Decoder) -> None:
    free = free_run(llm, [1, 2, 3])
    stop = free[5]
    first = free.index(stop)
    [answer] = generate(
        llm, [make_prompt(llm, [1, 2, 3], stop_ids=(stop,), max_new_tokens=12)], decode=letters
    )
    expected = Generation(ids=free[: first + 1], finish_reason="stop", text=letters(free[:first]))
    assert answer == expected


def test_ends_before_a_stop_string(llm: Decoder) -> None:
    free = letters(free_run(llm, [1, 2, 3]))
    stop = free[4:7]
    begin = free.index(stop)
    prompt = make_prompt(llm, [1, 2, 3], stop=stop, max_new_tokens=12)
    [answer] = generate(llm, [prompt], decode=letters)
    assert (answer.text, answer.finish_reason) == (free[:begin], "stop")
    assert letters(answer.ids) == free[: begin + 3]


def test_a_stop_string_that_ends_with_the_limit(llm: Decoder) -> None:
    free = letters(free_run(llm, [1, 2, 3]))
    prompt = make_prompt(llm, [1, 2, 3], stop=free[:6], max_new_tokens=6)
    [answer] = generate(llm, [prompt], decode=letters)
    assert (answer.text, answer.finish_reason) == ("", "stop")


def test_text_held_back_comes_at_the_limit(llm: Decoder) -> None:
    free = letters(free_run(llm, [1, 2, 3]))
    prompt = make_prompt(llm, [1, 2, 3], stop=free[2:6] + "?", max_new_tokens=6)
    tokens = list(stream(llm, [prompt], decode=letters))
    assert "".join(token.text for token in tokens) == free[:6]
    assert tokens[-1].finish_reason == "length"


def test_min_new_tokens_holds_the_stop_off(llm: Decoder) -> None:
    stop = free_run(llm, [1, 2, 3])[0]
    prompt = make_prompt(llm, [1, 2, 3], stop_ids=(stop,), min_new_tokens=4, max_new_tokens=12)
    [answer] = generate(llm, [prompt])
    assert len(answer.ids) >= 4
    assert stop not in answer.ids[:4]


def test_logprobs_belong_to_the_ids(llm: Decoder) -> None:
    [answer] = generate(llm, [make_prompt(llm, [4, 5], logprobs=3, max_new_tokens=5)])
    assert [report.id for report in answer.logprobs] == list(answer.ids)
    assert all(report.top[0] == (report.id, report.logprob) for report in answer.logprobs)
    assert {len(report.top) for report in answer.logprobs} == {3}


def test_stream_is_generate_in_pieces(llm: Decoder) -> None:
    prompts = [make_prompt(llm, ids, max_new_tokens=count) for ids, count in (([1, 2, 3], 4), ([9], 7))]
    tokens = list(stream(llm, prompts, decode=letters))
    for number, answer in enumerate(generate(llm, prompts, decode=letters)):
        mine = [token for token in tokens if token.sequence == number]
        assert tuple(token.id for token in mine) == answer.ids
        assert "".join(token.text for token in mine) == answer.text
        assert [token.finish_reason for token in mine] == [None] * (len(mine) - 1) + [answer.finish_reason]


def test_no_prompts_no_answers(llm: Decoder) -> None:
    assert generate(llm, []) == []
    assert list(stream(llm, [])) == []


def test_cancelled_between_steps(llm: Decoder) -> None:
    answers = itertools.count()
    prompts = [make_prompt(llm, [1, 2, 3], max_new_tokens=2), make_prompt(llm, [9], max_new_tokens=12)]
    found = generate(llm, prompts, decode=letters, is_cancelled=lambda: next(answers) == 4)
    assert [(len(answer.ids), answer.finish_reason) for answer in found] == [(2, "length"), (5, "cancelled")]
    assert found[1].text == letters(found[1].ids)


def test_cancelled_gives_out_what_was_held_back(llm: Decoder) -> None:
    free = letters(free_run(llm, [1, 2, 3]))
    prompt = make_prompt(llm, [1, 2, 3], stop=free[:4], max_new_tokens=12)
    [answer] = generate(llm, [prompt], decode=letters, is_cancelled=lambda: True)
    assert (answer.text, answer.finish_reason) == (free[0], "cancelled")


def test_what_cannot_be_continued_is_refused_by_the_call_itself(llm: Decoder) -> None:
    good, long = make_prompt(llm, [1], max_new_tokens=1), make_prompt(llm, [1] * 90, max_new_tokens=20)
    for start in (generate, stream):
        with pytest.raises(ContextOverflowError, match="110"):
            start(llm, [good, long])
        with pytest.raises(InputError, match="stop strings need the tokenizer's decode"):
            start(llm, [make_prompt(llm, [1], stop="x", max_new_tokens=1)])
    with pytest.raises(InputError, match="num_beams=2: beam search knows its answer only at the end"):
        stream(llm, [make_prompt(llm, [1], num_beams=2, max_new_tokens=1)])


def test_weights_that_are_no_numbers() -> None:
    llm = make_decoder()
    torch.nn.init.constant_(llm.norm.weight, float("nan"))
    for settings in ({}, {"temperature": 1.0}, {"num_beams": 2}):
        with pytest.raises(WeightsError, match="not finite"):
            generate(llm, [make_prompt(llm, [1, 2], max_new_tokens=3, **settings)])


def test_between_steps_nothing_is_switched_off(llm: Decoder) -> None:
    for token in stream(llm, [make_prompt(llm, [1, 2, 3], max_new_tokens=3)]):
        assert not torch.is_inference_mode_enabled()
        assert torch.zeros(token.id, requires_grad=True).sum().requires_grad


def test_closing_the_iterator_ends_the_work(llm: Decoder) -> None:
    calls: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return letters(ids)

    tokens = stream(llm, [make_prompt(llm, [1, 2, 3], max_new_tokens=12)], decode=decode)
    next(tokens)
    tokens.close()
    assert list(tokens) == []
    assert len(calls) == 1


def test_ctrl_c_leaves_nothing_behind(llm: Decoder) -> None:
    def decode(ids: Sequence[int]) -> str:
        if len(ids) == 3:
            raise KeyboardInterrupt
        return letters(ids)

    prompt = make_prompt(llm, [1, 2, 3], max_new_tokens=12)
    expected = free_run(llm, [1, 2, 3])
    tokens = stream(llm, [prompt], decode=decode)
    shown = [next(tokens).id, next(tokens).id]
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    assert tuple(shown) == expected[:2]
    assert not torch.is_inference_mode_enabled()
    assert generate(llm, [prompt])[0].ids == expected


def test_a_batch_may_be_stepped_and_cancelled_by_hand(llm: Decoder) -> None:
    batch = Batch(
        llm, [make_prompt(llm, [1, 2, 3], max_new_tokens=1), make_prompt(llm, [9], max_new_tokens=5)]
    )
    assert [token.sequence for token in batch.step()] == [0, 1]
    assert batch.live == [1]
    assert [token.sequence for token in batch.step()] == [1]
    batch.cancel()
    assert [answer.result().finish_reason for answer in batch.answers] == ["length", "cancelled"]
    assert batch.live == []


def test_prompts_may_need_gradients(llm: Decoder) -> None:
    prompt = make_prompt(llm, [1, 2, 3], max_new_tokens=3)
    x_TD = llm.embed(torch.tensor([1, 2, 3]))
    assert x_TD.requires_grad
    assert generate(llm, [Prompt(x_TD, prompt.sampling)]) == generate(llm, [prompt])


def test_half_precision(llm: Decoder) -> None:
    small = make_decoder().to(torch.bfloat16)
    prompt = make_prompt(small, [1, 2, 3], max_new_tokens=4)
    assert prompt.x_TD.dtype == torch.bfloat16
    sampled = replace(prompt, sampling=replace(prompt.sampling, temperature=0.5, seed=1))
    assert [len(answer.ids) for answer in generate(small, [prompt, sampled])] == [4, 4]
