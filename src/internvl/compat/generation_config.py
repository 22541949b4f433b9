"""`generation_config` of the published calls, read into our settings of an answer.

Never changes what it is given. Ranges are checked where the settings are made (`generation.sampling`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvl.errors import InputError

SAME = (
    *("max_new_tokens", "min_new_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("num_beams", "length_penalty", "early_stopping", "logit_bias", "seed"),
)
"""Settings that have one name on both sides."""

ONLY_WHEN_SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""With what they are where `do_sample` is true and they are not given, as in the released code."""

SPECIAL = ("do_sample", "eos_token_id", "pad_token_id", "stop_strings", "streamer")

WITHOUT_EFFECT = ("use_cache", "bos_token_id", "tokenizer", "transformers_version")

ONLY_AS: Mapping[str, tuple[Any, ...]] = {
    "num_return_sequences": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "penalty_alpha": (0.0,),
    "min_length": (0,),
    "return_dict_in_generate": (False,),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
}
"""Known settings of which only the value that changes nothing is accepted."""

REMEDIES: Mapping[str, str] = {
    "max_length": "name max_new_tokens, the length of the answer alone",
    "num_return_sequences": "ask several times with do_sample=True and different seeds",
    "min_length": "name min_new_tokens, the length of the answer alone",
    "output_hidden_states": "use internvl.load(...).vision_states or .logits",
    "output_scores": "use internvl.load(...).chat(..., logprobs=n)",
    "output_logits": "use internvl.load(...).logits",
}


class GenerationConfig:
    """Settings as attributes; also accepted wherever a dictionary of settings is."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, slots=True)
class Settings:
    """`sampling`: options of `ChatModel`. `end_ids` are the caller's own, None where none was named."""

    sampling: Mapping[str, Any]
    end_ids: tuple[int, ...] | None = None
    pad_id: int | None = None
    streamer: Any = None


def read_settings(generation_config: Any, **overrides: Any) -> Settings:
    """A dictionary, or an object of settings, as `Settings`; None as a value means not given.

    Without `do_sample` an answer is greedy, whatever the temperature. Raises InputError for settings that
    do not exist, or that exist but are not supported with this value.
    """
    given = {**as_dict(generation_config), **overrides}
    given = {name: value for name, value in given.items() if value is not None}
    _check(given)
    sampling = {name: given[name] for name in SAME if name in given}
    if given.get("do_sample", False):
        sampling |= {name: given.get(name, default) for name, default in ONLY_WHEN_SAMPLING.items()}
    if "stop_strings" in given:
        stop = given["stop_strings"]
        sampling["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    ends, pad = given.get("eos_token_id"), given.get("pad_token_id")
    return Settings(
        sampling=sampling,
        end_ids=None if ends is None else _ids("eos_token_id", ends),
        pad_id=None if pad is None else _ids("pad_token_id", pad)[0],
        streamer=given.get("streamer"),
    )


def as_dict(generation_config: Any) -> dict[str, Any]:
    """A copy; of an object with many fields only those that differ from its defaults."""
    if generation_config is None:
        return {}
    if isinstance(generation_config, Mapping):
        return dict(generation_config)
    for method in ("to_diff_dict", "to_dict"):
        if hasattr(generation_config, method):
            return {
                name: value
                for name, value in getattr(generation_config, method)().items()
                if not name.startswith("_")
            }
    kind = type(generation_config).__name__
    raise InputError(f"generation_config must be a dictionary or a GenerationConfig, not {kind}")


def _check(given: Mapping[str, Any]) -> None:
    known = {*SAME, *ONLY_WHEN_SAMPLING, *SPECIAL, *WITHOUT_EFFECT, *ONLY_AS}
    for name, value in given.items():
        remedy = f"; {REMEDIES[name]}" if name in REMEDIES else ""
        if name not in known:
            raise InputError(
                f"generation_config has an unknown setting {name!r}{remedy}; there are "
                f"{', '.join(sorted(known - {*ONLY_AS}))}"
            )
        if name in ONLY_AS and value not in ONLY_AS[name]:
            raise InputError(f"generation_config: {name}={value!r} is not supported{remedy}")
    if not isinstance(given.get("do_sample", False), bool | int):
        raise InputError(f"generation_config: do_sample must be true or false, not {given['do_sample']!r}")


def _ids(name: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(id, int) and not isinstance(id, bool) for id in values):
        raise InputError(f"generation_config: {name} must be a token id or a list of them, not {value!r}")
    return tuple(values)
