"""What runs in the next step: integers only.

A row is one answer: so many tokens known, so many of them computed, pages for them. Decoding, prefill in
chunks, and computing anew after preemption are one thing: run what is known and not computed. Every step
gives each decoding row its token first and shares the rest of the token budget among prefills. Knows no
token ids, no tensors, no text and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from internvl.engine.pages import PagePool


@dataclass(slots=True, eq=False)
class Row:
    """One answer as the scheduler sees it.

    `num_tokens` are known: the prompt's and the chosen ones. `final_tokens` is the most there can be.
    `num_ready` is how far the tokens can be run: up to the first slot whose vision token is not there yet.
    `keys` name the full pages of the known tokens. `num_drafts` tokens are guessed to follow.
    """

    number: int
    num_tokens: int
    final_tokens: int
    priority: int = 0
    client: str = ""
    keys: Sequence[bytes] = ()
    shares: bool = True
    num_ready: int = 0
    num_drafts: int = 0
    num_computed: int = 0
    num_cached: int | None = None
    since: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        return self.num_tokens - self.num_computed


class Work(NamedTuple):
    """Positions `start` to `start + size` of a row; the last `num_drafts` of them are guesses."""

    row: Row
    start: int
    size: int
    num_drafts: int = 0

    @property
    def is_last(self) -> bool:
        """Whether all known tokens are computed then, so that a new one can be chosen."""
        return self.start + self.size - self.num_drafts == self.row.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`step_tokens` of one step, of all rows; `rows` at a time; `patience` steps of waiting count as one
    level of priority. `reserves`: a row gets all its pages before it starts, so that it is never preempted.
    `chunk`, if given, is where every prefill is cut: positions that are multiples of it."""

    page_size: int
    step_tokens: int
    rows: int
    patience: int
    reserves: bool = False
    chunk: int | None = None


