"""What all requests of the protocol share: strict objects, settings of answers, and error objects.

Fields that are not declared are refused by name. Pure values; knows no HTTP, no tensors and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from internvl.errors import RequestError
from internvl.generation.sampling import Sampling

MAX_STOPS = 16
MAX_ANSWERS = 16
MAX_TOP_LOGPROBS = 20
MAX_PARTS = 10_000
"""Of one message."""
MAX_BIASES = 10_000
"""Tokens that one request makes more or less likely."""
MAX_IDS = 1_000_000
FAILED = "the server failed; see its log"
"""All that strangers are told of what nobody expected."""
NOT_WITH_BEAMS = ("stream", "temperature", "stop", "logprobs", "confidence")
"""What a search for the best beams has no room for, or does not know of them."""

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1, le=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# Here and in all lists: every wrong item would be an error of more than a kilobyte, the first one is enough.
Parts = Field(max_length=MAX_PARTS, fail_fast=True)


@dataclass(frozen=True, slots=True)
class _AtMost:
    """Refuses a longer mapping before anything in it is looked at, as Field's max_length does not."""

    limit: int

    def __call__(self, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > self.limit:
            raise ValueError(f"it has {len(given)} entries, the limit is {self.limit}")
        return given


def at_most(limit: int) -> BeforeValidator:
    """Stands beside a mapping's type."""
    return BeforeValidator(_AtMost(limit))


def _above_zero(given: float) -> float:
    """pydantic's own message has one end of a range only."""
    if not 0 < given <= 1:
        raise ValueError(f"it is above 0 and at most 1, got {given:g}; temperature 0 takes the best token")
    return given


class Strict(BaseModel):
    """An object whose fields are all known and of the declared kind: no "1" for 1, nothing extra."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_unknown(cls, given: Any) -> Any:
        """Of many unknown fields only the first stays, to be refused: each is an error of its own."""
        if not isinstance(given, dict) or len(given) <= len(cls.model_fields):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next(name for name in given if name not in known)
        return {name: value for name, value in given.items() if name in known or name == unknown}


class SamplingFields(Strict):
    """Settings of an answer: OpenAI's, and under vLLM's names what else the library has.

    Without `temperature` the best token is taken, as in the published examples of the models. `timeout` are
    seconds from the arrival of the request. `use_beam_search` gives the `n` best of `best_of` beams, of `n`
    if that is not given; without it `best_of` can only be 1. `confidence` asks how sure the model was
    (`generation.confidence`). `user` is accepted and kept nowhere.
    """

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, AfterValidator(_above_zero)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[str, Bias], at_most(MAX_BIASES)] | None = None
    seed: Seed | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    skip_special_tokens: bool | None = None
    timeout: Seconds | None = None
    confidence: bool | None = None
    use_beam_search: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _searches_with_beams(self) -> Self:
        beams = {name: getattr(self, name) for name in ("best_of", "length_penalty", "early_stopping")}
        if not self.use_beam_search:
            if self.best_of == (self.n or 1) == 1:  # OpenAI's default, written out
                del beams["best_of"]
            if given := [name for name, value in beams.items() if value is not None]:
                raise ValueError(f"{given[0]} needs use_beam_search=true")
            return self
        if self.num_beams < (self.n or 1):
            raise ValueError(f"n={self.n} answers of best_of={self.best_of} beams: raise best_of")
        for name in NOT_WITH_BEAMS:
            if getattr(self, name, None):
                raise ValueError(f"use_beam_search cannot be combined with {name}: leave it out")
        if self.prompt_logprobs is not None:
            raise ValueError("use_beam_search cannot be combined with prompt_logprobs: leave it out")
        return self

    @property
    def num_beams(self) -> int:
        """1 is no search."""
        return (self.best_of or self.n or 1) if self.use_beam_search else 1

    def sampling(self, stop_ids: tuple[int, ...], max_new_tokens: int, logprobs: int) -> Sampling:
        """As the library has it. `stop_ids` are those of the model. Raises InputError for what cannot be."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),  # -1 is vLLM's "all"
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": self._bias(),
            "seed": None if self.seed is None else self.seed % 2**63,
            "stop": (self.stop,) if isinstance(self.stop, str) else self.stop,
            "min_new_tokens": self.min_tokens,
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
        }
        ends = () if self.ignore_eos else stop_ids
        settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return Sampling(
            **settings,
            stop_ids=(*ends, *(self.stop_token_ids or ())),
            max_new_tokens=max_new_tokens,
            logprobs=logprobs,
        )

    def _bias(self) -> dict[int, float] | None:
        if self.logit_bias is None:
            return None
        if not all(name.isascii() and name.isdigit() and len(name) < 10 for name in self.logit_bias):
            raise RequestError('the keys of logit_bias are token ids, such as "50256"', param="logit_bias")
        return {int(name): bias for name, bias in self.logit_bias.items()}


def error_object(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of every answer that is not a success."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
