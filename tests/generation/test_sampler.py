"""Choosing ids: greedy, seeded, restricted, reported."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from internvl.errors import WeightsError
from internvl.generation.sampler import Sampler, best_ids, choose_batch
from internvl.generation.sampling import (
    MAX_BIAS,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    Sampling,
)


def draw(count: int, logits_V: Tensor, **settings: Any) -> list[int]:
    sampler = Sampler(Sampling(temperature=1.0, **settings))
    return [sampler.choose(logits_V)[0] for _ in range(count)]


def test_greedy_takes_the_best_and_remembers_it() -> None:
    sampler = Sampler(Sampling())
    assert sampler.choose(torch.tensor([0.1, 0.9, 0.5])) == (1, None)
    assert sampler.ids == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_of_the_best(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 1000, dtype=dtype).clamp(max=2)
    rows[1, [7, 300]] = 3  # equals
    rows[2, 400], rows[2, 500] = math.inf, math.nan
    rows[3] = -math.inf
    assert best_ids(rows) == rows.argmax(-1).tolist()
    assert best_ids(rows)[1:4] == [7, 500, 0]


def test_one_seed_one_sequence() -> None:
    logits_V = torch.randn(100)
    assert draw(30, logits_V, seed=7) == draw(30, logits_V, seed=7)
    assert draw(30, logits_V, seed=7) != draw(30, logits_V, seed=8)


def test_a_seed_ignores_and_spares_the_global_generator() -> None:
    logits_V = torch.randn(100)
    torch.manual_seed(1)
    first = draw(30, logits_V, seed=7)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert draw(30, logits_V, seed=7) == first
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)


class Elsewhere(Tensor):
    """Scores on a device without double precision, as Apple's; `cpu` brings them here."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        out = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return out


def test_a_seed_means_the_same_on_devices_without_double_precision() -> None:
    logits_V = torch.randn(2000)
    there_V = logits_V.as_subclass(Elsewhere)
    with pytest.raises(TypeError, match="no float64"):
        there_V.double()
    for settings in ({}, {"top_p": 0.9, "top_k": 100, "min_p": 0.01, "repetition_penalty": 1.2}):
        assert draw(20, there_V, seed=7, **settings) == draw(20, logits_V, seed=7, **settings)


def test_without_a_seed_the_global_generator_decides() -> None:
    logits_V = torch.randn(100)
    torch.manual_seed(1)
    first, second = draw(30, logits_V), draw(30, logits_V)
    torch.manual_seed(1)
    assert draw(30, logits_V) == first != second


@pytest.mark.parametrize("repetition", [MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY])
@pytest.mark.parametrize("penalty", [-MAX_PENALTY, MAX_PENALTY])
@pytest.mark.parametrize("bias", [-MAX_BIAS, MAX_BIAS])
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1.0, MAX_TEMPERATURE])
def test_scores_stay_finite_at_all_limits(
    temperature: float, bias: float, penalty: float, repetition: float
) -> None:
    sampler = Sampler(
        Sampling(
            temperature=temperature,
            logit_bias={0: bias, 1: bias},
            presence_penalty=penalty,
            frequency_penalty=penalty,
            repetition_penalty=repetition,
            min_new_tokens=200,
            max_new_tokens=200,
            stop_ids=(3,),
            seed=0,
        )
    )
    logits_V = torch.tensor([1e4, -1e4, 1.0, 2.0])
    assert sampler.choose(logits_V)[0] != 3
    sampler.ids = [0, 1, 2] * 100_000
    assert sampler.choose(logits_V)[0] in range(4)


def test_frequencies_follow_probabilities() -> None:
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    drawn = draw(4000, probs.log(), seed=3)
    found = torch.bincount(torch.tensor(drawn), minlength=5) / 4000
    assert found[1] == 0
    torch.testing.assert_close(found, probs, atol=0.03, rtol=0)


