"""Which record comes when: a pure function of the seed and the position, over several data sets.

The state of the data is therefore one integer, on any number of processes. Knows sizes and weights; reads no
row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import sqrt
from typing import NamedTuple

from internvl.data.meta import DataSet
from internvl.data.permutation import permuted
from internvl.data.spec import Sampling
from internvl.errors import InputError


class Pick(NamedTuple):
    """Row `row` of data set number `dataset`, at `position` of the run, which lies in `epoch`."""

    dataset: int
    row: int
    epoch: int
    position: int


class Mixture:
    """An endless sequence of records, in epochs of `len(self)`.

    An epoch holds a fixed number of places for each data set, in shuffled order: its records under "length",
    else the same total shared out by the square root of their number, or by `DataSet.weight` (at least one
    place each). A data set goes through its own rows in a shuffled order, all of them before any comes
    again, on from one epoch to the next.
    """

    def __init__(self, datasets: Sequence[DataSet], sampling: Sampling = "length", seed: int = 0) -> None:
        if not datasets:
            raise InputError("a mixture of no data sets")
        self.datasets, self.seed = tuple(datasets), seed
        self._shares = _share_out(self.datasets, sampling)
        self._ends = tuple(accumulate(self._shares))

    def __len__(self) -> int:
        """Records of an epoch."""
        return self._ends[-1]

    def pick(self, position: int) -> Pick:
        """The record at any position from 0 on."""
        if position < 0:
            raise IndexError(f"positions count from 0, got {position}")
        epoch, index = divmod(position, len(self))
        place = permuted(index, len(self), (self.seed, epoch))
        dataset = bisect_right(self._ends, place)
        share, size = self._shares[dataset], self.datasets[dataset].size
        drawn = epoch * share + place - (self._ends[dataset] - share)
        turn, index = divmod(drawn, size)
        return Pick(dataset, permuted(index, size, (self.seed, turn, dataset)), epoch, position)

    def replacement(self, position: int, attempt: int) -> Pick:
        """Another record of the same data set for a position whose own is bad; `attempt` counts from 1.

        No attempt gives the position's own record or repeats an earlier attempt. Raises InputError when
        the data set has no further one.
        """
        pick = self.pick(position)
        others = self.datasets[pick.dataset].size - 1
        if attempt < 1:
            raise IndexError(f"attempts count from 1, got {attempt}")
        if attempt > others:
            name = self.datasets[pick.dataset].name
            raise InputError(f"{name}: no record is left to take for a bad one ({others} others were tried)")
        step = 1 + permuted(attempt - 1, others, (self.seed, position, pick.dataset, others))
        return pick._replace(row=(pick.row + step) % (others + 1))


def _share_out(datasets: tuple[DataSet, ...], sampling: Sampling) -> tuple[int, ...]:
    """The places of each data set in an epoch."""
    counts = [dataset.per_epoch for dataset in datasets]
    if sampling == "length":
        return tuple(counts)
    if sampling == "sqrt":
        weights = [sqrt(count) for count in counts]
    else:
        weights = [_weight(dataset) for dataset in datasets]
    return tuple(max(1, round(sum(counts) * weight / sum(weights))) for weight in weights)


def _weight(dataset: DataSet) -> float:
    if dataset.weight is None:
        raise InputError(f"{dataset.name} has no 'weight', which sampling by weight needs; give every one")
    return dataset.weight
