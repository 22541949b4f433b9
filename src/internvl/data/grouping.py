"""The order in which places are taken: as they come, or records of like length together.

Grouping sorts inside windows that begin at fixed positions, so the record at any index is still a function of
the index. Knows places and threads; no steps.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from random import Random
from typing import Any

from internvl.data.packing import cost
from internvl.data.places import Place, Places

STEPS_IN_WINDOW = 32
AHEAD = 4
"""Places measured ahead for each worker."""


class Order:
    """Places by index, measured ahead by `readers`. An epoch has `epoch` places; none leaves its epoch.

    Not safe under threads: one planner asks.
    """

    def __init__(self, places: Places[Any], readers: Executor, epoch: int) -> None:
        self.places, self.readers, self.epoch = places, readers, epoch
        self.batching = places.spec.batching
        self.window = (self.batching.examples or 0) * STEPS_IN_WINDOW if places.spec.group_by_length else 0
        self._ahead: dict[int, Future[Place]] = {}
        self._begun = 0
        self._sorted: list[Place] = []
        self._start = 0

    def place(self, index: int) -> Place:
        """The place at an index of the run. Raises what reading a record raises beyond `BROKEN`."""
        if not self.window:
            return self._read_ahead(index)
        if not self._start <= index < self._start + len(self._sorted):
            self._sort(index)
        # The next window is measured while this one is used: begun at once, it would hold up decoding.
        self._begin(index + len(self._sorted) + 1)
        return self._sorted[index - self._start]

    def _read_ahead(self, position: int) -> Place:
        """The place of a position; the next ones are begun, those before it forgotten."""
        wanted = range(position, position + AHEAD * self.places.spec.workers)
        self._ahead = {
            number: self._ahead.get(number) or self.readers.submit(self.places.find, number)
            for number in wanted
        }
        return self._ahead[position].result()

    def _sort(self, index: int) -> None:
        """The window that holds `index`: longest first, cut into steps, the steps shuffled."""
        epoch, offset = divmod(index, self.epoch)
        start = epoch * self.epoch + offset // self.window * self.window
        end = min(start + self.window, (epoch + 1) * self.epoch)
        if start not in self._ahead:
            self._ahead, self._begun = {}, start
        places = [self._measured(position) for position in range(start, end)]
        works = [0.0 if place.size is None else cost(place.size, self.batching) for place in places]
        order = sorted(range(len(places)), key=lambda number: (-works[number], number))
        size = self.batching.examples or 1
        # Steps begin at multiples of their size; the ends of a window may share one with its neighbours.
        head = -start % size
        # The last window of an epoch may end before a step begins in it.
        tail = max(head, head + (len(order) - head) // size * size)
        steps = [order[first : first + size] for first in range(head, tail, size)]
        Random(f"{self.places.seed} {start}").shuffle(steps)
        shuffled = [*order[:head], *(number for step in steps for number in step), *order[tail:]]
        self._sorted = [places[number] for number in shuffled]
        self._start = start

    def _measured(self, position: int) -> Place:
        """The place of a position of the window; the next ones are begun."""
        self._begin(position + AHEAD * self.places.spec.workers)
        return self._ahead.pop(position).result()

    def _begin(self, end: int) -> None:
        """Measuring of the positions before `end`."""
        for position in range(self._begun, end):
            self._ahead[position] = self.readers.submit(self.places.find, position)
        self._begun = max(self._begun, end)
