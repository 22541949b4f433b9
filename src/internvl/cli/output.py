"""Where a command writes: what was asked for to stdout, everything else to stderr.

Knows rich and JSON; no models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

UNCUT = 400
"""Columns of a table that nobody looks at on a screen."""


def write(text: str) -> None:
    """Text to stdout, at once; what its encoding does not have is the escape that JSON has for it."""
    sys.stdout.write(_escaped(text, sys.stdout.encoding or "utf-8"))
    sys.stdout.flush()


def write_json(document: Mapping[str, object]) -> None:
    """One JSON document to stdout."""
    write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def note(text: str) -> None:
    """A line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write_pairs(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """A table of names and values, one a line."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.min_width = len(title)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    _write_table(table)


def write_table(title: str, names: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table with a heading; numbers stand to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    cells = [[str(cell) for cell in row] for row in rows]
    for column, name in enumerate(names):
        is_number = all(row[column][:1].isdigit() for row in cells)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    _write_table(table)


def _escaped(text: str, encoding: str) -> str:
    """Bytes of file names that are no Unicode, halves of surrogate pairs, and letters that a terminal lacks,
    as JSON writes them: in a document they mean what they did."""
    lacking = [one for one in set(text) if one.encode(encoding, "replace").decode(encoding, "replace") != one]
    return text.translate({ord(one): json.dumps(one)[1:-1] for one in lacking})


def _write_table(table: Table) -> None:
    """Fitted to a terminal; into a file or pipe with whole lines and no padding."""
    is_terminal = sys.stdout.isatty()
    # Names of files are no markup and no emoji.
    console = Console(
        file=sys.stdout, highlight=False, markup=False, emoji=False, width=None if is_terminal else UNCUT
    )
    with console.capture() as captured:
        console.print(table)
    write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


@contextmanager
def status(what: str) -> Iterator[None]:
    """Something that takes a while, on stderr while it does; silent where stderr is no terminal."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield
        return
    with screen.status(what):
        yield


@contextmanager
def progress(what: str, *, is_bytes: bool = False) -> Iterator[Callable[[str, float, float | None], None]]:
    """Bars on stderr, silent where stderr is no terminal.

    The function it gives is called with a row's name, what is done of it, and all there is to do
    (None: unknown).
    """
    columns = [TextColumn("{task.description}"), BarColumn()]
    columns += (
        [DownloadColumn(), TransferSpeedColumn()]
        if is_bytes
        else [TextColumn("{task.completed:.0f}/{task.total:.0f}")]
    )
    screen = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=screen, disable=not screen.is_terminal) as bars:
        tasks: dict[str, object] = {}

        def advance(name: str, done: float, total: float | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(f"{what} {name}".strip(), total=total)
            bars.update(tasks[name], completed=done, total=total)  # type: ignore[arg-type]

        yield advance


def size(num_bytes: float) -> str:
    """Bytes for people: 1.9 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
