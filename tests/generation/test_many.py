"""Several answers drawn to each prompt at once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from internvl.generation.generate import generate
from internvl.generation.many import draw_answers
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.attention import Packed
from tests.generation.tiny import make_decoder

IDS = ([1, 2, 3, 4, 5], [6], [7, 8, 9])


def test_a_model_that_is_sure_gives_its_greedy_answer_each_time() -> None:
    llm = make_decoder()
    with torch.no_grad():
        llm.head.weight *= 1000
    prompts = [llm.embed(torch.tensor(row)).detach() for row in IDS]
    greedy = generate(llm, [Prompt(x_TD, Sampling(max_new_tokens=6)) for x_TD in prompts])
    stop = greedy[1].ids[2]
    expected = []
    for one in greedy:
        ids = list(one.ids)
        ids = ids[: ids.index(stop) + 1] if stop in ids else ids
        expected += [ids, ids]
    assert draw_answers(llm, prompts, 2, max_new_tokens=6, stop_ids={stop}) == expected


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_answers_are_drawn_from_the_distribution(temperature: float) -> None:
    llm = make_decoder()
    x_TD = llm.embed(torch.tensor(IDS[0])).detach()
    torch.manual_seed(0)
    drawn = draw_answers(llm, [x_TD], 3000, max_new_tokens=1, stop_ids=(), temperature=temperature)
    first = Counter(ids[0] for ids in drawn)
    with torch.no_grad():
        states = llm(x_TD, torch.arange(5), Packed([5]))
        share_V = (llm.logits(states[-1:])[0] / temperature).softmax(-1)
    best = int(share_V.argmax())
    assert abs(first[best] / 3000 - float(share_V[best])) < 0.03
    assert len(first) > 5


def test_the_same_seed_draws_the_same() -> None:
    llm = make_decoder()
    prompts = [llm.embed(torch.tensor(row)).detach() for row in IDS]
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw_answers(llm, prompts, 3, max_new_tokens=4, stop_ids={0}))
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(drawn[0]), max(map(len, drawn[0]))] == [9, 4]
