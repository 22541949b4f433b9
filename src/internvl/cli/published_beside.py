"""Scores and, beside them, what was published for the same set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from internvl.cli import output
from internvl.errors import UnknownNameError

Scores = Mapping[str, float | None]


def find_published(
    table: Mapping[str, Mapping[str, float]], name: str | None, default: str
) -> Mapping[str, float]:
    """The published row (per cent) that was asked for, else that of `default`, else none.

    Raises UnknownNameError for a name without a row.
    """
    if name is None:
        return table.get(default, {})
    if name not in table:
        raise UnknownNameError(f"nothing is published as {name!r}, but as {', '.join(table)}")
    return table[name]


def write_scores(
    head: Mapping[str, object], scores: Scores, published: Mapping[str, float], *, as_json: bool
) -> None:
    """A table in per cent, or a JSON document with all values as shares (0 to 1)."""
    if as_json:
        shares = {name: round(value / 100, 6) for name, value in published.items() if name in scores}
        output.write_json({**head, "scores": dict(scores), "published": shares or None})
        return
    counts = ", ".join(f"{value} {name}" for name, value in head.items() if type(value) is int)
    output.note(f"{head['set']}, mode {head['mode']}: {counts}")
    columns = ("measure", "%", "published") if published else ("measure", "%")
    output.write_table("", columns, (list(_row(*one, published)) for one in scores.items()))


def _row(name: str, value: float | None, published: Mapping[str, float]) -> Iterator[str]:
    yield name
    yield "-" if value is None else f"{100 * value:.2f}"
    if published:
        yield f"{published[name]:.2f}" if name in published else "-"
