"""What the JSON files beside a vocabulary say: class, special and added tokens, switches.

Knows no vocabulary: ids that no file names are found by `tokenizer`. The class named in
`tokenizer_config.json` decides the defaults, never the name of a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from internvl.errors import TokenizerError
from internvl.processing.added_tokens import AddedToken

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
FAST = "tokenizer.json"
PIECES = "tokenizer.model"
VOCABULARY = "vocab.json"
MERGES = "merges.txt"
FILES = (CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, FAST, PIECES, VOCABULARY, MERGES)
MAX_BYTES = 256 * 2**20
MAX_ID = 2**31 - 1

CleanUp = Literal["always", "never", "as_configured"]
BeginRule = Literal["flag", "never", "template"]
JSON = dict[str, Any]
_NAMES = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerClass:
    """How a published tokenizer class behaves where the files say nothing.

    `begin_rule`: whether the first and last token come from the add_bos_token/add_eos_token flags, from the
    post-processor of tokenizer.json, or never. `clean_up`: whether decoding removes spaces before punctuation
    ("always" stops at added tokens). `cleans_by_default`: the same where nothing is configured.
    `strips_prefix`: the leading-space rules of LLaMA, else those of InternLM2.
    `only_listed_are_special`: a `special` mark on an added token does not count. `splits_digits`: vocab.json
    is read with the words of Qwen2 (digits apart, NFC), else with those of GPT-2.
    """

    uses_sentencepiece: bool = False
    strips_prefix: bool = False
    begin_rule: BeginRule = "template"
    adds_bos: bool = False
    clean_up: CleanUp = "as_configured"
    cleans_by_default: bool = False
    only_listed_are_special: bool = True
    splits_digits: bool = False
    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    pad: str | None = None


_LLAMA = TokenizerClass(
    uses_sentencepiece=True,
    strips_prefix=True,
    begin_rule="flag",
    adds_bos=True,
    bos="<s>",
    eos="</s>",
    unk="<unk>",
)
_GENERIC = TokenizerClass(cleans_by_default=True, only_listed_are_special=False)
_END = "<|endoftext|>"

CLASSES: Mapping[str, TokenizerClass] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "InternLM3Tokenizer": _LLAMA,
    "InternLM2Tokenizer": TokenizerClass(
        uses_sentencepiece=True,
        begin_rule="flag",
        adds_bos=True,
        clean_up="always",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        pad="</s>",
    ),
    "Qwen2Tokenizer": TokenizerClass(
        begin_rule="never", clean_up="never", splits_digits=True, eos=_END, unk=_END, pad=_END
    ),
    "GPT2Tokenizer": TokenizerClass(begin_rule="flag", cleans_by_default=True, bos=_END, eos=_END, unk=_END),
    "PreTrainedTokenizer": _GENERIC,
    "TokenizersBackend": _GENERIC,
}
"""By the class name without "Fast"; a class that is not here is read from tokenizer.json, generically."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """Everything but the vocabulary.

    `listed` are the contents of the special tokens, named ones first; `additional` are those without a
    name. `written` are the listed ones that a file names, the rest are defaults of the class.
    """

    kind: TokenizerClass
    class_name: str
    bos: str | None
    eos: str | None
    unk: str | None
    pad: str | None
    listed: tuple[str, ...]
    additional: frozenset[str]
    written: frozenset[str]
    added: tuple[AddedToken, ...]
    adds_bos: bool | None
    adds_eos: bool | None
    cleans_up: bool
    legacy: bool


def read_files(directory: Path) -> dict[str, bytes]:
    """The tokenizer files of a directory, by name. Raises `TokenizerError` when there is no vocabulary."""
    files = {}
    for name in FILES:
        path = directory / name
        if path.is_file():
            if path.stat().st_size > MAX_BYTES:
                raise TokenizerError(f"{path} has {path.stat().st_size} bytes; the limit is {MAX_BYTES}")
            files[name] = path.read_bytes()
    if not (FAST in files or PIECES in files or {VOCABULARY, MERGES} <= files.keys()):
        present = ", ".join(files) or "none of its files"
        raise TokenizerError(
            f"{directory} holds no vocabulary: looked for {FAST}, {PIECES}, or {VOCABULARY} with {MERGES}; "
            f"found {present}. Copy the tokenizer files of the checkpoint there"
        )
    return files


def parse_json(files: Mapping[str, bytes], name: str) -> JSON:
    """The object in one of the files; empty when the file is absent.

    Raises `TokenizerError` for anything else, halves of characters, and nesting without an end.
    """
    if name not in files:
        return {}
    try:
        text = files[name].decode("utf-8-sig")
        value = json.loads(text)
        if "\\u" in text:  # an escape may be half of a character, which no vocabulary library takes
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{name} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{name} must hold a JSON object, not {type(value).__name__}")
    return value


def read_settings(files: Mapping[str, bytes]) -> TokenizerSettings:
    """Merge tokenizer_config.json, special_tokens_map.json, added_tokens.json and tokenizer.json.

    Where tokenizer_config.json has `added_tokens_decoder` it is complete and the others fill gaps only.
    """
    config = parse_json(files, CONFIG)
    special = parse_json(files, SPECIAL_TOKENS_MAP)
    values = special | config if "added_tokens_decoder" in config else config | special
    class_name, kind = _find_class(config, files)
    named = {key: _content(values.get(f"{key}_token", getattr(kind, key))) for key in _NAMES}
    additional = tuple(_additional(values))
    listed = tuple(dict.fromkeys(content for content in (*named.values(), *additional) if content))
    return TokenizerSettings(
        kind=kind,
        class_name=class_name,
        **named,
        listed=listed,
        additional=frozenset(additional),
        written=frozenset((*additional, *(named[key] or "" for key in _NAMES if f"{key}_token" in values))),
        added=_added(files, config, frozenset(listed)),
        adds_bos=_flag(config, "add_bos_token"),
        adds_eos=_flag(config, "add_eos_token"),
        cleans_up=_cleans_up(kind, config),
        legacy=config.get("legacy") is not False,
    )


def _find_class(config: JSON, files: Mapping[str, bytes]) -> tuple[str, TokenizerClass]:
    fallback = "LlamaTokenizer" if PIECES in files and FAST not in files else "PreTrainedTokenizer"
    name = str(config.get("tokenizer_class") or fallback).removesuffix("Fast")
    kind = CLASSES.get(name, _GENERIC)
    if FAST not in files and not kind.uses_sentencepiece and PIECES in files:
        known = ", ".join(sorted(key for key, row in CLASSES.items() if row.uses_sentencepiece))
        raise TokenizerError(
            f"{CONFIG} names the class {name!r}; rules for {PIECES} are known for {known}, "
            f"and any class may come with a {FAST}"
        )
    return name, kind


def _cleans_up(kind: TokenizerClass, config: JSON) -> bool:
    configured = _flag(config, "clean_up_tokenization_spaces")
    by_rule = kind.cleans_by_default if configured is None else configured
    return kind.clean_up == "as_configured" and by_rule


def _flag(config: JSON, key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"{CONFIG}: {key} must be true or false, not {value!r}")
    return value


def _content(value: object) -> str | None:
    """A token is written as a string or as an object with its content; null means there is none."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(
            f"{CONFIG}: a token must be a string or an object with content, not {value!r:.80}"
        )
    return value


