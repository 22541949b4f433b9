"""The batches of each step: planned alike on every process, read ahead in threads.

A step depends on the seed and its first position alone, so a run resumes at the exact record, also on another
number of processes. Knows processes by number; no model, no communication.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from internvl.data.bad_samples import BROKEN, BadSample, BadSamplesLog
from internvl.data.batch import Batch, pack
from internvl.data.example import Example, Size
from internvl.data.grouping import Order
from internvl.data.mixture import Mixture
from internvl.data.packing import Packs, check_parts, fill_packs, room_left, share_packs
from internvl.data.places import Maker, Place, Places
from internvl.data.spec import DataSpec
from internvl.errors import TrainingError

STEPS_AHEAD = 2
EMPTY_IN_A_ROW = 100
"""Places without a usable record after which none is expected to come."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """What one process computes of a step, a batch for each micro-batch.

    The step begins at position `first` and the next one at `position`; these two are the same on every
    process, the numbers of examples, tiles and packed tokens are its own. `wait`: seconds waited for data.
    """

    batches: tuple[Batch, ...]
    first: int
    position: int
    wait: float
    num_examples: int
    num_tiles: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """A whole step. `mine` are the packs of each micro-batch of this process; `reads` their examples, being
    made. Where the step could not be filled, `packs` is empty."""

    first: int
    position: int
    places: tuple[Place, ...]
    packs: Packs
    mine: Packs
    reads: tuple[tuple[tuple[Future[Example], ...], ...], ...]
    num_seen: int
    bad: tuple[BadSample, ...]


class Feed:
    """Steps one after the other from `position` on. `close` ends its threads."""

    def __init__(
        self,
        mixture: Mixture,
        examples: Maker,
        spec: DataSpec,
        *,
        seed: int,
        tile_size: int,
        bad: BadSamplesLog,
        world: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        position: int = 0,
    ) -> None:
        """Raises TrainingError where a step is too small to be shared by all processes and micro-batches."""
        check_parts(spec.batching, world * accumulate)
        self.spec, self.tile_size, self.bad = spec, tile_size, bad
        self.world, self.rank, self.accumulate = world, rank, accumulate
        self.position = self._next = position
        self._places = Places(mixture, examples, spec, seed)
        self._readers = ThreadPoolExecutor(spec.workers, "read")
        self._planner = ThreadPoolExecutor(1, "plan")
        self._order = Order(self._places, self._readers, len(mixture))
        self._plans: deque[Future[_Plan]] = deque()

    def take(self) -> Step:
        """The next step. Raises TrainingError when bad records end the run; they are written down first."""
        start = time.perf_counter()
        while len(self._plans) <= STEPS_AHEAD:
            self._plans.append(self._planner.submit(self._plan_next))
        plan = self._plans.popleft().result()
        self.bad.add(plan.bad, num_seen=plan.num_seen, is_written=self.rank == 0)
        if not plan.packs:
            raise TrainingError(
                f"{plan.num_seen} records in a row from position {plan.first} on cannot be used; the last: "
                f"{plan.bad[-1].key}: {plan.bad[-1].reason}"
            )
        batches = tuple(self._batch(plan, part) for part in range(self.accumulate))
        self.position = plan.position
        return Step(
            batches=batches,
            first=plan.first,
            position=plan.position,
            wait=time.perf_counter() - start,
            num_examples=sum(len(batch.keys) for batch in batches),
            num_tiles=sum(len(batch.tiles_N3HW) for batch in batches),
            num_tokens=sum(len(batch.ids_T) for batch in batches),
        )

    def close(self) -> None:
        """Ends the threads, after what they are reading now."""
        # Readers first: a planner in the middle of a window would have all of it read.
        for pool in (self._readers, self._planner):
            pool.shutdown(wait=True, cancel_futures=True)

    def _plan_next(self) -> _Plan:
        """Runs in one thread, in order."""
        plan = self._plan(self._next)
        self._next = plan.position
        return plan

    def _plan(self, first: int) -> _Plan:
        seen: list[Place] = []
        packs = fill_packs(self._sizes(first, seen), self.spec.batching)
        used = [number for number, place in enumerate(seen) if place.size is not None]
        used = used[: sum(map(len, packs))]
        if len(packs) < (self.spec.batching.examples or self.spec.batching.packs or 0):
            packs = ()
        elif used:
            seen = seen[: used[-1] + 1]
        places = tuple(seen[number] for number in used)
        mine = self._mine(packs, places)
        return _Plan(
            first=first,
            position=first + len(seen),
            places=places,
            packs=packs,
            mine=mine,
            reads=tuple(
                tuple(self._begin([places[record] for record in packs[number]]) for number in part)
                for part in mine
            ),
            num_seen=len(seen),
            bad=tuple(bad for place in seen for bad in place.bad),
        )

    def _mine(self, packs: Packs, places: Sequence[Place]) -> Packs:
        """The numbers of the packs of each micro-batch of this process."""
        sizes = [place.size for place in places if place.size is not None]
        parts = share_packs(packs, sizes, self.spec.batching, self.world * self.accumulate)
        return tuple(parts[part * self.world + self.rank] for part in range(self.accumulate))

    def _begin(self, places: Sequence[Place]) -> tuple[Future[Example], ...]:
        """The examples of a pack, being made."""
        return tuple(self._readers.submit(self._places.make, place) for place in places)

    def _sizes(self, first: int, seen: list[Place]) -> Iterator[Size]:
        """Sizes of usable records from `first` on; every place looked at is put into `seen`."""
        num_empty = 0
        for index in count(first):
            place = self._order.place(index)
            seen.append(place)
            if place.size is not None:
                num_empty = 0
                yield place.size
                continue
            num_empty += 1
            if self.spec.bad_samples.policy == "stop" or num_empty == EMPTY_IN_A_ROW:
                return

    def _batch(self, plan: _Plan, part: int) -> Batch:
        """A micro-batch; what cannot be decoded is replaced or left out, as the policy says."""
        bad: list[BadSample] = []
        examples: list[tuple[int, Example]] = []
        for number, reads in zip(plan.mine[part], plan.reads[part], strict=True):
            places = [plan.places[record] for record in plan.packs[number]]
            examples += self._examples(places, reads, bad)
        self.bad.add(bad, stands_for=self.world)
        if not examples:
            raise TrainingError(
                f"nothing is left of a micro-batch of the step at position {plan.first}: "
                f"{bad[-1].key}: {bad[-1].reason}"
            )
        examples.sort(key=lambda pair: pair[0])
        return pack([example for _, example in examples], self.tile_size)

    def _examples(
        self, places: Sequence[Place], reads: Sequence[Future[Example]], bad: list[BadSample]
    ) -> Iterator[tuple[int, Example]]:
        """(position, example) of a pack. A replacement fits into what the others leave, on any process."""
        sizes = [place.size for place in places]
        for number, (place, read) in enumerate(zip(places, reads, strict=True)):
            try:
                yield place.position, read.result()
                continue
            except BROKEN as error:
                bad.append(self._places.bad(place, error))
            sizes[number] = None
            if self.spec.bad_samples.policy == "replace":
                room = room_left((size for size in sizes if size is not None), self.spec.batching)
                found, example, more = self._places.substitute(place, room)
                bad += more
                if found is not None and example is not None:
                    sizes[number] = found.size
                    yield place.position, example
