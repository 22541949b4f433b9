"""Text to ids and back. Long ones take seconds: these functions are for threads."""

from __future__ import annotations

from collections.abc import Sequence

from internvl.errors import RequestError
from internvl.serving.answering import spell
from internvl.serving.prepare import Preparer

TOO_LONG = "context_length_exceeded"


def ids_of_text(preparer: Preparer, text: str, *, adds_special: bool, reads_marks: bool = False) -> list[int]:
    """Names of special tokens are letters unless `reads_marks`. Raises RequestError for a text that is too
    long for the model in any case, before it is read as tokens: that takes minutes for the longest."""
    tokenizer, limit = preparer.model.processor.tokenizer, preparer.max_model_len
    if (least := tokenizer.least(text)) > limit:
        raise RequestError(
            f"the text has at least {least} tokens and this model is served with {limit} positions: "
            "shorten the text",
            param="prompt",
            code=TOO_LONG,
        )
    edges, plain = None if adds_special else False, [] if reads_marks else [(0, len(text))]
    return tokenizer.encode(text, plain=plain, bos=edges, eos=False).ids


def text_of_ids(preparer: Preparer, ids: Sequence[int]) -> str:
    """Marks by their names. Raises RequestError for ids that do not exist and for more than the model has
    room for."""
    rows, limit = preparer.model.config.text.vocab_size, preparer.max_model_len
    if len(ids) > limit:
        raise RequestError(
            f"there are {len(ids)} ids and this model is served with {limit} positions: send fewer at once",
            param="tokens",
            code=TOO_LONG,
        )
    if max(ids, default=0) >= rows:
        raise RequestError(f"id {max(ids)} is not in the vocabulary of {rows} entries", param="tokens")
    return preparer.model.processor.tokenizer.decode(ids, skip_special=False, cleans_up=False)


def spell_all(preparer: Preparer, ids: Sequence[int]) -> list[str]:
    """The text of each token, marks by their names."""
    return [spell(preparer.model.processor.tokenizer, id) for id in ids]
