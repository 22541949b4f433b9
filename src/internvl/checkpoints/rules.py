"""How weights of one layout become ours, and back: rules that are read in both directions.

A rule names their tensors and our tensor; `{i}` stands for a number and `{any}` for anything.
Every key is used exactly once; what no rule takes is reported, never skipped. Rules move lazy
tensors, so nothing is read here. Knows no files; the tables are in `checkpoints.layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple, Protocol, Self

from internvl.checkpoints.lazy import Lazy, Rows, Shuffled, Stack, num_rows
from internvl.errors import WeightsError

Share = Literal["equal", "heads"]


class Heads(NamedTuple):
    """What a rule must know of the language model to take its fused tensors apart."""

    query: int
    key_value: int


class Rule(Protocol):
    """`load` turns the tensors called `theirs` into those called `ours`; `save` is its inverse."""

    @property
    def theirs(self) -> tuple[str, ...]: ...

    @property
    def ours(self) -> tuple[str, ...]: ...

    def load(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]: ...

    def save(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]: ...

    def under(self, theirs: str, ours: str) -> Self:
        """The same rule with prefixes in front of the names."""
        ...


@dataclass(frozen=True, slots=True)
class _Named:
    theirs: tuple[str, ...]
    ours: tuple[str, ...]

    def under(self, theirs: str, ours: str) -> Self:
        return replace(
            self,
            theirs=tuple(theirs + name for name in self.theirs),
            ours=tuple(ours + name for name in self.ours),
        )


@dataclass(frozen=True, slots=True)
class Copy(_Named):
    """Another name, the same values."""

    def load(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        return parts

    def save(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        return parts


@dataclass(frozen=True, slots=True)
class Fuse(_Named):
    """Their several tensors stacked are our one. `share` says how the rows divide on the way back."""

    share: Share = "equal"

    def load(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        widths = {part.shape[1:] for part in parts}
        if len(widths) > 1:
            shapes = ", ".join(f"{part.origin} {part.shape}" for part in parts)
            raise WeightsError(f"these tensors belong together but differ in width: {shapes}")
        return [Stack(parts)]

    def save(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        shares = (
            (heads.query, heads.key_value, heads.key_value)
            if self.share == "heads"
            else (1,) * len(self.theirs)
        )
        unit = num_rows(parts[0]) // sum(shares)
        stops = [unit * sum(shares[: index + 1]) for index in range(len(shares))]
        return [Rows(parts[0], start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


@dataclass(frozen=True, slots=True)
class Regroup(_Named):
    """InternLM2 stores [q ... q k v] for every key-value head; we store [all q | all k | all v]."""

    def load(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        return [Shuffled(parts[0], self._order(parts[0], heads))]

    def save(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        order = self._order(parts[0], heads)
        return [Shuffled(parts[0], sorted(range(len(order)), key=order.__getitem__))]

    @staticmethod
    def _order(part: Lazy, heads: Heads) -> list[int]:
        """Their block of every one of our blocks; a block is one head."""
        group = heads.query // heads.key_value
        blocks = (group + 2) * heads.key_value
        if num_rows(part) % blocks:
            raise WeightsError(
                f"{part.origin} has {num_rows(part)} rows, not a multiple of the {blocks} heads "
                f"that config.json implies ({heads.query} query, {heads.key_value} key-value)"
            )
        starts = range(0, blocks, group + 2)
        query = [start + index for start in starts for index in range(group)]
        return query + [start + group for start in starts] + [start + group + 1 for start in starts]


@dataclass(frozen=True, slots=True)
class Drop(_Named):
    """Stored by some writers, made from the configuration by us: read past, never written."""

    def load(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        return ()

    def save(self, parts: Sequence[Lazy], heads: Heads) -> Sequence[Lazy]:
        return ()


@dataclass(frozen=True, slots=True)
class Converted:
    """What rules made of a set of keys. `incomplete` maps a result to the source keys it lacks."""

    tensors: Mapping[str, Lazy]
    unexpected: tuple[str, ...]
    incomplete: Mapping[str, tuple[str, ...]]


def copy(theirs: str, ours: str) -> Copy:
    return Copy((theirs,), (ours,))


def linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Weight and, where there is one, bias."""
    return tuple(copy(f"{theirs}.{end}", f"{ours}.{end}") for end in ("weight", "bias"))


