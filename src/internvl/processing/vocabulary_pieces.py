"""A SentencePiece vocabulary (tokenizer.model), with the leading-space rules of LLaMA and InternLM2.

Knows no added tokens: `tokenizer` has cut them out of the text before it comes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from sentencepiece import SentencePieceProcessor

from internvl.errors import TokenizerError
from internvl.processing.token_bytes import piece_bytes
from internvl.processing.tokenizer_settings import PIECES, TokenizerSettings

Piece = tuple[int, int, int]
"""Token id, first character, character after the last."""

_SPACE = "▁"
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Field 3 (normalizer) of the model, in it field 3 (add_dummy_prefix) = false; repeated fields merge."""


class PieceVocabulary:
    """`legacy` LLaMA puts a space before every stretch of text, the newer form before the first only."""

    def __init__(self, model: SentencePieceProcessor, settings: TokenizerSettings) -> None:
        self._model = model
        self._strips_prefix = settings.kind.strips_prefix
        self._legacy = settings.legacy or not self._strips_prefix
        self._shield = settings.unk or "<unk>"
        self._num_shield = len(model.encode(self._shield, return_type=int))
        self.size: int = model.get_piece_size()
        self.adds_prefix = not self._legacy
        self.glue = " "
        self._gap = " " if self._legacy else ""
        self._keeps_spaces = len(model.normalize("a  a")) > len(model.normalize("a a"))

    def token_id(self, token: str) -> int | None:
        id: int = self._model.piece_to_id(token)
        return id if 0 <= id < self.size and self._model.id_to_piece(id) == token else None

    def token(self, id: int) -> str | None:
        return self._model.id_to_piece(id) if 0 <= id < self.size else None

    def spelled(self, token: str) -> bytes:
        return piece_bytes(token)

    def encode(self, text: str, *, is_first: bool) -> list[Piece]:
        """Pieces of a stretch of text, offsets in its characters. A mere prefix has an empty offset."""
        if self._legacy:
            return self._pieces(text)
        if not is_first:
            return self._shielded(text)
        return [(id, max(start - 1, 0), max(end - 1, 0)) for id, start, end in self._shielded(_SPACE + text)]

    def _pieces(self, text: str) -> list[Piece]:
        found = self._model.encode(text, return_type="offset_mapping")
        pairs = zip(found["ids"], found["offsets"], strict=True)
        return [(int(id), int(start), int(end)) for id, (start, end) in pairs]

    def _shielded(self, text: str) -> list[Piece]:
        """A leading space survives behind another word only, whose pieces are then taken away."""
        if not text.startswith((_SPACE, " ")):
            return self._pieces(text)
        width = len(self._shield)
        pieces = self._pieces(self._shield + text)
        kept = pieces[self._num_shield :] if len(pieces) >= self._num_shield else pieces
        return [(id, max(start - width, 0), max(end - width, 0)) for id, start, end in kept]

    def prepare(self, text: str) -> str:
        """The newer form of LLaMA knows no difference between its mark and a space."""
        return text if self._legacy else text.replace(_SPACE, " ")

    @property
    def longest(self) -> int:
        """Of vocabularies with all bytes; others make one token of any number of unknown characters."""
        if any(self.token_id(f"<0x{byte:02X}>") is None for byte in range(256)):
            return 0
        return max(len(self._model.id_to_piece(id)) for id in range(self.size))

    def weigh(self, text: str) -> int:
        """The number of characters after normalisation; without spaces where it swallows some."""
        normal: str = self._model.normalize(text)
        return len(normal) - (0 if self._keeps_spaces else normal.count(_SPACE) + normal.count(" "))

    def spell(self, text: str, unknown: int) -> list[int]:
        """Ids that write `text` byte by byte: no merged piece, so no special one."""
        names = [f"<0x{byte:02X}>" for byte in text.encode("utf-8", errors="replace")]
        found = [self.token_id(name) for name in names]
        return [unknown if id is None else id for id in found]

    def join(self, tokens: Sequence[str], are_added: Sequence[bool]) -> str:
        """Text of a run of tokens; special ones are written as they are.

        A space precedes a stretch of text that ends at a special token (not in the newer form of LLaMA). The
        published slow tokenizers do this, and so must we where decoded text is compared.
        """
        tokens = list(tokens)
        if self._strips_prefix and tokens:
            tokens[0] = tokens[0].removeprefix(_SPACE)
        pairs = zip(are_added, tokens, strict=True)
        runs = [(added, [token for _, token in run]) for added, run in groupby(pairs, lambda pair: pair[0])]
        out = self._gap if runs and runs[0][0] and not self._strips_prefix else ""
        for index, (is_added, run) in enumerate(runs):
            if is_added:
                out += "".join(run)
            else:
                out += (self._gap if index < len(runs) - 1 else "") + str(self._model.decode(run))
        return out


def clean_up(text: str) -> str:
    """Without the spaces before punctuation and English contractions (transformers' clean-up)."""
    for ending in (".", "?", "!", ","):
        text = text.replace(f" {ending}", ending)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def load_piece_vocabulary(files: Mapping[str, bytes], settings: TokenizerSettings) -> PieceVocabulary:
    """From tokenizer.model."""
    is_newer = settings.kind.strips_prefix and not settings.legacy
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(files[PIECES] + (_NO_DUMMY_PREFIX if is_newer else b""))
    except (RuntimeError, OSError) as error:
        raise TokenizerError(f"{PIECES} cannot be read ({error}); fetch the file again") from error
    return PieceVocabulary(model, settings)
