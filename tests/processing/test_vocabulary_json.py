from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from internvl.errors import TokenizerError
from internvl.processing.tokenizer import load_tokenizer
from internvl.processing.vocabulary_json import edge_tokens
from tests.processing import tiny_tokenizers as tiny


def test_rebuilt_vocabulary_equals_its_tokenizer_json(tmp_path: Path) -> None:
    vocabulary, merges = tiny.byte_level()
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    description = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
        "decoder": bytes_,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [merge.split(" ") for merge in merges]},
    }
    rebuilt = load_tokenizer(tiny.qwen2(tmp_path))
    direct = Tokenizer.from_str(json.dumps(description))
    for text in ("The dog's 3.14\r\n\n x", "e\u0301 日本 🐼", "  I'LL  ", "_a__b"):
        assert rebuilt.encode(text).ids == direct.encode(text).ids


def test_digits_stand_alone_in_one_class_only(tmp_path: Path) -> None:
    gpt2 = load_tokenizer(
        tiny.qwen2(tmp_path / "a", tokenizer_class="GPT2Tokenizer", clean_up_tokenization_spaces=False)
    )
    assert gpt2.decode(gpt2.encode("e\u0301 12").ids) == "e\u0301 12"
    qwen2 = load_tokenizer(tiny.qwen2(tmp_path / "b"))
    assert qwen2.decode(qwen2.encode("e\u0301 12").ids) == "é 12"


def test_prefix_of_the_first_word_only(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3}
    tiny.fast(
        tmp_path,
        model={"type": "BPE", "vocab": vocabulary, "merges": [["▁", "a"]], "unk_token": "<unk>"},
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        added_tokens=[{"id": 4, **tiny.row("<img>")}],
    )
    one = load_tokenizer(tmp_path)
    assert one.encode("a<img>a a").ids == [3, 4, 2, 3]
    assert one.decode([3, 3]) == "a a"


def test_broken_model_is_named(tmp_path: Path) -> None:
    tiny.fast(tmp_path, model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]})
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be used"):
        load_tokenizer(tmp_path)


def test_no_model_is_named(tmp_path: Path) -> None:
    tiny.fast(tmp_path, model=None)
    with pytest.raises(TokenizerError, match="describes no model"):
        load_tokenizer(tmp_path)


def test_merge_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    path = tiny.qwen2(tmp_path) / "merges.txt"
    path.write_text(path.read_text(encoding="utf-8") + "qq zz\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"\('qq', 'zz'\)"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("id", ["b", "3", -1, 2**40, 1.0, True, None])
def test_vocabulary_without_ids_is_named(tmp_path: Path, id: object) -> None:
    tiny.write_json(tiny.qwen2(tmp_path), "vocab.json", {"a": id})
    with pytest.raises(TokenizerError, match=r"vocab\.json must map tokens to ids"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("step", [5, "x", [1], {"processors": 5}, {"processors": [5]}, {"single": 5}])
def test_post_processor_that_says_nothing_adds_nothing(step: object) -> None:
    assert edge_tokens({"tokenizer.json": json.dumps({"post_processor": step}).encode()}) == (False, False)
