"""adapter_config.json as PEFT writes it: ranks, scales and what to refuse.

Knows the fields of that file; names of tensors and their values are read in `checkpoints.adapters`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internvl.checkpoints.fields import Fields

KEEPS_THE_BASE: frozenset[object] = frozenset({None, True, False, "gaussian", "orthogonal", "eva"})
"""Values of `init_lora_weights` that leave the base weights as published; others, like PiSSA, change them."""

REFUSED: Mapping[str, object] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "use_qalora": False,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "arrow_config": None,
}
"""Fields that change what is computed, with the only value understood here."""

PEFT_ALPHA = 8.0
"""Where the file says nothing."""

MAX_PATTERN = 200
_HANGS = re.compile(r"\)[*+{]|([*+}].*){5}")
"""A repeated group, or many repetitions: such an expression from a file can take for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What the file says of the adapters. `alphas`: what a module's name matches, the first one counts."""

    alpha: float
    alphas: tuple[tuple[re.Pattern[str], float], ...] = ()
    dropout: float = 0.0
    rank_stabilized: bool = False
    magnitude: bool = False

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's factors is multiplied by."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_adapter_config(values: Mapping[str, object], place: str) -> AdapterConfig:
    """Understand the file's object.

    Raises:
        ConfigError: another method than LoRA, or an option that changes the arithmetic.
    """
    fields = Fields(values, place)
    if fields.text("peft_type", "LORA") != "LORA":
        raise fields.wrong("peft_type", "LORA")
    for name, only in REFUSED.items():
        if values.get(name) not in (only, None):
            raise fields.wrong(name, f"{only!r}: nothing else is supported")
    init = values.get("init_lora_weights")
    if isinstance(init, list | dict) or init not in KEEPS_THE_BASE:
        raise fields.wrong("init_lora_weights", "one that leaves the base weights alone")
    patterns = fields.inner("alpha_pattern")
    return AdapterConfig(
        alpha=_nonzero(fields, "lora_alpha", PEFT_ALPHA),
        alphas=tuple((_pattern(key, patterns), _nonzero(patterns, key)) for key in patterns.values),
        dropout=fields.number("lora_dropout", 0.0),
        rank_stabilized=fields.flag("use_rslora", default=False),
        magnitude=fields.flag("use_dora", default=False),
    )


def write_adapter_config(
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    *,
    dropout: float,
    rank_stabilized: bool,
    magnitude: bool,
    whole: Sequence[str],
    base: str | None,
) -> dict[str, Any]:
    """The file's object for modules of the given ranks and scales; `whole` are modules stored as they are."""
    alphas = {
        name: scales[name] * (math.sqrt(rank) if rank_stabilized else rank) for name, rank in ranks.items()
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "rank_pattern": {re.escape(name): value for name, value in ranks.items() if value != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "lora_dropout": dropout,
        "use_rslora": rank_stabilized,
        "use_dora": magnitude,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(whole) or None,
    }


def _nonzero(fields: Fields, name: str, default: float | None = None) -> float:
    value = fields.number(name, default)
    if value == 0:
        raise fields.wrong(name, "a number other than 0")
    return value


def _pattern(key: str, fields: Fields) -> re.Pattern[str]:
    """Matches names of modules that end with the key, as in PEFT."""
    if len(key) > MAX_PATTERN or _HANGS.search(key):
        raise fields.wrong(
            key[:MAX_PATTERN], f"a plain pattern of at most {MAX_PATTERN} characters as the name"
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError) as error:
        raise fields.wrong(key, f"a regular expression as the name ({error})") from error
