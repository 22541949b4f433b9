"""A vocabulary of the `tokenizers` library: tokenizer.json, or vocab.json with merges.txt.

Knows no added tokens: `tokenizer` has cut them out of the text before it comes here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from internvl.errors import TokenizerError
from internvl.processing.token_bytes import piece_bytes
from internvl.processing.tokenizer_settings import (
    FAST,
    MERGES,
    VOCABULARY,
    TokenizerSettings,
    parse_json,
    read_id,
)

Piece = tuple[int, int, int]
"""Token id, first character, character after the last."""

COMPOSED = 4
"""Characters that normalisation (NFC) makes one of, at most."""
_KEEPERS = frozenset({"Sequence", "Split", "ByteLevel", "Digits", "Punctuation"})
"""What cuts text into words without dropping any of it, white space neither."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text into words."""


class JsonVocabulary:
    """Byte-level BPE and whatever else tokenizer.json describes."""

    def __init__(self, inner: Tokenizer, later: Tokenizer) -> None:
        """`inner` encodes the first stretch of a text, `later` the ones after an added token."""
        self._inner = inner
        self._later = later
        self._is_byte_level = isinstance(inner.decoder, decoders.ByteLevel)
        self._ids = inner.get_vocab(with_added_tokens=False)
        self.size = max(self._ids.values(), default=-1) + 1
        self._dropped = [chr(byte) for byte in range(0x80) if _BYTE_TO_CHAR[byte] not in self._ids]
        self.adds_prefix = False
        self.glue = ""

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def token(self, id: int) -> str | None:
        return self._inner.id_to_token(id)

    def spelled(self, token: str) -> bytes:
        if not self._is_byte_level:
            return piece_bytes(token)
        return bytes(_CHAR_TO_BYTE[char] for char in token if char in _CHAR_TO_BYTE)

    def encode(self, text: str, *, is_first: bool) -> list[Piece]:
        """Pieces of a stretch of text, offsets in its characters."""
        encoding = (self._inner if is_first else self._later).encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [(id, start, end) for id, (start, end) in pairs]

    def prepare(self, text: str) -> str:
        """The text itself; normalisation is part of `encode`."""
        return text

    @property
    def longest(self) -> int:
        """Of byte-level BPE: a piece has a byte or more for each character that is counted."""
        # All but ASCII has one of these bytes; ASCII without a token is not counted.
        has_all = self._ids.keys() >= set(_BYTE_TO_CHAR[0x80:0xC0])
        if not self._is_byte_level or not has_all or not _keeps_all(self._inner):
            return 0
        return max(map(len, self._ids))

    def weigh(self, text: str) -> int:
        """As many characters as there are at least after normalisation, without those that are dropped."""
        for char in self._dropped:
            text = text.replace(char, "")
        if self._inner.normalizer is None:
            return len(text)
        # What is made of several characters has one of ASCII at most.
        return max(len(text.encode("ascii", errors="ignore")), -(-len(text) // COMPOSED))

    def spell(self, text: str, unknown: int) -> list[int]:
        """Ids that write `text` byte by byte: no merged token, so no special one."""
        data = text.encode("utf-8", errors="replace")
        names = [_BYTE_TO_CHAR[byte] if self._is_byte_level else f"<0x{byte:02X}>" for byte in data]
        return [self._ids.get(name, unknown) for name in names]

    def join(self, tokens: Sequence[str], are_added: Sequence[bool]) -> str:
        """Text of a run of tokens; bytes that are not a whole character become U+FFFD."""
        if not self._is_byte_level:
            return self._inner.decoder.decode(list(tokens)) if self._inner.decoder else "".join(tokens)
        data = bytearray()
        for token, is_added in zip(tokens, are_added, strict=True):
            for char in token:
                byte = None if is_added else _CHAR_TO_BYTE.get(char)
                data += char.encode("utf-8", errors="replace") if byte is None else bytes((byte,))
        return data.decode("utf-8", errors="replace")


def _keeps_all(inner: Tokenizer) -> bool:
    """Whether every character comes to a piece, but for those that NFC joins."""
    model, cutter = inner.model, inner.pre_tokenizer
    is_plain = isinstance(model, models.BPE) and not (
        model.continuing_subword_prefix or model.end_of_word_suffix
    )
    keeps = cutter is not None and all(map(_keeps, _steps(json.loads(cutter.__getstate__()))))
    return is_plain and keeps and isinstance(inner.normalizer, normalizers.NFC | None)


def _steps(cutter: dict[str, Any]) -> list[dict[str, Any]]:
    """A pre-tokenizer and all that it is made of."""
    return [cutter, *(step for part in cutter.get("pretokenizers", ()) for step in _steps(part))]


def _keeps(step: dict[str, Any]) -> bool:
    return step["type"] in _KEEPERS and step.get("behavior") != "Removed"


def _byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte if byte in printable else 256 + hidden.index(byte)) for byte in range(256))


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE: Mapping[str, int] = {char: byte for byte, char in enumerate(_BYTE_TO_CHAR)}


