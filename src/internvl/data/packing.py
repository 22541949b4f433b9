"""Which records make a step, and who computes which: pure planning on sizes.

A step takes the first of the records that remain, so where a run stands is one number; and it is filled
before it is shared out, so it is the same for any number of processes and micro-batches. Knows counts of
tokens and tiles; no records, no tensors, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import ceil

from internvl.data.example import Size
from internvl.data.spec import Batching
from internvl.errors import InputError, TrainingError

Packs = tuple[tuple[int, ...], ...]
"""Records by number, pack by pack."""


def check_fits(size: Size, batching: Batching) -> None:
    """Raises InputError for a record over the limits of every pack."""
    if size.tokens > batching.max_tokens:
        raise InputError(f"{size.tokens} tokens, a pack holds {batching.max_tokens} (batching.max_tokens)")
    if size.tiles > batching.max_tiles:
        raise InputError(f"{size.tiles} tiles, a pack holds {batching.max_tiles} (batching.max_tiles)")


def check_parts(batching: Batching, parts: int) -> None:
    """Raises TrainingError where some process would have nothing to compute.

    `parts` is processes x micro-batches.
    """
    unit, count = ("examples", batching.examples) if batching.examples else ("packs", batching.packs)
    if parts < 1 or (count or 0) < parts:
        raise TrainingError(
            f"a step of {count} {unit} cannot be shared by {parts} micro-batches (processes x accumulate), "
            f"each needs one: raise batching.{unit} or lower execution.accumulate"
        )


def room_left(sizes: Iterable[Size], batching: Batching) -> Size:
    """What a pack that holds records of these sizes can still take."""
    taken = list(sizes)
    return Size(
        tokens=batching.max_tokens - sum(size.tokens for size in taken),
        tiles=batching.max_tiles - sum(size.tiles for size in taken),
    )


def cost(size: Size, batching: Batching) -> float:
    """How much work a record is: its shares of a pack's tokens and tiles, added."""
    return size.tokens / batching.max_tokens + size.tiles / batching.max_tiles


def fill_packs(sizes: Iterable[Size], batching: Batching) -> Packs:
    """The packs of one step: the first records of `sizes`, each used once.

    By number of examples, every record is a pack of its own. By number of packs, a record goes into the first
    with room and the step ends before the first record that has none; this one is read from `sizes` and not
    used. Records in packs are then spread evenly where that keeps the limits. Every record must satisfy
    `check_fits`.
    """
    if batching.examples is not None:
        return tuple((number,) for number, _ in enumerate(islice(sizes, batching.examples)))
    taken: list[Size] = []
    first = [_Pack(batching) for _ in range(batching.packs or 0)]
    for size in sizes:
        room = next((pack for pack in first if size.fits(pack.room)), None)
        if room is None:
            break
        room.add(len(taken), size)
        taken.append(size)
    packs = _even(taken, batching) or first
    return tuple(tuple(sorted(pack.numbers)) for pack in packs if pack.numbers)


def _even(sizes: Sequence[Size], batching: Batching) -> list[_Pack] | None:
    """Largest records first, each into the pack with least work that has room; None where one has none."""
    packs = [_Pack(batching) for _ in range(batching.packs or 0)]
    for number in _largest_first([cost(size, batching) for size in sizes]):
        open_packs = [pack for pack in packs if sizes[number].fits(pack.room)]
        if not open_packs:
            return None
        min(open_packs, key=lambda pack: pack.cost).add(number, sizes[number])
    return packs


def share_out(costs: Sequence[float], parts: int, *, most: int | None = None) -> Packs:
    """Items to `parts`, largest first, each to the part with least work so far and fewer than `most` items.

    Without `most`, parts differ by no more than the largest item. Each part gets an item where there are
    enough, and parts come with the most work first, so that neighbours are alike.
    """
    numbers: list[list[int]] = [[] for _ in range(parts)]
    work = [0.0] * parts
    for item in _largest_first(costs):
        open_parts = [part for part in range(parts) if most is None or len(numbers[part]) < most]
        part = min(open_parts, key=lambda part: (work[part], len(numbers[part]), part))
        numbers[part].append(item)
        work[part] += costs[item]
    return tuple(tuple(sorted(numbers[part])) for part in _largest_first(work))


def share_packs(packs: Packs, sizes: Sequence[Size], batching: Batching, parts: int) -> Packs:
    """Packs by number for each part. Records that are packs of their own are shared by work alone; packs to
    equal numbers too, since each may need as much memory as the limits allow."""
    costs = [sum(cost(sizes[record], batching) for record in pack) for pack in packs]
    return share_out(costs, parts, most=None if batching.examples else ceil(len(packs) / parts))


def _largest_first(costs: Sequence[float]) -> list[int]:
    return sorted(range(len(costs)), key=lambda item: (-costs[item], item))


class _Pack:
    """Records by number, their work, and the room that they leave."""

    def __init__(self, batching: Batching) -> None:
        self.batching = batching
        self.numbers: list[int] = []
        self.room = room_left((), batching)
        self.cost = 0.0

    def add(self, number: int, size: Size) -> None:
        self.numbers.append(number)
        self.room = Size(self.room.tokens - size.tokens, self.room.tiles - size.tiles)
        self.cost += cost(size, self.batching)
