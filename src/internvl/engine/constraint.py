"""Answers of a given form: a JSON schema, a regular expression, a grammar, or one of some choices.

`llguidance` does the work; here is what it needs and what the engine asks of it: which ids may come next.
Knows the bytes of ids; no model, no text of requests. Shape letters: V vocabulary.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor

from internvl.errors import InputError

NUM_COMPILED = 64
"""Forms kept ready: compiling a large schema takes up to a second, and requests repeat theirs."""

JSON_FORM: Mapping[str, bool] = {"whitespace_flexible": False}
"""White space of any length is allowed in JSON, and small models never leave it. A schema's own `x-guidance`
wins."""

ConstraintKind = Literal["json_schema", "regex", "grammar", "choice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What an answer must be: `value` is a JSON schema as text, a regular expression, a grammar in Lark's
    form, or the choices."""

    kind: ConstraintKind
    value: str | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """The bytes of every id (none for rows without a token), which of them stand for no text, the id that
    ends an answer, and how text is cut into ids."""

    tokens: Sequence[bytes]
    special_ids: Sequence[int]
    end_id: int
    encode: Callable[[str], list[int]]


class Form:
    """How far one answer has come in its form."""

    def __init__(self, matcher: Any, end_id: int) -> None:
        self._matcher, self._end_id = matcher, end_id

    def allowed(self, vocab_size: int) -> Tensor:
        """Which ids may come next, (V,) bool."""
        marks = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        self._check()
        allowed_V = torch.zeros(vocab_size, dtype=torch.bool)
        allowed_V[: len(marks)] = marks[:vocab_size]
        return allowed_V

    def accept(self, id: int) -> None:
        """Takes the id that was chosen."""
        if id != self._end_id:
            self._matcher.consume_token(id)
            self._check()

    def filter(self, drafts: Sequence[int]) -> list[int]:
        """The guesses up to the first that the form forbids."""
        return list(drafts[: self._matcher.validate_tokens(list(drafts))])

    def forced(self) -> list[int]:
        """Ids that must come next, where there is no choice."""
        return list(self._matcher.compute_ff_tokens())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]  # the rest is its state
            raise InputError(f"the form of the answer cannot be followed: {reason}")


class FormMaker:
    """Forms for answers in one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._library = _import_llguidance()
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._lock = Lock()
        self._tokenizer = self._library.LLTokenizer(
            self._library.TokenizerWrapper(_Words(vocabulary)), n_vocab=len(vocabulary.tokens)
        )

    def start(self, constraint: Constraint) -> Form:
        """A form to be filled. Raises InputError for one that is not valid."""
        with self._lock:
            known = self._compiled.get(constraint)
        if known is None:
            known = self._compile(constraint)  # not under the lock, for which the engine may wait
        with self._lock:
            self._compiled[constraint] = known
            self._compiled.move_to_end(constraint)
            if len(self._compiled) > NUM_COMPILED:
                self._compiled.popitem(last=False)
            return Form(known.deep_copy(), self.vocabulary.end_id)

    def _compile(self, constraint: Constraint) -> Any:
        try:
            matcher = self._library.LLMatcher(self._tokenizer, self._grammar(constraint), log_level=0)
        except UnicodeEncodeError as error:  # half a surrogate pair
            raise InputError(f"this {constraint.kind} holds characters that are no text: {error}") from error
        if matcher.is_error():
            raise InputError(f"this {constraint.kind} cannot be followed: {matcher.get_error()}")
        return matcher

    def _grammar(self, constraint: Constraint) -> str:
        kinds, value = self._library.LLMatcher, constraint.value
        if constraint.kind == "choice":
            if isinstance(value, str) or not value or not all(value):
                raise InputError(f"a choice needs some texts that are not empty, got {value!r}")
            texts = [json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f") for text in value]
            choices = " | ".join(texts)
            return str(kinds.grammar_from_lark(f"start: {choices}"))
        if not isinstance(value, str):
            raise InputError(f"a {constraint.kind} is one text, got {value!r}")
        if constraint.kind == "regex":
            return str(kinds.grammar_from_regex(value))
        if constraint.kind == "grammar":
            return str(kinds.grammar_from_lark(value))
        try:
            return str(kinds.grammar_from_json_schema(value, defaults=JSON_FORM))
        except ValueError as error:
            raise InputError(f"this json_schema cannot be followed: {error}") from error


class _Words:
    """A vocabulary in the form that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id, self.bos_token_id = vocabulary.end_id, None
        self.tokens, self.special_token_ids = list(vocabulary.tokens), list(vocabulary.special_ids)
        self._encode = vocabulary.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode(errors="replace") if isinstance(text, bytes) else text)


def can_make_forms() -> bool:
    """Whether what forms are made with is installed."""
    return find_spec("llguidance") is not None


def _import_llguidance() -> Any:
    try:
        import llguidance
    except ImportError as reason:
        raise InputError("answers of a given form need llguidance: pip install 'internvl[serve]'") from reason
    return llguidance
