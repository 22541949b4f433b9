"""How far a run is, as one line on a terminal; silent where stderr is none.

Knows the names of a log row, no model and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SHOWN: Mapping[str, str] = {
    "loss": "loss {:.4f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "tiles_per_second": "{:,.1f} tiles/s",
    "data_wait": "data wait {:.0%}",
}
"""Values of a row, in this order, where it has them; `data_wait` is the share of the time."""

REMEMBERED_SECONDS = 600.0
"""Steps of this many last seconds make the expected time; an evaluation now and then evens out."""


class Progress:
    """Steps done of `total`, the last row's numbers, time gone and time left. Used in a `with` statement."""

    def __init__(self, total: int, done: int = 0, console: Console | None = None) -> None:
        screen = console or Console(stderr=True)
        self._bars = Bars(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            console=screen,
            disable=not screen.is_terminal,
            speed_estimate_period=REMEMBERED_SECONDS,
        )
        self._task = self._bars.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, step: int, row: Mapping[str, object] | None = None) -> None:
        """`step` steps are finished; a row, where there is a new one, replaces the numbers shown."""
        text = None if row is None else summary(row)
        self._bars.update(self._task, completed=step, description=text)

    def message(self, text: str) -> None:
        """A line above the bar that stays."""
        if not self._bars.disable:
            self._bars.console.print(text, markup=False, highlight=False)


def summary(row: Mapping[str, object]) -> str:
    """The numbers of a row that are worth a glance, e.g. "loss 1.2345  812 tokens/s"."""
    values = ((form, row.get(name)) for name, form in SHOWN.items())
    return "  ".join(form.format(value) for form, value in values if isinstance(value, int | float))
