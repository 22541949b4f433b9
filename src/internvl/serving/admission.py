"""How many requests are inside at once; one more is sent away at once, not left waiting.

Integers and names of clients only. Used from one event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from internvl.errors import RequestError

RETRY_SECONDS = 2
"""What a client that was sent away is told to wait."""


class Place:
    """A place inside, given back once however often it is left."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission: Admission | None = admission
        self._client = client

    def leave(self) -> None:
        if self._admission is not None:
            self._admission.leave(self._client)
            self._admission = None

    def hand_over(self) -> Callable[[], None]:
        """Leaving becomes the business of whoever calls this function."""
        assert self._admission is not None
        passed = Place(self._admission, self._client)
        self._admission = None
        return passed.leave

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Admission:
    """Room for `capacity` requests, and for `per_client` of one client."""

    def __init__(self, capacity: int, per_client: int | None = None) -> None:
        self.capacity, self.per_client = capacity, per_client
        self.num_inside = self.num_refused = 0
        self._clients: Counter[str] = Counter()

    def enter(self, client: str = "") -> Place:
        """A place. Raises RequestError with 429 when there is none."""
        count = self._clients[client]
        if self.per_client is not None and count >= self.per_client:
            raise self._refusal(
                f"{count} requests of this key are running or waiting, its limit is {self.per_client}",
                "key_limit_reached",
            )
        if self.num_inside >= self.capacity:
            raise self._refusal(
                f"{self.num_inside} requests are running or waiting, the limit is {self.capacity}",
                "queue_full",
            )
        self.num_inside += 1
        self._clients[client] += 1
        return Place(self, client)

    def leave(self, client: str) -> None:
        """Gives a place back."""
        self.num_inside -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def _refusal(self, reason: str, code: str) -> RequestError:
        self.num_refused += 1
        return RequestError(f"{reason}; try again in {RETRY_SECONDS} s", status=429, code=code)
