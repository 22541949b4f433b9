"""Bytes of data URLs. That pictures come from every kind of source is shown in `test_image`."""

from __future__ import annotations

import tracemalloc
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.processing.source import unquoted


@given(st.text(st.sampled_from("%0aF9gG \xff"), max_size=40))
def test_percent_signs_are_read_as_the_standard_library_does(text: str) -> None:
    assert unquoted(text.encode()) == unquote_to_bytes(text)


@pytest.mark.parametrize("text", [b"%" * 300_000, b"%41" * 100_000])
def test_nothing_but_percent_signs_takes_a_few_times_their_memory(text: bytes) -> None:
    tracemalloc.start()
    try:
        unquoted(text)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(text)
    finally:
        tracemalloc.stop()
