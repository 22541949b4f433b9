"""Which page belongs to whom: reference counts, room, and pages kept for prompts that begin alike.

A page is free, in use by one or more sequences, or idle: nobody uses it, but it has a name (`page_keys`) and
is kept until its room is needed, least recently used first. The names of a prompt are a chain, so the longest
known prefix is found by asking for one after the other. Knows integers and names; no tensors, no sequences.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from internvl.errors import InputError

EVICTED_TOGETHER = 8
"""Idle pages let go at a time: neighbours, mostly, so that a sequence that grows gets them in a row."""


class PagePool:
    """`num_pages` pages, taken and released by number."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise InputError(f"a pool must have at least 1 page, got {num_pages}")
        self.num_pages = num_pages
        self.num_evicted = 0
        self._uses = [0] * num_pages
        self._names: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._free = set(range(num_pages))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_available

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The pages of the longest prefix of `names` that is here. They are not taken: see `share`."""
        pages: list[int] = []
        for name in names:
            if (page := self._page_of.get(name)) is None:
                break
            pages.append(page)
        return pages

    def num_available_beside(self, pages: Iterable[int]) -> int:
        """Pages that `take` could give once these are shared."""
        return self.num_available - sum(page in self._idle for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """One more user for pages that `find` gave."""
        for page in pages:
            assert self._uses[page] or page in self._idle
            self._uses[page] += 1
            self._idle.pop(page, None)

    def take(self, count: int, after: int | None = None) -> list[int] | None:
        """`count` pages with one user, in a row behind page `after` if possible; None if there are fewer."""
        if count > self.num_available:
            return None
        if count > len(self._free):
            self._evict(max(count - len(self._free), min(EVICTED_TOGETHER, len(self._idle))))
        pages: list[int] = []
        for number in range(count):
            page = -1 if after is None else after + 1
            if page not in self._free:
                page = self._start(count - number)
            self._free.remove(page)
            self._uses[page] = 1
            pages.append(page)
            after = page
        return pages

    def name(self, page: int, name: bytes) -> None:
        """Says what a full page in use holds. The first page of a name keeps it."""
        assert self._uses[page]
        if self._names[page] is None and name not in self._page_of:
            self._names[page] = name
            self._page_of[name] = page

    def release(self, pages: Sequence[int]) -> None:
        """One user fewer. The last pages of a prefix become idle first, so they are the first to go."""
        for page in reversed(pages):
            assert self._uses[page]
            self._uses[page] -= 1
            if self._uses[page]:
                continue
            if self._names[page] is None:
                self._free.add(page)
            else:
                self._idle[page] = None

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts that the pool is whole and that its users are exactly `tables`."""
        uses = Counter(page for table in tables for page in table)
        in_use = {page for page in range(self.num_pages) if self._uses[page]}
        assert {page: self._uses[page] for page in in_use} == dict(uses)
        assert not in_use & self._free
        assert not self._idle.keys() & (in_use | self._free)
        assert len(in_use) + len(self._free) + len(self._idle) == self.num_pages
        named = {page: name for page, name in enumerate(self._names) if name is not None}
        assert {name: page for page, name in named.items()} == self._page_of
        assert not named.keys() & self._free
        assert self._idle.keys() <= named.keys()

    def _evict(self, count: int) -> None:
        for _ in range(count):
            page, _ = self._idle.popitem(last=False)
            name = self._names[page]
            assert name is not None
            del self._page_of[name]
            self._names[page] = None
            self._free.add(page)
            self.num_evicted += 1

    def _start(self, count: int) -> int:
        """Where a new run of `count` pages begins: in the longest run of free ones, halfway between the room
        that it will want to grow into and the room that whoever ends before it will want."""
        runs: list[list[int]] = []
        for page in sorted(self._free):
            if runs and page == runs[-1][1]:
                runs[-1][1] += 1
            else:
                runs.append([page, page + 1])
        first, end = max(runs, key=lambda run: run[1] - run[0])
        is_behind_another = first > 0 and self._uses[first - 1] > 0
        return first + max(0, end - first - count) // 2 if is_behind_another else first
