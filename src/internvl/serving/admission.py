"""How many requests are inside at once; one more is sent away at once, not left waiting.

Integers only. Used from one event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from internvl.errors import RequestError

RETRY_SECONDS = 2
"""What a client that was sent away is told to wait."""


class Place:
    """A place inside, given back once however often it is left."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def leave(self) -> None:
        if self._admission is not None:
            self._admission.num_inside -= 1
            self._admission = None

    def hand_over(self) -> Callable[[], None]:
        """Leaving becomes the business of whoever calls this function."""
        assert self._admission is not None
        passed = Place(self._admission)
        self._admission = None
        return passed.leave

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Admission:
    """Room for `capacity` requests."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_inside = self.num_refused = 0

    def enter(self) -> Place:
        """A place. Raises RequestError with 429 when there is none."""
        if self.num_inside >= self.capacity:
            self.num_refused += 1
            raise RequestError(
                f"{self.num_inside} requests are running or waiting, the limit is {self.capacity}; try again "
                f"in {RETRY_SECONDS} s",
                status=429,
                code="queue_full",
            )
        self.num_inside += 1
        return Place(self)