def fused(theirs: Sequence[str], ours: str, share: Share = "equal") -> tuple[Rule, ...]:
    """Weight and, where there is one, bias of linears that we keep as one."""
    ends = ("weight", "bias")
    return tuple(Fuse(tuple(f"{name}.{end}" for name in theirs), (f"{ours}.{end}",), share) for end in ends)


def regrouped(theirs: str, ours: str) -> tuple[Rule, ...]:
    return tuple(Regroup((f"{theirs}.{end}",), (f"{ours}.{end}",)) for end in ("weight", "bias"))


def drop(*theirs: str) -> tuple[Rule, ...]:
    return tuple(Drop((name,), ()) for name in theirs)


def under(rules: Iterable[Rule], theirs: str, ours: str = "") -> tuple[Rule, ...]:
    """Rules with prefixes in front of their and our names."""
    return tuple(rule.under(theirs, ours) for rule in rules)


def convert(
    tensors: Mapping[str, Lazy], rules: Iterable[Rule], heads: Heads, *, back: bool = False
) -> Converted:
    """Their tensors to ours, or with `back` ours to theirs. Nothing is read.

    The first rule that knows a key takes it, together with the keys that belong to it.
    """
    left, out = dict(tensors), dict[str, Lazy]()
    incomplete: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        sources, targets = (rule.ours, rule.theirs) if back else (rule.theirs, rule.ours)
        for marks in _matches(sources, left):
            keys = [_fill(source, marks) for source in sources]
            lacking = tuple(key for key in keys if key not in left)
            parts = [left.pop(key) for key in keys if key in left]
            if lacking:
                incomplete.update({_fill(target, marks): lacking for target in targets})
                continue
            made = (rule.save if back else rule.load)(parts, heads)
            out.update(zip((_fill(target, marks) for target in targets), made, strict=True))
    return Converted(out, tuple(sorted(left)), incomplete)


def strictly(converted: Converted) -> Mapping[str, Lazy]:
    """The tensors of a conversion that used every key.

    Raises:
        WeightsError: naming the keys that no rule takes, or that lack their companions.
    """
    for name, lacking in converted.incomplete.items():
        raise WeightsError(f"{name} cannot be made: {', '.join(lacking)} is missing")
    if converted.unexpected:
        first = ", ".join(converted.unexpected[:10])
        raise WeightsError(f"no rule for {len(converted.unexpected)} keys: {first}")
    return converted.tensors


def original_names(name: str, rules: Iterable[Rule]) -> tuple[str, ...]:
    """What one of our tensors is called in a layout; () when the layout has no such tensor."""
    for rule in rules:
        for ours in rule.ours:
            found = _regex(ours).fullmatch(name)
            if found:
                return tuple(_fill(theirs, found.groupdict()) for theirs in rule.theirs)
    return ()


def _matches(sources: Sequence[str], keys: Iterable[str]) -> list[Mapping[str, str]]:
    """The distinct wildcard values for which at least one of the sources is there."""
    found: dict[tuple[str, ...], Mapping[str, str]] = {}
    patterns = [_regex(source) for source in sources]
    for key in keys:
        for pattern in patterns:
            match = pattern.fullmatch(key)
            if match:
                found[tuple(match.groupdict().values())] = match.groupdict()
    return list(found.values())


@cache
def _regex(name: str) -> re.Pattern[str]:
    escaped = re.escape(name).replace(r"\{i\}", r"(?P<i>0|[1-9]\d*)").replace(r"\{any\}", r"(?P<any>.+)")
    return re.compile(escaped)


def _fill(name: str, marks: Mapping[str, str]) -> str:
    for mark, value in marks.items():
        name = name.replace("{" + mark + "}", value)
    return name
