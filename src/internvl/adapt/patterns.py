"""The one matcher over parameter names: ordered (regex, value) rules, first match wins.

Freezing, learning rates, LoRA targets, quantised layers and sharded units are all such lists over
canonical names like `llm.layers.3.attn.qkv.weight`. Knows no models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from internvl.errors import InputError

T = TypeVar("T")


def match(rules: Sequence[tuple[str, T]], names: Iterable[str]) -> dict[str, T]:
    """The value of every name that some rule matches; names no rule matches are left out.

    A regex must match the whole name. The first rule that matches decides; a later one may be
    shadowed entirely (a final `.*` for the rest is fine), but it must match some name.

    Raises:
        InputError: a rule that matches no name at all, or a regex that does not compile.
    """
    known = list(names)
    chosen: dict[str, T] = {}
    for pattern, value in rules:
        hits = [name for name in known if _compiled(pattern).fullmatch(name)]
        if not hits:
            few = ", ".join(known[:5]) or "none"
            raise InputError(f"pattern {pattern!r} matches none of {len(known)} names; they begin with {few}")
        for name in hits:
            chosen.setdefault(name, value)
    return {name: chosen[name] for name in known if name in chosen}


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"pattern {pattern!r} is not a regular expression: {error}") from error
