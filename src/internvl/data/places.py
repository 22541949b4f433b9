"""The record at each position of a run: measured, made into an example, and replaced where it is broken.

What stands at a position depends on the seed and the position alone. Knows the mixture and how examples are
made; no steps, no processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from internvl.data.bad_samples import BROKEN, BadSample, key_of
from internvl.data.example import Size
from internvl.data.meta import DataSet
from internvl.data.mixture import Mixture, Pick
from internvl.data.packing import check_fits
from internvl.data.questions import Question
from internvl.data.spec import DataSpec
from internvl.errors import InputError

ATTEMPTS = 50
"""Records of the same data set, then records that follow, that are tried in place of a broken one."""


E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class Maker(Protocol[E_co]):
    """Makes examples of rows: `data.chat_examples.Examples`, `data.pair_examples.PairExamples`. All raise one
    of `BROKEN` for a bad record."""

    def measure(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int) -> Size:
        """The size of `example` with the same seed, without decoding pictures."""

    def example(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str) -> E_co: ...


class Asker(Maker[E_co], Protocol[E_co]):
    """Makes examples of rows that hold questions too."""

    def ask(self, row: Mapping[str, Any], dataset: DataSet) -> tuple[Question, ...]:
        """The questions of a row, as chat is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The record of a position: its own (`attempt` 0) or a replacement. `size` is None where the place stays
    empty; `bad` are the records that were found broken on the way."""

    position: int
    attempt: int
    pick: Pick
    size: Size | None
    bad: tuple[BadSample, ...] = ()


class Places(Generic[E]):
    """Safe under threads: nothing changes."""

    def __init__(self, mixture: Mixture, examples: Maker[E], spec: DataSpec, seed: int) -> None:
        self.mixture, self.examples, self.spec, self.seed = mixture, examples, spec, seed

    def find(self, position: int) -> Place:
        """The place of a position, measured.

        Under policy "skip" the record is made too and thrown away, since all processes must agree on what is
        left out before any of them computes.
        """
        place = self._measured(position, 0, self.mixture.pick(position))
        if place.size is None and self.spec.bad_samples.policy == "replace":
            found, bad = self._replacement(place, None)
            place = replace(found or place, bad=(*place.bad, *bad))
        return place

    def make(self, place: Place) -> E:
        """Raises one of `BROKEN`."""
        number = place.pick.row
        dataset = self.mixture.datasets[place.pick.dataset]
        row, key = dataset.source.row(number), key_of(dataset, number)
        return self.examples.example(row, dataset, seed=self._seed(place), key=key)

    def _seed(self, place: Place) -> int:
        text = f"{self.seed} {place.position} {place.attempt}".encode()
        return int.from_bytes(blake2b(text, digest_size=7).digest())

    def substitute(self, place: Place, room: Size) -> tuple[Place | None, E | None, list[BadSample]]:
        """The next candidate for a place that fits `room` and can be made, and the broken ones before it."""
        bad: list[BadSample] = []
        current: Place | None = place
        while current is not None:
            current, more = self._replacement(current, room)
            bad += more
            if current is not None:
                try:
                    return current, self.make(current), bad
                except BROKEN as error:
                    bad.append(self.bad(current, error))
        return None, None, bad

    def bad(self, place: Place, error: Exception) -> BadSample:
        dataset = self.mixture.datasets[place.pick.dataset]
        return BadSample.of(dataset, place.pick.row, place.position, error)

    def _replacement(self, place: Place, room: Size | None) -> tuple[Place | None, list[BadSample]]:
        """The first usable candidate after the one of `place`."""
        bad: list[BadSample] = []
        candidates = enumerate(self._candidates(place.position), start=1)
        for attempt, pick in islice(candidates, place.attempt, None):
            found = self._measured(place.position, attempt, pick)
            bad += found.bad
            if found.size is not None and (room is None or found.size.fits(room)):
                return found, bad
        return None, bad

    def _candidates(self, position: int) -> Iterator[Pick]:
        """Other records of the same data set, as many as there are, then those that follow in the run; none
        twice."""
        tried = {self.mixture.pick(position)[:2]}
        for number in range(1, ATTEMPTS + 1):
            try:
                pick = self.mixture.replacement(position, number)
            except InputError:
                break
            tried.add(pick[:2])
            yield pick
        for number in range(1, ATTEMPTS + 1):
            pick = self.mixture.pick(position + number)
            if pick[:2] not in tried:
                tried.add(pick[:2])
                yield pick

    def _measured(self, position: int, attempt: int, pick: Pick) -> Place:
        place = Place(position=position, attempt=attempt, pick=pick, size=None)
        dataset = self.mixture.datasets[pick.dataset]
        try:
            size = self.examples.measure(dataset.source.row(pick.row), dataset, seed=self._seed(place))
            check_fits(size, self.spec.batching)
            if self.spec.bad_samples.policy == "skip":
                self.make(place)
        except BROKEN as error:
            return replace(place, bad=(self.bad(place, error),))
        return replace(place, size=size)
