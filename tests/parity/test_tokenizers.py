"""Tokenizers against transformers' own, on vocabularies trained here and texts drawn at random."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from internvl.processing.tokenizer import load_tokenizer
from tests.processing import tiny_tokenizers as tiny

ATOMS = (
    *(
        "<img>",
        "</img>",
        "<IMG_CONTEXT>",
        "<ref>",
        "</ref>",
        "<|im_start|>",
        "<|im_end|>",
        "<|user|>",
        "<s>",
        "</s>",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "Hello",
        "the dog",
        "image",
        "I'll",
        " .",
        "123",
        "3.14",
        "a",
        "b",
    ),
    *("日本語", "书生·万象", "🐼", "é", "e\u0301", "ﬁ", "½", "<", ">", "|", "?", "\u3000", "_x"),
)
ADDED = tuple(map(tiny.row, (*tiny.IMAGE_TOKENS, "<|user|>")))


def texts(seed: int, count: int = 200) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choice(ATOMS) for _ in range(generator.randint(0, 9))) for _ in range(count)]


def test_qwen2_equals_transformers(tmp_path: Path) -> None:
    ours = load_tokenizer(tiny.qwen2(tmp_path))
    theirs = Qwen2Tokenizer.from_pretrained(tmp_path)
    for text in texts(0):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)


def test_random_ids_of_qwen2_decode_as_in_transformers(tmp_path: Path) -> None:
    ours = load_tokenizer(tiny.qwen2(tmp_path))
    theirs = Qwen2Tokenizer.from_pretrained(tmp_path)
    generator = random.Random(0)
    for _ in range(200):
        ids = [generator.randrange(ours.size) for _ in range(8)]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokenizer_json_equals_transformers(tmp_path: Path) -> None:
    ours = load_tokenizer(tiny.fast(tmp_path))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in texts(1):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)


@pytest.mark.parametrize("strips", [False, True])
def test_legacy_pieces_equal_the_slow_tokenizer(tmp_path: Path, strips: bool) -> None:
    added = tuple(token | {"rstrip": strips} for token in ADDED)
    ours = load_tokenizer(tiny.llama(tmp_path, added=added))
    theirs = SentencePieceBackend.from_pretrained(tmp_path)
    for text in texts(2):
        ids = theirs.convert_tokens_to_ids(theirs.tokenize(text))
        assert ours.encode(text, bos=False).ids == ids


def test_newer_pieces_equal_transformers(tmp_path: Path) -> None:
    ours = load_tokenizer(tiny.llama(tmp_path, legacy=False, added=ADDED))
    theirs = LlamaTokenizer.from_pretrained(tmp_path)
    for text in texts(3):
        # Unlike the slow tokenizer, this one adds no space of its own to one that is there.
        text = text.lstrip(" ")
        assert ours.encode(text, bos=False).ids == theirs(text, add_special_tokens=False)["input_ids"]