def test_temperature_flattens() -> None:
    logits_V = torch.tensor([2.0, 0.0])
    hot, cold = Sampler(Sampling(temperature=50.0, seed=1)), Sampler(Sampling(temperature=0.1, seed=1))
    assert 0.35 < sum(hot.choose(logits_V)[0] for _ in range(400)) / 400 < 0.6
    assert {cold.choose(logits_V)[0] for _ in range(100)} == {0}


@pytest.mark.parametrize("setting", [{"top_k": 2}, {"top_p": 0.75}, {"min_p": 0.5}])
def test_filtered_ids_never_appear(setting: dict[str, Any]) -> None:
    logits_V = torch.tensor([0.1, 0.4, 0.1, 0.4]).log()
    assert set(draw(200, logits_V, seed=5, **setting)) == {1, 3}


def test_one_candidate_is_greedy() -> None:
    logits_V = torch.randn(50)
    assert set(draw(20, logits_V, top_k=1)) == {int(logits_V.argmax())}


def test_repetition_penalty_sees_given_and_generated_ids() -> None:
    logits_V = torch.tensor([3.0, 2.9, 2.8, 0.1])
    sampler = Sampler(Sampling(repetition_penalty=2.0), seen_ids=[0])
    assert [sampler.choose(logits_V)[0] for _ in range(3)] == [1, 2, 0]
    fresh = Sampler(Sampling(repetition_penalty=2.0))
    assert fresh.choose(logits_V)[0] == 0


def test_no_stop_before_min_new_tokens() -> None:
    sampler = Sampler(Sampling(min_new_tokens=2, stop_ids=(0,)))
    assert [sampler.choose(torch.tensor([3.0, 2.0]))[0] for _ in range(3)] == [1, 1, 0]


def test_logprobs_are_the_models_own() -> None:
    logits_V = torch.tensor([3.0, 2.0, 1.0])
    sampler = Sampler(Sampling(logprobs=2, logit_bias={2: 100.0}, temperature=0.5, seed=0))
    chosen, report = sampler.choose(logits_V)
    assert chosen == 2
    assert report is not None
    assert report.logprob == pytest.approx(float(logits_V.log_softmax(-1)[2]))
    assert [index for index, _ in report.top] == [0, 1]


def test_half_precision_scores_are_judged_in_single() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=0))
    assert sampler.choose(torch.tensor([0.0, 20.0], dtype=torch.bfloat16))[0] == 1


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"logit_bias": {1: 1.0}}])
def test_scores_that_are_no_numbers(settings: dict[str, Any]) -> None:
    logits_V = torch.tensor([1.0, math.nan, 2.0])
    with pytest.raises(WeightsError, match="not finite"):
        Sampler(Sampling(**settings)).choose(logits_V)
    with pytest.raises(WeightsError, match="not finite"):
        choose_batch([Sampler(Sampling(**settings))] * 2, torch.stack((torch.zeros(3), logits_V)))


def test_a_batch_chooses_as_its_members() -> None:
    logits_BV = torch.randn(3, 40)
    plain = choose_batch([Sampler(Sampling()) for _ in range(3)], logits_BV)
    mixed = [Sampler(Sampling()), Sampler(Sampling(temperature=1.0, seed=4)), Sampler(Sampling(logprobs=1))]
    chosen = choose_batch(mixed, logits_BV)
    assert [index for index, _ in plain] == logits_BV.argmax(-1).tolist()
    assert (chosen[0], chosen[2][0]) == (plain[0], plain[2][0])
    assert chosen[1] == Sampler(Sampling(temperature=1.0, seed=4)).choose(logits_BV[1])
    assert [sampler.ids for sampler in mixed] == [[index] for index, _ in chosen]


@pytest.mark.parametrize("temperature", [1e-308, 1e-40, 1e-10])
def test_the_coldest_temperatures_choose_the_best(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_p=0.9, seed=0), [])
    assert sampler.choose(torch.tensor([1.0, 30.0, 2.0]))[0] == 1
