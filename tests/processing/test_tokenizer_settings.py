from __future__ import annotations

import json
from typing import Any

import pytest

from internvl.errors import TokenizerError
from internvl.processing import tokenizer_settings
from internvl.processing.tokenizer_settings import read_files, read_settings


def files(config: dict[str, Any], **others: Any) -> dict[str, bytes]:
    """tokenizer_config.json, and other JSON files by their names without the suffix."""
    named = {"tokenizer_config": config, **others}
    return {f"{name}.json": json.dumps(value).encode() for name, value in named.items()}


def test_class_decides_defaults() -> None:
    llama = read_settings(files({"tokenizer_class": "LlamaTokenizerFast"}))
    assert (llama.class_name, llama.bos, llama.eos, llama.unk, llama.pad) == (
        "LlamaTokenizer",
        "<s>",
        "</s>",
        "<unk>",
        None,
    )
    assert llama.legacy
    assert not llama.cleans_up
    assert not llama.written


def test_null_takes_a_token_away() -> None:
    settings = read_settings(
        files({"tokenizer_class": "Qwen2Tokenizer", "unk_token": None, "bos_token": None})
    )
    assert (settings.bos, settings.unk, settings.pad) == (None, None, "<|endoftext|>")


def test_token_may_be_an_object() -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": {"__type": "AddedToken", "content": "<end>"}}
    assert read_settings(files(config)).eos == "<end>"


def test_special_tokens_map_counts_only_without_complete_settings() -> None:
    special = {"eos_token": "<other>"}
    older = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    newer = older | {"added_tokens_decoder": {}}
    assert read_settings(files(older, special_tokens_map=special)).eos == "<other>"
    assert read_settings(files(newer, special_tokens_map=special)).eos == "</s>"


def test_added_tokens_come_from_every_file_the_most_explicit_first() -> None:
    decoder = {"7": {"content": "<a>", "special": True, "rstrip": True}}
    fast = {"added_tokens": [{"id": 8, "content": "<a>"}, {"id": 9, "content": "<b>", "special": False}]}
    settings = read_settings(
        files({"added_tokens_decoder": decoder}, tokenizer=fast, added_tokens={"<b>": 1, "<c>": 10})
    )
    found = [(token.content, token.id, token.rstrip, token.special) for token in settings.added]
    assert found == [("<a>", 7, True, True), ("<b>", 9, False, False), ("<c>", 10, False, False)]


@pytest.mark.parametrize(
    ("name", "configured", "cleans_up"),
    [
        ("PreTrainedTokenizerFast", None, True),
        ("PreTrainedTokenizerFast", False, False),
        ("LlamaTokenizer", None, False),
        ("LlamaTokenizer", True, True),
        ("Qwen2Tokenizer", True, False),
    ],
)
def test_clean_up_by_class_and_flag(name: str, configured: bool | None, cleans_up: bool) -> None:
    config = {"tokenizer_class": name, "clean_up_tokenization_spaces": configured}
    assert read_settings(files(config)).cleans_up == cleans_up


def test_legacy_only_when_not_refused() -> None:
    assert read_settings(files({"legacy": None})).legacy
    assert not read_settings(files({"legacy": False})).legacy


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "needs a string and an id"),
        ({"added_tokens_decoder": {"3": {"content": 4}}}, "needs a string and an id"),
        ({"added_tokens_decoder": {"5": "a"}}, "needs a string and an id, not 'a' with '5'"),
        ({"added_tokens_decoder": {"5": None}}, "needs a string and an id, not None"),
        ({"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}, "needs a string and an id"),
        ({"added_tokens_decoder": {str(2**31): {"content": "a"}}}, "needs a string and an id"),
        ({"added_tokens_decoder": [{"content": "a"}]}, "added_tokens_decoder must map ids to tokens"),
        ({"added_tokens_decoder": 5}, "added_tokens_decoder must map ids to tokens"),
        ({"additional_special_tokens": 5}, "additional_special_tokens must be a list of tokens, not 5"),
        (
            {"additional_special_tokens": "abc"},
            "must be a list of tokens, not 'abc'",
        ),
        ({"extra_special_tokens": True}, "extra_special_tokens must be a list of tokens"),
        ({"additional_special_tokens": [["a"]]}, "a token must be a string"),
        ({"eos_token": 3}, "a token must be a string"),
        ({"add_bos_token": "yes"}, "add_bos_token must be true or false, not 'yes'"),
    ],
)
def test_nonsense_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_settings(files(config))


def test_list_instead_of_an_object_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"added_tokens\.json must hold a JSON object, not list"):
        read_settings(files({}, added_tokens=[1]))


@pytest.mark.parametrize(
    "rows", [{"a": 1}, 5, "abc", [5], ["a"], [None], [[]], [{"id": True, "content": "a"}]]
)
def test_added_tokens_of_another_kind_are_named(rows: Any) -> None:
    with pytest.raises(TokenizerError, match=r"added_tokens must be a list|\.json: an added token needs"):
        read_settings(files({}, tokenizer={"added_tokens": rows}))


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b'{"a": ' + b"[" * 200_000,
        b'{"a": ' * 200_000,
        b'{"eos_token": "\\ud800"}',
        b'{"eos_token": "\xed\xa0\x80"}',
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_named(content: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not valid JSON"):
        read_settings({"tokenizer_config.json": content})


def test_whole_characters_may_be_escaped() -> None:
    config = b'\xef\xbb\xbf{"eos_token": "\\ud83d\\ude00", "bos_token": "\\u00e9"}'
    assert read_settings({"tokenizer_config.json": config}).eos == "\U0001f600"


def test_huge_file_is_not_read(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_settings, "MAX_BYTES", 10)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 11)
    with pytest.raises(TokenizerError, match="11 bytes; the limit is 10"):
        read_files(tmp_path)
