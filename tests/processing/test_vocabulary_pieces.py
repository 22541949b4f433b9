from __future__ import annotations

from pathlib import Path

import pytest

from internvl.processing.tokenizer import Tokenizer, load_tokenizer
from internvl.processing.vocabulary_pieces import clean_up
from tests.processing import tiny_tokenizers as tiny


@pytest.fixture
def internlm2(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(tiny.internlm2(tmp_path))


def test_old_name_of_a_special_token_is_spelled_when_a_user_writes_it(internlm2: Tokenizer) -> None:
    text = f"a{tiny.UNUSED[0]}b"
    end = internlm2.token_id("<|im_end|>")
    assert end in internlm2.encode(text).ids
    escaped = internlm2.encode(text, plain=[(1, 5)])
    assert end not in escaped.ids
    assert internlm2.decode(escaped.ids) == text
    assert set(escaped.offsets[2:-1]) == {(1, 1 + len(tiny.UNUSED[0]))}


def test_unused_piece_without_a_role_stays(internlm2: Tokenizer) -> None:
    text = tiny.UNUSED[3]
    assert internlm2.encode(text, plain=[(0, len(text))]) == internlm2.encode(text)


def test_offsets_are_characters_not_bytes(internlm2: Tokenizer) -> None:
    encoding = internlm2.encode("书🐼a", bos=False)
    ends = [end for _, end in encoding.offsets]
    assert encoding.offsets[-1] == (2, 3)
    assert ends.count(1) >= 1
    assert max(ends) == 3
    assert len(encoding.ids) > 3


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a , b . c ? d !", "a, b. c? d!"),
        ("do n't I 'm it 's we 've they 're", "don't I'm it's we've they're"),
        ("a ' b", "a'b"),
    ],
)
def test_clean_up(text: str, cleaned: str) -> None:
    assert clean_up(text) == cleaned