class Scheduler:
    """Waiting and running rows, and the pages they share."""

    def __init__(self, pool: PagePool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.waiting: list[Row] = []
        self.running: list[Row] = []
        self.num_steps = self.num_preempted = 0
        self._served: dict[str, int] = {}

    def add(self, row: Row) -> None:
        """Queues a row. A client that comes anew starts level with the least served one."""
        row.since = self.num_steps
        if row.client not in self._served:
            self._served[row.client] = min(self._served.values(), default=0)
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        """Takes a row out, wherever it is, and releases its pages."""
        (self.running if row in self.running else self.waiting).remove(row)
        self._release(row)
        if all(other.client != row.client for other in (*self.running, *self.waiting)):
            del self._served[row.client]

    def admit(self) -> list[Row]:
        """Moves waiting rows to running while there is room; these are new to running.

        The first that finds no room keeps those behind it waiting, so nobody starves. A row whose next page
        another row is about to compute waits for that and lets others pass.
        """
        self.num_steps += 1
        admitted: list[Row] = []
        for row in sorted(self.waiting, key=self._turn):
            if self._is_being_computed(row):
                continue
            if not self._make_room(row):
                break
            self._start(row)
            admitted.append(row)
        return admitted

    def plan(self) -> list[Work]:
        """The next step's work, after `admit`."""
        works: list[Work] = []
        budget = self.limits.step_tokens
        for row in sorted(self.running, key=_rank):
            if row.num_pending == 1 and row.num_ready >= row.num_tokens and row in self.running:
                work = self._decode(row, budget)
                if work is not None:
                    works.append(work)
                    budget -= work.size
        planned = {work.row.number for work in works}
        rest = [row for row in sorted(self.running, key=self._turn) if row.number not in planned]
        return works + self._prefills(rest, budget)

    def commit(self, work: Work, num_chosen: int) -> None:
        """Books work that was done: `num_chosen` new tokens are known, all but the last of them computed.

        The row's `keys` cover the new tokens already; pages that became full get their names.
        """
        row, size = work.row, self.limits.page_size
        before = row.num_computed
        row.num_tokens += num_chosen
        row.num_computed = row.num_tokens - 1 if num_chosen else work.start + work.size
        row.num_ready = row.num_tokens if num_chosen else row.num_ready
        row.num_drafts = 0
        self._served[row.client] += row.num_computed - before
        if row.shares:
            for index in range(before // size, row.num_computed // size):
                self.pool.name(row.pages[index], row.keys[index])

    def check(self) -> None:
        """Asserts that rows and pool agree."""
        self.pool.check([row.pages for row in self.running])
        assert all(not row.pages and not row.num_computed for row in self.waiting)
        assert all(len(row.pages) >= self._pages(row.num_computed) for row in self.running)
        assert len(self.running) <= self.limits.rows

    def _turn(self, row: Row) -> tuple[int, int, int]:
        """Who is served first: priority, raised by waiting; the client that had least; who came first."""
        return self._aged(row), self._served[row.client], row.number

    def _aged(self, row: Row) -> int:
        return row.priority - (self.num_steps - row.since) // self.limits.patience

    def _pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.limits.page_size)

    def _is_being_computed(self, row: Row) -> bool:
        """Whether a running row is on its way to the page after those that this row finds."""
        if not row.shares:
            return False
        index = len(self._found(row))
        if index >= self._num_shareable(row):
            return False
        end = (index + 1) * self.limits.page_size
        return any(
            other.shares
            and other.num_computed < end <= other.num_tokens
            and other.keys[index] == row.keys[index]
            for other in self.running
        )

    def _num_shareable(self, row: Row) -> int:
        """Full pages before the last known token, which is always run: its scores are wanted."""
        size, limits = self.limits.page_size, self.limits
        count = (row.num_tokens - 1) // size
        if limits.chunk:
            count = (row.num_tokens - 1) // limits.chunk * limits.chunk // size
        return count

    def _found(self, row: Row) -> list[int]:
        """Pages of the row's prefix that are here."""
        if not row.shares:
            return []
        found = self.pool.find(row.keys[: self._num_shareable(row)])
        if self.limits.chunk:  # the prefix ends where a chunk of the row itself would
            per_chunk = self.limits.chunk // self.limits.page_size
            found = found[: len(found) // per_chunk * per_chunk]
        return found

    def _make_room(self, row: Row) -> bool:
        """Whether the row can run; running rows of worse priority are preempted for it, if that helps."""
        aged = self._aged(row)
        worse = sorted((one for one in self.running if self._aged(one) > aged), key=_rank)
        if self.limits.reserves:
            worse = []
        if self._num_missing(row) > sum(len(one.pages) for one in worse):
            return False
        while worse and not self._fits(row):
            self._preempt(worse.pop())
        return self._fits(row)

    def _fits(self, row: Row) -> bool:
        return len(self.running) < self.limits.rows and self._num_missing(row) <= 0

    def _num_missing(self, row: Row) -> int:
        """Pages that the row lacks to start."""
        found = self._found(row)
        wanted = self._pages(row.final_tokens if self.limits.reserves else row.num_tokens) - len(found)
        spare = 0 if self.limits.reserves else len(self.running)  # a page for each to grow
        return wanted + spare - self.pool.num_available_beside(found)

    def _start(self, row: Row) -> None:
        found = self._found(row)
        self.pool.share(found)
        row.num_computed = len(found) * self.limits.page_size
        row.pages = found
        self._grow(row, row.final_tokens if self.limits.reserves else row.num_tokens)
        if row.num_cached is None:
            row.num_cached = row.num_computed
        self.waiting.remove(row)
        self.running.append(row)

    def _grow(self, row: Row, num_tokens: int) -> bool:
        """Gives the row pages for so many tokens, if there are enough."""
        missing = self._pages(num_tokens) - len(row.pages)
        if missing <= 0:
            return True
        pages = self.pool.take(missing, row.pages[-1] if row.pages else None)
        row.pages.extend(pages or ())
        return pages is not None

    def _decode(self, row: Row, budget: int) -> Work | None:
        """One token and its drafts; rows behind it are preempted for its page, or it is itself."""
        while not self._grow(row, row.num_tokens):
            worst = max(self.running, key=_rank)
            self._preempt(worst)
            if worst is row:
                return None
        drafts = max(0, min(row.num_drafts, budget - 1, row.final_tokens - row.num_tokens - 1))
        while drafts and not self._grow(row, row.num_tokens + drafts):
            drafts -= 1
        return Work(row, row.num_computed, 1 + drafts, drafts)

    def _chunk(self, row: Row, budget: int) -> int:
        """Positions of a prefill that can run now."""
        end = min(row.num_tokens, row.num_ready)
        if self.limits.chunk:
            end = min(end, (row.num_computed // self.limits.chunk + 1) * self.limits.chunk)
            whole = min(row.num_tokens, (row.num_computed // self.limits.chunk + 1) * self.limits.chunk)
            if end < whole or whole - row.num_computed > budget:
                return 0
        return min(end - row.num_computed, budget)

    def _prefills(self, rows: Sequence[Row], budget: int) -> list[Work]:
        """Pieces of prompts, who comes first first; but up to half of the budget goes to prompts that it lets
        end in this step, so that a long one does not hold up all behind it."""
        counts: dict[int, int] = {}
        half = budget // 2
        for row in rows:
            if 0 < row.num_pending <= half and self._chunk(row, half) == row.num_pending:
                counts[row.number] = row.num_pending
                half -= row.num_pending
                budget -= row.num_pending
        for row in rows:
            if row.number not in counts:
                counts[row.number] = self._chunk(row, budget)
                budget -= max(0, counts[row.number])
        return [Work(row, row.num_computed, counts[row.number]) for row in rows if counts[row.number] > 0]

    def _preempt(self, row: Row) -> None:
        """Back to waiting; what it had computed stays in idle pages as long as these last."""
        self.running.remove(row)
        self._release(row)
        self.waiting.append(row)
        self.num_preempted += 1

    def _release(self, row: Row) -> None:
        self.pool.release(row.pages)
        row.pages, row.num_computed, row.num_ready, row.num_drafts = [], 0, 0, 0


def _rank(row: Row) -> tuple[int, int]:
    """Who keeps its pages longest."""
    return row.priority, row.number
