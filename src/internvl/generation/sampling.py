"""The settings of one answer, checked when they are made.

Plain values; knows no torch, no model and no text. `generation.sampler` acts on them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from internvl.errors import InputError

# Beyond these, scores can leave the range of float32 in long answers and at low temperatures.
MAX_TEMPERATURE = 1e6
MAX_BIAS = 1e6
MAX_PENALTY = 100.0
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
# Each has keys and values of its own.
MAX_BEAMS = 64
# Beyond it, powers of the length leave the range of float64.
MAX_LENGTH_PENALTY = 10.0

AT_LEAST: Mapping[str, int] = {
    "top_k": 0,
    "logprobs": 0,
    "min_new_tokens": 0,
    "max_new_tokens": 1,
}
WITHIN: Mapping[str, tuple[float, float]] = {
    "num_beams": (1, MAX_BEAMS),
    "temperature": (0.0, MAX_TEMPERATURE),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    "presence_penalty": (-MAX_PENALTY, MAX_PENALTY),
    "frequency_penalty": (-MAX_PENALTY, MAX_PENALTY),
    "length_penalty": (-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Every setting of one answer. The defaults are greedy, as in the published quick-starts.

    Scores pass in this order: `logit_bias` (added, by id), `repetition_penalty` (ids seen, see
    `generation.prompt`), `presence_penalty` and `frequency_penalty` (ids generated), `min_new_tokens` (no
    stop id before), then, with `temperature` above 0, `temperature`, `top_k`, `top_p`, `min_p`. Temperature 0
    takes the best id and ignores the last three. `logprobs=n` reports each chosen id and the n best, from the
    model's own scores before any of this. `seed` None draws one from torch's global generator.

    An answer ends at any of `stop_ids` (kept as its last id), before any string of `stop` (cut from the
    text), or at `max_new_tokens`. `num_beams` above 1 is beam search: `length_penalty` is the exponent of the
    length that divides a beam's summed log-probability; `early_stopping` ends at the first `num_beams`
    finished beams. None for `stop` or `logit_bias`, the default of the OpenAI protocol, is none.

    Temperature, penalties and biases are bounded (`MAX_BIAS` and so on), so that scores stay finite.
    Raises InputError naming the field when a value is out of range or two settings contradict each other.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int = 0
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        bias = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(bias, Mapping):
            raise InputError(f"logit_bias must map token ids to numbers, got {bias!r}")
        object.__setattr__(self, "stop", _as_tuple("stop", () if stop is None else stop))
        object.__setattr__(self, "stop_ids", _as_tuple("stop_ids", self.stop_ids))
        object.__setattr__(self, "logit_bias", dict(bias))
        _check_numbers(self)
        _check_ranges(self)
        _check_together(self)

    @property
    def edits_scores(self) -> bool:
        """Whether anything but temperature and filters changes the model's scores."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        return bool(penalties or self.logit_bias or self.min_new_tokens)

    @property
    def is_plain_greedy(self) -> bool:
        """The best id of the model's own scores, and nothing to report about it."""
        return not (self.temperature or self.edits_scores or self.logprobs)


def _as_tuple(name: str, values: object) -> tuple[Any, ...]:
    if not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list, got {values!r}")
    return tuple(values)


def _check_numbers(sampling: Sampling) -> None:
    """Types and finiteness, so that the range checks below can compare."""
    for item in fields(sampling):
        value, kind = getattr(sampling, item.name), str(item.type)
        if kind == "float" and not _is_finite(value):
            raise InputError(f"{item.name} must be a finite number, got {value!r}")
        if kind == "int" and not _is_number(value, int):
            raise InputError(f"{item.name} must be a whole number, got {value!r}")
        if kind == "bool" and not isinstance(value, bool):
            raise InputError(f"{item.name} must be true or false, got {value!r}")
    if not all(_is_number(index, int) and index >= 0 for index in (*sampling.stop_ids, *sampling.logit_bias)):
        raise InputError("stop_ids and the keys of logit_bias must be token ids, whole numbers from 0")
    if not all(_is_finite(bias) for bias in sampling.logit_bias.values()):
        raise InputError("values of logit_bias must be finite numbers; -100 is as good as a ban")
    if not all(isinstance(text, str) and text for text in sampling.stop):
        raise InputError("stop must hold non-empty strings")


def _is_number(value: object, kind: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # type: ignore[arg-type]


def _is_finite(value: object) -> bool:
    # Not math.isfinite alone, which fails for whole numbers beyond the range of floats.
    return _is_number(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max  # type: ignore[operator]


def _check_ranges(sampling: Sampling) -> None:
    for name, least in AT_LEAST.items():
        if getattr(sampling, name) < least:
            raise InputError(f"{name} must be at least {least}, got {getattr(sampling, name)}")
    for name, (low, high) in WITHIN.items():
        if not low <= getattr(sampling, name) <= high:
            raise InputError(f"{name} must be from {low:g} to {high:g}, got {getattr(sampling, name)}")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1 (1 = off), got {sampling.top_p}")
    if sampling.seed is not None and not (_is_number(sampling.seed, int) and 0 <= sampling.seed < 2**63):
        raise InputError(f"seed must be None or a whole number from 0 to 2**63 - 1, got {sampling.seed!r}")
    if any(abs(bias) > MAX_BIAS for bias in sampling.logit_bias.values()):
        raise InputError(
            f"values of logit_bias must be from {-MAX_BIAS:g} to {MAX_BIAS:g}; -100 is as good as a ban"
        )


def _check_together(sampling: Sampling) -> None:
    if sampling.min_new_tokens > sampling.max_new_tokens:
        raise InputError(
            f"min_new_tokens {sampling.min_new_tokens} is above max_new_tokens {sampling.max_new_tokens}"
        )
    if sampling.num_beams == 1:
        return
    refused = {
        "temperature above 0": sampling.temperature,
        "stop strings": sampling.stop,
        "logprobs": sampling.logprobs,
    }
    for name, value in refused.items():
        if value:
            raise InputError(
                f"num_beams={sampling.num_beams} cannot be combined with {name}: use num_beams=1"
            )
