"""Specifications of data that no run could follow are refused where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from internvl.data.spec import BadSamples, Batching, DataSpec
from internvl.errors import InputError


@pytest.mark.parametrize("limit", [-0.1, 1.5, float("nan")])
def test_the_limit_of_bad_samples_is_a_share(limit: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        BadSamples(limit=limit)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "give examples or packs"),
        ({"examples": 2, "packs": 2}, "give examples or packs"),
        ({"examples": 0}, "counts from 1"),
        ({"packs": 0}, "counts from 1"),
        ({"packs": 2, "max_tokens": 0}, "counts from 1"),
        ({"packs": 2, "max_tiles": 0}, "counts from 1"),
    ],
)
def test_batching_is_by_examples_or_packs(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batching(**numbers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, r"data\.workers counts from 1, got 0"),
        ({"max_length": 0}, r"data\.max_length counts from 1, got 0"),
        ({"read_ahead": 0}, r"data\.read_ahead counts from 1, got 0"),
        (
            {"batching": Batching(packs=2), "group_by_length": True},
            "group_by_length is for batching by examples",
        ),
    ],
)
def test_data_that_cannot_be_read_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataSpec(**options)