def load_json_vocabulary(files: Mapping[str, bytes], settings: TokenizerSettings) -> JsonVocabulary:
    """From tokenizer.json where present, else from vocab.json and merges.txt by the class's own rules."""
    if FAST not in files:
        built = _build(files, settings)
        return JsonVocabulary(built, built)
    description = parse_json(files, FAST)
    if not isinstance(description.get("model"), dict):
        raise TokenizerError(f"{FAST} describes no model; fetch the file again")
    description |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    inner = _parse(description)
    later = _without_first_prefix(description)
    return JsonVocabulary(inner, inner if later == description else _parse(later))


def edge_tokens(files: Mapping[str, bytes]) -> tuple[bool, bool]:
    """Whether the post-processor of tokenizer.json puts a token in front of and behind a text."""
    processor = parse_json(files, FAST).get("post_processor")
    steps = processor.get("processors") if isinstance(processor, dict) else None
    for step in steps if isinstance(steps, list) and steps else [processor]:
        if isinstance(step, dict) and isinstance(step.get("single"), list):
            kinds = [next(iter(item)) for item in step["single"] if isinstance(item, dict) and item]
            if "Sequence" in kinds:
                place = kinds.index("Sequence")
                return place > 0, place < len(kinds) - 1
    return False, False


def _parse(description: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises nothing more precise for a bad file
        raise TokenizerError(f"{FAST} cannot be used ({error}); fetch the file again") from error


def _without_first_prefix(description: dict[str, Any]) -> dict[str, Any]:
    """The same, for text that follows an added token: a prefix for the first word only is left out."""
    step = description.get("pre_tokenizer")
    if not isinstance(step, dict) or step.get("prepend_scheme") != "first":
        return description
    return description | {"pre_tokenizer": step | {"prepend_scheme": "never"}}


def _build(files: Mapping[str, bytes], settings: TokenizerSettings) -> Tokenizer:
    """Byte-level BPE in the form of Qwen2, or of GPT-2 for any other class."""
    vocabulary = parse_json(files, VOCABULARY)
    lines = files[MERGES].decode("utf-8", errors="replace").splitlines()
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#")]
    if any(isinstance(id, str) or read_id(id) is None for id in vocabulary.values()):
        raise TokenizerError(f"{VOCABULARY} must map tokens to ids; fetch the file again")
    unknown = next((pair for pair in merges if len(pair) != 2 or "".join(pair) not in vocabulary), None)
    if unknown is not None:
        raise TokenizerError(
            f"{MERGES} has {unknown}, which {VOCABULARY} does not know; fetch both files again"
        )
    pairs = [(left, right) for left, right in merges]
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=False, byte_fallback=False))
    if settings.kind.splits_digits:
        words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated", invert=False)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        built.normalizer = normalizers.NFC()
        built.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    else:
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    built.decoder = decoders.ByteLevel()
    return built
