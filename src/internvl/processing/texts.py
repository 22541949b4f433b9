"""Texts of a dual encoder as ids: to be embedded, to be matched with a picture, or to begin a caption.

Padding does not exist: every text keeps its own length. Knows a tokenizer; no pictures and no model.
"""

from __future__ import annotations

from collections.abc import Iterable

from internvl.errors import PromptError, TokenizerError
from internvl.processing.conversation import shorten
from internvl.processing.tokenizer import Encoding, Tokenizer

PREFIX = "summarize:"
"""Stands before a text that is embedded, without a space (InternVL-C and -G)."""

CAPTION_PROMPT = "English caption:"
MAX_TOKENS = 80
"""Of one text with its first and last token, as in training."""
TOKEN_CHARACTERS = 64
"""More than a token has on average: so many for each is the first beginning of a long text that is read."""


class TextProcessor:
    """A text begins with the tokenizer's bos, where it has one, and ends with its eos.

    Raises `TokenizerError` for a tokenizer without eos, or with more ids than the model has rows
    (`vocab_size`).
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int | None = None, max_tokens: int = MAX_TOKENS
    ) -> None:
        if tokenizer.eos_id is None:
            raise TokenizerError("the tokenizer has no eos token, at which a text is read: name one")
        if vocab_size is not None and tokenizer.size > vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.size} ids, but the model's vocabulary only {vocab_size} rows: "
                "they are not of one checkpoint"
            )
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.eos_id: int = tokenizer.eos_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The id that ends a caption."""
        return (self.eos_id,)

    def ids(self, text: str, *, prefix: str = PREFIX, truncate: bool = False) -> list[int]:
        """Ids of `prefix` and `text`, both edges included; prefix "" for a text that is matched.

        More than `max_tokens` are cut before the last one if `truncate`, else refused: a PromptError.
        """
        return self._whole(self._check(text, prefix), truncate).ids

    def prompt(self, text: str = CAPTION_PROMPT) -> list[int]:
        """Ids of what a caption continues: no eos at its end."""
        return self._encode(self._check(text), eos=False).ids

    def caption(
        self, text: str, *, prompt: str = CAPTION_PROMPT, truncate: bool = False
    ) -> tuple[list[int], int]:
        """Ids of the prompt, a space, and its caption, edges included; and how many of them are the prompt's.

        A token that covers both is the caption's. Too long ones as in `ids`.
        """
        head, whole = self._check(prompt), self._check(text, f"{prompt} ")
        encoding = self._whole(whole, truncate)
        return encoding.ids, sum(end <= len(head) for _, end in encoding.offsets)

    def text(self, ids: Iterable[int]) -> str:
        """What ids say, without special tokens and spaces around it."""
        return self.tokenizer.decode(ids).strip()

    def _encode(self, text: str, *, eos: bool) -> Encoding:
        # Names of special tokens that a user wrote are letters, nothing more.
        has_bos = self.tokenizer.bos_id is not None
        return self.tokenizer.encode(text, plain=[(0, len(text))], bos=has_bos, eos=eos)

    def _whole(self, text: str, truncate: bool) -> Encoding:
        if not truncate and (least := self.tokenizer.least(text)) > self.max_tokens:
            raise self._too_long(text, f"at least {least}")
        encoding = self._beginning(text) if truncate else self._encode(text, eos=True)
        if len(encoding.ids) <= self.max_tokens:
            return encoding
        if not truncate:
            raise self._too_long(text, str(len(encoding.ids)))
        kept = self.max_tokens - 1
        return Encoding(
            [*encoding.ids[:kept], self.eos_id], [*encoding.offsets[:kept], (len(text), len(text))]
        )

    def _beginning(self, text: str) -> Encoding:
        """Of the text, or of so much of it that its first `max_tokens` are those of the whole.

        Where a text is cut, only the ids close by change, so that two beginnings, one twice as long, have the
        same first ids once these are out of its reach. A whole text of megabytes takes minutes.
        """
        length, before = TOKEN_CHARACTERS * self.max_tokens, None
        while length < len(text):
            encoding = self._encode(text[:length], eos=True)
            first = encoding.ids[: self.max_tokens]
            if len(encoding.ids) > self.max_tokens and first == before:
                return encoding
            length, before = 2 * length, first
        return self._encode(text, eos=True)

    def _too_long(self, text: str, count: str) -> PromptError:
        return PromptError(
            f"a text has {count} tokens, the limit is {self.max_tokens} with its first and last: "
            f"{shorten(text)}; shorten it, or cut it with truncate=True"
        )

    def _check(self, text: str, prefix: str = "") -> str:
        if not isinstance(text, str):
            raise PromptError(f"a text must be a string, not {shorten(text)}")
        return f"{prefix}{text}"
