"""Bytes of data URLs. That pictures come from every kind of source is shown in `test_image`."""

from __future__ import annotations

import base64
import binascii
import tracemalloc
from contextlib import suppress
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.processing.source import decoded, unquoted


@given(st.text(st.sampled_from("%0aF9gG \xff"), max_size=40))
def test_percent_signs_are_read_as_the_standard_library_does(text: str) -> None:
    assert unquoted(text.encode()) == unquote_to_bytes(text)


def test_base64_may_have_white_space_and_percent_signs() -> None:
    assert decoded("data:image/png;BASE64", b"a%2Fb \r\n\t%0A\x0b\x0cc") == base64.b64decode("a/bc")
    assert decoded("data:", b"a%2Fb c") == b"a/b c"
    with pytest.raises(binascii.Error):
        decoded("data:;base64", b"a%2Fb%00c")


@pytest.mark.parametrize("text", [b"%" * 300_000, b"%41" * 100_000, b"AA A" * 100_000, b"AA%20A" * 50_000])
def test_nothing_but_percent_signs_or_spaces_takes_a_few_times_their_memory(text: bytes) -> None:
    tracemalloc.start()
    try:
        with suppress(binascii.Error):
            decoded("data:;base64", text)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(text)
    finally:
        tracemalloc.stop()
