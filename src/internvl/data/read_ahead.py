"""Examples made ahead in threads, in the order of their places, and no more of them than memory is meant for.

Knows places and how one becomes an example; no steps, no packs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from threading import Lock
from typing import Generic, TypeVar

from internvl.data.places import Place

E = TypeVar("E")


class ReadAhead(Generic[E]):
    """A queue: `put` places, `take` the example of each in the same order. Safe under threads.

    Examples that are being made, or made and not taken yet, have at most `limit` tiles together, where one
    without tiles counts as one tile; an example of more is made alone, so nothing ever waits for good.
    """

    def __init__(self, make: Callable[[Place], E], readers: Executor, limit: int) -> None:
        self._make, self._readers, self.limit = make, readers, limit
        self._waiting: deque[Place] = deque()
        self._begun: deque[tuple[int, Future[E]]] = deque()
        self._held = 0
        self._lock = Lock()

    def put(self, places: Iterable[Place]) -> None:
        """Measured places, each to be taken once."""
        with self._lock:
            self._waiting.extend(places)
            self._begin()

    def take(self) -> E:
        """The example of the next place, which must have been put. Raises what making it raised."""
        with self._lock:
            tiles, read = self._begun.popleft()
        try:
            return read.result()
        finally:
            del read  # an error leads to this frame: what holds the error would keep all that it leads to
            with self._lock:
                self._held -= tiles
                self._begin()

    def _begin(self) -> None:
        """As many as there is room for; one in any case, where nothing is held."""
        while self._waiting:
            tiles = _tiles(self._waiting[0])
            if self._held and self._held + tiles > self.limit:
                return
            self._begun.append((tiles, self._readers.submit(self._make, self._waiting.popleft())))
            self._held += tiles


def _tiles(place: Place) -> int:
    return max(1, 0 if place.size is None else place.size.tiles)
