"""One face over the tokenizers of the family: text to ids with character offsets, and back.

Behaves as the published slow tokenizers (`use_fast=False`), whichever library holds the vocabulary.
Knows no templates and no models; what the user may not write is passed in as `plain` spans.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Protocol

from internvl.config import GROUNDING_TOKENS
from internvl.errors import TokenizerError
from internvl.processing.added_tokens import AddedToken, Part, Span, Splitter, merge, overlaps
from internvl.processing.tokenizer_settings import (
    CONFIG,
    PIECES,
    TokenizerSettings,
    read_files,
    read_settings,
)
from internvl.processing.vocabulary_json import edge_tokens, load_json_vocabulary
from internvl.processing.vocabulary_pieces import clean_up, load_piece_vocabulary


@dataclass(frozen=True, slots=True)
class Encoding:
    """`offsets[i]` are the characters of the text that `ids[i]` was made of.

    They are (0, 0) for a leading bos, (len, len) for an eos, and empty for a space that the tokenizer
    itself put before a word. Bytes of one character share it: the last one covers it.
    """

    ids: list[int]
    offsets: list[Span]


class Vocabulary(Protocol):
    """What either library offers, without added tokens.

    `glue` is put between decoded text and added tokens; `adds_prefix`: a space before the first word only.
    `prepare` gives a text of the same length, before it is cut at added tokens. No token stands for more than
    `longest` of the characters that `weigh` counts, 0 where that is not known.
    """

    size: int
    glue: str
    adds_prefix: bool

    @property
    def longest(self) -> int: ...
    def token_id(self, token: str) -> int | None: ...
    def token(self, id: int) -> str | None: ...
    def spelled(self, token: str) -> bytes: ...
    def encode(self, text: str, *, is_first: bool) -> list[tuple[int, int, int]]: ...
    def prepare(self, text: str) -> str: ...
    def weigh(self, text: str) -> int: ...
    def spell(self, text: str, unknown: int) -> list[int]: ...
    def join(self, tokens: Sequence[str], are_added: Sequence[bool]) -> str: ...


class Tokenizer:
    """`size` is one more than the largest id; `special_ids` are left out by `decode`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        settings: TokenizerSettings,
        added: Iterable[AddedToken],
        files: Mapping[str, bytes],
    ) -> None:
        self._vocabulary = vocabulary
        self._settings = settings
        self._files = files
        self._added = {token.content: token for token in added}
        self._by_id = {token.id: token for token in reversed(self._added.values())}
        self._splitter = Splitter(self._added.values(), free=GROUNDING_TOKENS)
        self._reserved = {id for id, token in self._by_id.items() if token.content not in GROUNDING_TOKENS}
        self.size = max([vocabulary.size - 1, *self._by_id]) + 1
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = (
            None if content is None else self.token_id(content)
            for content in (settings.bos, settings.eos, settings.unk, settings.pad)
        )
        self.adds_bos, self.adds_eos = _edges(settings, files)
        self.special_ids = frozenset(self._special_ids())

    def _special_ids(self) -> Iterable[int]:
        """Those the files list by name; in generic fast tokenizers also those marked special."""
        for content in self._settings.listed:
            if (id := self.token_id(content)) is not None:
                yield id
        if not self._settings.kind.only_listed_are_special:
            yield from (token.id for token in self._added.values() if token.special)

    def token_id(self, token: str) -> int | None:
        """The id of a token as it is written in the vocabulary, or None."""
        added = self._added.get(token)
        return added.id if added else self._vocabulary.token_id(token)

    def token(self, id: int) -> str | None:
        """How the vocabulary writes this id, or None for a row without a token."""
        added = self._by_id.get(id)
        return added.content if added else self._vocabulary.token(id)

    def token_bytes(self, id: int) -> bytes:
        """What this id adds to a text; nothing for a row without a token."""
        token = self.token(id) or ""
        return token.encode() if id in self._by_id else self._vocabulary.spelled(token)

    def with_token(self, content: str, id: int) -> Tokenizer:
        """The same tokenizer, which also reads `content` as `id`; decoding is unchanged."""
        added = [*self._added.values(), AddedToken(content, id)]
        return Tokenizer(self._vocabulary, self._settings, added, self._files)

    def encode(
        self, text: str, *, plain: Sequence[Span] = (), bos: bool | None = None, eos: bool | None = None
    ) -> Encoding:
        """Ids of the whole text, and what each was made of.

        `plain` are spans of characters written by a user: added tokens in them are spelled out and lose
        their power, except the grounding tags. `bos` and `eos` None: as the checkpoint says. Characters that
        Unicode cannot encode (lone surrogates) are read as "?".
        """
        text = self._vocabulary.prepare(text.encode("utf-8", errors="replace").decode("utf-8"))
        covered = merge(plain)
        ids: list[int] = []
        offsets: list[Span] = []
        if self.adds_bos if bos is None else bos:
            ids, offsets = [self._require("bos", self.bos_id)], [(0, 0)]
        for part, is_first in self._parts(text, covered):
            for id, start, end in self._pieces(text, part, is_first, covered):
                ids.append(id)
                offsets.append((start, end))
        if self.adds_eos if eos is None else eos:
            ids.append(self._require("eos", self.eos_id))
            offsets.append((len(text), len(text)))
        return Encoding(ids, offsets)

    def least(self, text: str) -> int:
        """As many tokens `text` has at least, found much faster than by `encode`.

        No token stands for more characters than the longest one has. White space that added tokens or
        normalisation may swallow is not counted. 0 for a vocabulary that makes one token of many unknown
        characters, or changes text in ways not known here.
        """
        if not self._longest:
            return 0
        text = self._vocabulary.prepare(text.encode("utf-8", errors="replace").decode("utf-8"))
        return -(-self._vocabulary.weigh(self._splitter.without_eaten(text)) // self._longest)

    @cached_property
    def _longest(self) -> int:
        longest = self._vocabulary.longest
        return longest and max([longest, *map(self._vocabulary.weigh, self._added)])

    def _parts(self, text: str, covered: Sequence[Span]) -> Iterable[tuple[Part, bool]]:
        """Each part, and whether no token precedes it. A text that opens with a token may need a prefix."""
        parts = self._splitter.split(text, covered)
        opening = parts[0].token if parts else None
        if opening and self._vocabulary.adds_prefix and opening.content not in self._settings.listed:
            yield Part(0, 0), True
        for index, part in enumerate(parts):
            yield part, index == 0

    def _pieces(
        self, text: str, part: Part, is_first: bool, covered: Sequence[Span]
    ) -> Iterable[tuple[int, int, int]]:
        if part.token:
            yield part.token.id, part.start, part.end
            return
        for id, start, end in self._vocabulary.encode(text[part.start : part.end], is_first=is_first):
            span = (part.start + start, part.start + end)
            if id in self._reserved and id != self.unk_id and overlaps(covered, span):
                # The user wrote the name this token has in the vocabulary, such as [UNUSED_TOKEN_145].
                unknown = self._require("unk", self.unk_id)
                yield from (
                    (spelled, *span) for spelled in self._vocabulary.spell(text[slice(*span)], unknown)
                )
            else:
                yield id, *span

    def _require(self, name: str, id: int | None) -> int:
        if id is None:
            raise TokenizerError(f"{self._settings.class_name} has no {name} token; name one in {CONFIG}")
        return id

    def decode(
        self,
        ids: Iterable[int],
        *,
        skip_special: bool = True,
        keep: Collection[str] = (),
        cleans_up: bool = True,
    ) -> str:
        """Text of `ids`; what is not a whole character yet comes as U+FFFD.

        `keep` are tokens that stay when special ones are skipped; no space is put beside them. Ids
        without a token (padding rows of the vocabulary) give nothing. `cleans_up` False keeps the spaces
        before punctuation that some classes remove: then more ids only ever add text, as streaming needs.
        """
        out, glue = "", ""
        for text, is_kept in self._segments(self._visible(ids, skip_special, keep), keep):
            if cleans_up and self._settings.kind.clean_up == "always":
                text = clean_up(text)
            out += ("" if is_kept else glue) + text
            glue = "" if is_kept else self._vocabulary.glue
        return clean_up(out) if cleans_up and self._settings.cleans_up else out

    def _visible(
        self, ids: Iterable[int], skip_special: bool, keep: Collection[str]
    ) -> list[tuple[int, str]]:
        pairs = ((int(id), self.token(int(id))) for id in ids)
        return [
            (id, token)
            for id, token in pairs
            if token is not None and not (skip_special and id in self.special_ids and token not in keep)
        ]

    def _segments(
        self, pairs: Sequence[tuple[int, str]], keep: Collection[str]
    ) -> Iterable[tuple[str, bool]]:
        """Runs of text, and between them the tokens that stand apart; True for those to keep."""

        def stands_apart(pair: tuple[int, str]) -> bool:
            return pair[1] in keep or self._stands_apart(*pair)

        groups = [(is_apart, list(run)) for is_apart, run in groupby(pairs, stands_apart)]
        for index, (is_apart, run) in enumerate(groups):
            if is_apart:
                yield from ((token, token in keep) for _, token in run)
                continue
            text = self._vocabulary.join([token for _, token in run], [id in self._by_id for id, _ in run])
            if text or index == len(groups) - 1:
                yield text, False

    def _stands_apart(self, id: int, token: str) -> bool:
        """Added tokens that are not special, or additional ones behind the vocabulary (slow tokenizers)."""
        if not self._vocabulary.glue or id not in self._by_id:
            return False
        is_behind = id >= self._vocabulary.size and token in self._settings.additional
        return is_behind or token not in self._settings.listed

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files it was read from: name and contents."""
        return self._files

    def save(self, directory: str | Path) -> None:
        """Write the files this tokenizer was read from, byte by byte."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        for name, data in self._files.items():
            (target / name).write_bytes(data)


def _edges(settings: TokenizerSettings, files: Mapping[str, bytes]) -> tuple[bool, bool]:
    """Whether bos and eos are put around a text."""
    if settings.kind.begin_rule == "template":
        return edge_tokens(files)
    if settings.kind.begin_rule == "never":
        return False, False
    adds_bos = settings.kind.adds_bos if settings.adds_bos is None else settings.adds_bos
    return adds_bos, bool(settings.adds_eos)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    The class in tokenizer_config.json decides: SentencePiece classes read tokenizer.model, others
    tokenizer.json, or vocab.json with merges.txt. Raises `TokenizerError` for what is missing or broken.
    """
    path = Path(directory)
    if not path.is_dir():
        raise TokenizerError(f"{path} is not a directory; give the directory of a checkpoint")
    files = read_files(path)
    settings = read_settings(files)
    vocabulary: Vocabulary
    if PIECES in files and settings.kind.uses_sentencepiece:
        vocabulary = load_piece_vocabulary(files, settings)
    else:
        vocabulary = load_json_vocabulary(files, settings)
    return Tokenizer(vocabulary, settings, _with_ids(vocabulary, settings), files)


def _with_ids(vocabulary: Vocabulary, settings: TokenizerSettings) -> Iterable[AddedToken]:
    """Added tokens, then special ones without an id in any file: that of the vocabulary, or the next one."""
    known = {token.content for token in settings.added}
    yield from settings.added
    following = max([vocabulary.size - 1, *(token.id for token in settings.added)]) + 1
    for content in settings.listed:
        id = vocabulary.token_id(content)
        if content in known or (id is None and content not in settings.written):
            continue
        yield AddedToken(content, following if id is None else id)
        following += id is None
