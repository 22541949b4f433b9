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
        return self._whole(self._check(text, prefix), truncate)

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
        offsets = self._encode(whole, eos=False).offsets
        return self._whole(whole, truncate), sum(end <= len(head) for _, end in offsets)

    def text(self, ids: Iterable[int]) -> str:
        """What ids say, without special tokens and spaces around it."""
        return self.tokenizer.decode(ids).strip()

    def _encode(self, text: str, *, eos: bool) -> Encoding:
        # Names of special tokens that a user wrote are letters, nothing more.
        has_bos = self.tokenizer.bos_id is not None
        return self.tokenizer.encode(text, plain=[(0, len(text))], bos=has_bos, eos=eos)

    def _whole(self, text: str, truncate: bool) -> list[int]:
        if not truncate and (least := self.tokenizer.least(text)) > self.max_tokens:
            raise self._too_long(text, f"at least {least}")
        ids = self._encode(text, eos=True).ids
        if len(ids) <= self.max_tokens:
            return ids
        if not truncate:
            raise self._too_long(text, str(len(ids)))
        return [*ids[: self.max_tokens - 1], self.eos_id]

    def _too_long(self, text: str, count: str) -> PromptError:
        return PromptError(
            f"a text has {count} tokens, the limit is {self.max_tokens} with its first and last: "
            f"{shorten(text)}; shorten it, or cut it with truncate=True"
        )

    def _check(self, text: str, prefix: str = "") -> str:
        if not isinstance(text, str):
            raise PromptError(f"a text must be a string, not {shorten(text)}")
        return f"{prefix}{text}"
