"""Tokenizer files made from a vocabulary, read by our tokenizer and by the `tokenizers` package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from internvl.checkpoints.gguf_tokenizer import PRE_TOKENIZERS, VocabularyFile, tokenizer_files
from internvl.config import ADDED_TOKENS
from internvl.errors import TokenizerError
from internvl.processing.tokenizer import load_tokenizer

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = [chr(byte) for byte in BYTES] + [chr(256 + index) for index in range(256 - len(BYTES))]


def vocabulary(pre: str = "smollm") -> VocabularyFile:
    return VocabularyFile(
        tokens=("<|end|>", *ALPHABET, "ab", "abc", "Ġab"),
        special=("<|end|>",),
        merges=("a b", "ab c", "Ġ ab"),
        pre=pre,
        bos=None,
        eos="<|end|>",
        pad="<|end|>",
        adds_bos=False,
    )


def test_added_tokens_follow_the_vocabulary_in_order(tmp_path: Path) -> None:
    for name, text in tokenizer_files(vocabulary(), ADDED_TOKENS).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    first = len(vocabulary().tokens)
    assert [tokenizer.token_id(token) for token in ADDED_TOKENS] == list(
        range(first, first + len(ADDED_TOKENS))
    )
    assert (tokenizer.size, tokenizer.eos_id, tokenizer.bos_id) == (first + len(ADDED_TOKENS), 0, None)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_ours_and_the_tokenizers_package_agree(tmp_path: Path, pre: str) -> None:
    files = tokenizer_files(vocabulary(pre), ADDED_TOKENS)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ours, theirs = load_tokenizer(tmp_path), Tokenizer.from_str(files["tokenizer.json"])
    for text in ("abc ab 12345", "<img>abc</img>\nab", "é 你好 ab's", "  a\n\n b<|end|>"):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids, skip_special=False) == text


def test_smollm_splits_digits() -> None:
    pieces = Tokenizer.from_str(tokenizer_files(vocabulary())["tokenizer.json"]).pre_tokenizer
    assert [piece for piece, _ in pieces.pre_tokenize_str("a 123")] == ["a", "Ġ", "1", "2", "3"]


def test_a_token_cannot_be_added_twice() -> None:
    with pytest.raises(TokenizerError, match="abc"):
        tokenizer_files(vocabulary(), ("abc",))


def test_files_are_json_with_the_special_tokens() -> None:
    settings = json.loads(tokenizer_files(vocabulary(), ("<img>",))["tokenizer_config.json"])
    assert settings["additional_special_tokens"] == ["<|end|>", "<img>"]
    assert settings["eos_token"] == "<|end|>"
