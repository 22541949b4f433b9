"""Which parts of a model the rules of a recipe train, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping

from internvl.training.recipe import AdamW, Rule

WEIGHTS: Mapping[str, str] = {
    "vit": "vit.layers.3.mlp.fc1.weight",
    "projector": "projector.fc1.weight",
    "llm": "llm.layers.3.mlp.down.weight",
    "adapters": "llm.layers.3.mlp.down.lora_down",
}


def learning(rules: tuple[Rule, ...]) -> dict[str, AdamW]:
    """The settings of each part that is not frozen; adapters only where they differ from their model."""
    found = {
        part: next(settings for pattern, settings in rules if re.fullmatch(pattern, name))
        for part, name in WEIGHTS.items()
    }
    if found["adapters"] == found["llm"]:
        del found["adapters"]
    return {part: settings for part, settings in found.items() if settings is not None}
