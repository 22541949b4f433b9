"""The batches of each step: planned alike on every process, read ahead in threads, made one at a time.

A step depends on the seed and its first position alone, so a run resumes at the exact record, also on another
number of processes. Knows processes by number; no model, no communication.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

from internvl.data.bad_samples import BROKEN, BadSample, BadSamplesLog
from internvl.data.example import Size
from internvl.data.grouping import Order
from internvl.data.mixture import Mixture
from internvl.data.packing import Packs, check_parts, fill_packs, room_left, share_packs
from internvl.data.places import Maker, Place, Places
from internvl.data.read_ahead import ReadAhead
from internvl.data.spec import DataSpec
from internvl.errors import TrainingError

STEPS_AHEAD = 2
"""Steps that are planned ahead; what is decoded of them, `ReadAhead` bounds."""
EMPTY_IN_A_ROW = 100
"""Places without a usable record after which none is expected to come."""


class Counted(Protocol):
    """A batch that says what is in it (`data.batch.Batch`, `data.pairs.PairBatch`)."""

    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_tiles(self) -> int: ...


E = TypeVar("E")
B = TypeVar("B", bound=Counted)


class Batches(Iterator[B]):
    """The micro-batches of a step, each made when it is asked for, and once. The length is that of all."""

    def __init__(self, number: int, made: Iterator[B]) -> None:
        self._number, self._made = number, made

    def __len__(self) -> int:
        return self._number

    def __next__(self) -> B:
        return next(self._made)


@dataclass(slots=True, kw_only=True, eq=False)
class Step(Generic[B]):
    """What one process computes of a step, a batch for each micro-batch.

    The step begins at position `first` and the next one at `position`; these two are the same on every
    process. `wait`, seconds waited for data, and the numbers of examples, tiles and packed tokens are those
    of this process and of the batches made so far.
    """

    first: int
    position: int
    wait: float
    num_examples: int = 0
    num_tiles: int = 0
    num_tokens: int = 0
    batches: Batches[B] = field(init=False)

    def count(self, batch: B) -> None:
        self.num_examples += len(batch.keys)
        self.num_tiles += batch.num_tiles
        self.num_tokens += batch.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """A whole step. `mine` are the packs of each micro-batch of this process. Where the step could not be
    filled, `packs` is empty."""

    first: int
    position: int
    places: tuple[Place, ...]
    packs: Packs
    mine: Packs
    num_seen: int
    bad: tuple[BadSample, ...]

    def pack(self, number: int) -> list[Place]:
        """The places of a pack."""
        return [self.places[record] for record in self.packs[number]]


class Feed(Generic[E, B]):
    """Steps one after the other from `position` on, of examples E in batches B. `close` ends its threads."""

    def __init__(
        self,
        mixture: Mixture,
        examples: Maker[E],
        spec: DataSpec,
        pack: Callable[[Sequence[E]], B],
        *,
        seed: int,
        bad: BadSamplesLog,
        world: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        position: int = 0,
        prepare: Callable[[B], B] | None = None,
    ) -> None:
        """`pack` makes a batch of examples. `prepare` is applied to each one, and its time is not waiting.

        Raises TrainingError where a step is too small to be shared by all processes and micro-batches.
        """
        check_parts(spec.batching, world * accumulate)
        self.spec, self.bad = spec, bad
        self.world, self.rank, self.accumulate = world, rank, accumulate
        self.position = self._next = position
        self._pack, self._prepare = pack, prepare
        self._left = 0  # batches of the last step to be made
        self._places = Places(mixture, examples, spec, seed)
        self._readers = ThreadPoolExecutor(spec.workers, "read")
        self._planner = ThreadPoolExecutor(1, "plan")
        self._examples = ReadAhead(self._places.make, self._readers, spec.read_ahead)
        self._order = Order(self._places, self._readers, len(mixture))
        self._plans: deque[Future[_Plan]] = deque()

    def take(self) -> Step[B]:
        """The next step, after all batches of the last one were made. It and its batches raise TrainingError
        when bad records end the run; they are written down first."""
        if self._left:
            raise TrainingError(f"{self._left} batches of the step before {self.position} were not computed")
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
        self.position, self._left = plan.position, self.accumulate
        step: Step[B] = Step(first=plan.first, position=plan.position, wait=time.perf_counter() - start)
        step.batches = Batches(self.accumulate, (self._take(step, plan, part) for part in plan.mine))
        return step

    def close(self) -> None:
        """Ends the threads, after what they are reading now."""
        # Readers first: a planner in the middle of a window would have all of it read.
        for pool in (self._readers, self._planner):
            pool.shutdown(wait=True, cancel_futures=True)

    def _plan_next(self) -> _Plan:
        """Runs in one thread, in order."""
        plan = self._plan(self._next)
        self._next = plan.position
        for part in plan.mine:
            for number in part:
                self._examples.put(plan.pack(number))
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
        return _Plan(
            first=first,
            position=first + len(seen),
            places=places,
            packs=packs,
            mine=self._mine(packs, places),
            num_seen=len(seen),
            bad=tuple(bad for place in seen for bad in place.bad),
        )

    def _mine(self, packs: Packs, places: Sequence[Place]) -> Packs:
        """The numbers of the packs of each micro-batch of this process."""
        sizes = [place.size for place in places if place.size is not None]
        parts = share_packs(packs, sizes, self.spec.batching, self.world * self.accumulate)
        return tuple(parts[part * self.world + self.rank] for part in range(self.accumulate))

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

    def _take(self, step: Step[B], plan: _Plan, part: Sequence[int]) -> B:
        """The next micro-batch of the step, counted."""
        start = time.perf_counter()
        batch = self._batch(plan, part)
        step.count(batch)
        step.wait += time.perf_counter() - start
        self._left -= 1
        return batch if self._prepare is None else self._prepare(batch)

    def _batch(self, plan: _Plan, part: Sequence[int]) -> B:
        """The micro-batch of these packs; what cannot be decoded is replaced or left out, as the policy
        says."""
        bad: list[BadSample] = []
        examples: list[tuple[int, E]] = []
        for number in part:
            examples += self._made(plan.pack(number), bad)
        self.bad.add(bad, stands_for=self.world)
        if not examples:
            raise TrainingError(
                f"nothing is left of a micro-batch of the step at position {plan.first}: "
                f"{bad[-1].key}: {bad[-1].reason}"
            )
        examples.sort(key=lambda pair: pair[0])
        return self._pack([example for _, example in examples])

    def _made(self, places: Sequence[Place], bad: list[BadSample]) -> Iterator[tuple[int, E]]:
        """(position, example) of a pack. A replacement fits into what the others leave, on any process."""
        sizes = [place.size for place in places]
        for number, place in enumerate(places):
            try:
                yield place.position, self._examples.take()
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
