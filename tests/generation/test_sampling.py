"""Settings are checked when they are made, and the message names the field."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from internvl.errors import InputError
from internvl.generation.sampling import Sampling


def test_defaults_are_plain_greedy() -> None:
    sampling = Sampling()
    assert sampling.is_plain_greedy
    assert (sampling.temperature, sampling.num_beams, sampling.max_new_tokens) == (0.0, 1, 256)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", 1e300),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", None),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {3: -math.inf}),
        ("logit_bias", {-3: 1.0}),
        ("logit_bias", {"3": 1.0}),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.5),
        ("seed", True),
        ("logprobs", -1),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("min_new_tokens", -1),
        ("stop_ids", (-1,)),
        ("stop_ids", (2.0,)),
        ("stop", ("",)),
        ("stop", (7,)),
        ("stop", 7),
        ("stop_ids", 5),
        ("stop_ids", None),
        ("logit_bias", [1]),
        ("logit_bias", 1),
        ("early_stopping", "no"),
        ("early_stopping", 1),
        ("num_beams", 0),
        ("length_penalty", math.nan),
        ("length_penalty", 5000.0),
        ("length_penalty", -5000.0),
        ("frequency_penalty", 1e300),
        ("presence_penalty", -101),
        ("presence_penalty", 10**400),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 101.0),
        ("logit_bias", {3: -1e38}),
        ("logit_bias", {3: 10**400}),
    ],
)
def test_values_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens 5 is above max_new_tokens 4"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams=2 .* temperature"),
        ({"num_beams": 3, "stop": ("x",)}, "num_beams=3 .* stop strings"),
        ({"num_beams": 2, "logprobs": 1}, "num_beams=2 .* logprobs"),
    ],
)
def test_contradictions(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


def test_values_at_the_limits_are_taken() -> None:
    sampling = Sampling(
        top_p=1.0, min_p=1.0, top_k=10**9, seed=2**63 - 1, temperature=1e-3, length_penalty=-2
    )
    assert sampling.length_penalty == -2


def test_sequences_become_tuples_and_one_stop_string_is_one() -> None:
    sampling = Sampling(stop="end", stop_ids=[1, 2])  # type: ignore[arg-type]
    assert sampling.stop == ("end",)
    assert sampling.stop_ids == (1, 2)


def test_none_of_the_protocol_is_none() -> None:
    assert Sampling(stop=None, logit_bias=None) == Sampling()  # type: ignore[arg-type]


def test_is_frozen_copied_and_picklable() -> None:
    bias = {1: 2.0}
    sampling = Sampling(logit_bias=bias)
    bias[1] = 9.0
    assert sampling.logit_bias == {1: 2.0}
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"logprobs": 1},
        {"logit_bias": {1: 1.0}},
        {"repetition_penalty": 1.1},
        {"presence_penalty": -0.1},
        {"frequency_penalty": 0.1},
        {"min_new_tokens": 1},
    ],
)
def test_not_plain_greedy(settings: dict[str, Any]) -> None:
    assert not Sampling(**settings).is_plain_greedy