def _additional(values: JSON) -> Iterator[str]:
    """Both names of the list; newer files write a mapping from a role to its token."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = values.get(key) or ()
        if not isinstance(listed, list | tuple | dict):
            raise TokenizerError(f"{CONFIG}: {key} must be a list of tokens, not {listed!r:.80}")
        for value in listed.values() if isinstance(listed, dict) else listed:
            if content := _content(value):
                yield content


def _added(files: Mapping[str, bytes], config: JSON, listed: frozenset[str]) -> tuple[AddedToken, ...]:
    """Every added token that some file gives an id, the most explicit file first."""
    found: dict[str, AddedToken] = {}
    decoder = config.get("added_tokens_decoder") or {}
    rows = parse_json(files, FAST).get("added_tokens") or []
    if not isinstance(decoder, dict) or not isinstance(rows, list):
        raise TokenizerError(
            f"{CONFIG}: added_tokens_decoder must map ids to tokens, {FAST}: added_tokens must be a list"
        )
    for number, row in decoder.items():
        _keep(found, row, number, CONFIG)
    for row in rows:
        _keep(found, row, row.get("id") if isinstance(row, dict) else None, FAST)
    for content, number in parse_json(files, ADDED_TOKENS).items():
        _keep(found, {"content": content, "special": content in listed}, number, ADDED_TOKENS)
    return tuple(sorted(found.values(), key=lambda token: token.id))


def _keep(found: dict[str, AddedToken], row: object, number: object, name: str) -> None:
    content = row.get("content") if isinstance(row, dict) else None
    id = read_id(number)
    if not isinstance(row, dict) or not isinstance(content, str) or id is None:
        raise TokenizerError(
            f"{name}: an added token needs a string and an id, not {row!r:.80} with {number!r:.80}"
        )
    flags = {key: bool(row.get(key)) for key in ("lstrip", "rstrip", "single_word", "special")}
    found.setdefault(content, AddedToken(content, id, **flags))


def read_id(value: object) -> int | None:
    """A token id as files write it, a number or its digits; None for anything else."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(MAX_ID)):
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_ID else None
