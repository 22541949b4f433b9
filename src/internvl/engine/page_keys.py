"""Names of pages: what a run of positions holds, and all that stands before it.

A page's key is a digest of the key before it, its token ids, and which vision tokens of which pictures fill
its slots. So two prompts share a page only if everything up to its end is the same, and two pictures with
equal prompts never do. Knows bytes and integers; no tensors, no pool.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

DIGEST_BYTES = 32
"""Of a cryptographic hash: a picture made to collide with another one would get its answers."""


@dataclass(frozen=True, slots=True)
class Span:
    """The slots of one picture: the prompt's positions `start` to `end` (excluded)."""

    start: int
    end: int
    key: bytes


class KeyChain:
    """The keys of all full pages of one growing sequence.

    `root` stands for what changes every key and value: the adapter, whose cache it is. `regime` tells, for a
    position, which rotation its key got, where that depends on the length of the sequence.
    """

    def __init__(
        self,
        page_size: int,
        root: bytes,
        spans: Sequence[Span] = (),
        regime: Callable[[int], int] | None = None,
    ) -> None:
        self.page_size, self.spans, self.regime = page_size, spans, regime
        self.keys: list[bytes] = []
        self._last = blake2b(root, digest_size=DIGEST_BYTES).digest()
        self._rest: list[int] = []

    def extend(self, ids: Sequence[int]) -> None:
        """Takes the next ids of the sequence."""
        self._rest.extend(ids)
        while len(self._rest) >= self.page_size:
            page, self._rest = self._rest[: self.page_size], self._rest[self.page_size :]
            self._last = self._digest(page, len(self.keys) * self.page_size)
            self.keys.append(self._last)

    def _digest(self, ids: Sequence[int], first: int) -> bytes:
        digest = blake2b(self._last, digest_size=DIGEST_BYTES)
        digest.update(array("q", ids).tobytes())
        end = first + len(ids)
        for span in self.spans:
            if span.start < end and span.end > first:
                place = array(
                    "q", [max(span.start, first) - first, max(first - span.start, 0), len(span.key)]
                )
                digest.update(place.tobytes() + span.key)
        if self.regime:
            digest.update(array("q", [self.regime(position) for position in range(first, end)]).tobytes())
        return digest.digest()
