"""What a check counts, and that it finds what a run would stumble over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from internvl.data.check import Report, check
from internvl.data.meta import DataSet
from internvl.data.spec import Batching, DataSpec
from tests.data.fakes import FakeExamples, data_set

SPEC = DataSpec(batching=Batching(examples=4, max_tokens=100, max_tiles=8))


def look(*sets: DataSet, spec: DataSpec = SPEC, decode: bool = True) -> Report:
    return check(sets, FakeExamples(), spec, decode=decode)


def test_counts_of_a_good_set() -> None:
    report = look(data_set([(tokens, tokens % 3, "") for tokens in range(2, 12)]))
    assert report.is_good
    (one,) = report.sets
    assert (one.num_rows, one.per_epoch, one.num_bad, one.kinds) == (10, 10, 0, {})
    tokens = one.tokens
    assert (tokens.least, tokens.median, tokens.p95, tokens.most, tokens.total) == (2, 7, 11, 11, 65)
    assert tokens.histogram == ((2, 1), (4, 2), (8, 4), (16, 3))
    assert one.tiles.histogram == ((0, 3), (1, 3), (2, 4))
    assert one.coverage == 10 / 65
    assert report.epoch is not None
    assert (report.epoch.num_records, report.epoch.num_tokens, report.epoch.num_steps) == (10, 65, 3)
    assert report.epoch.num_tiles == 11
    assert report.epoch.token_fill is report.epoch.tile_fill is None


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ((5, 0, "row"), "InputError", "no JSON"),
        ((5, 0, "measure"), "InputError", "two marks"),
        ((5, 0, "decode"), "ImageError", "cut off"),
        ((101, 0, ""), "InputError", "101 tokens"),
        ((5, 9, ""), "InputError", "9 tiles"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_broken_rows_are_listed(row: tuple[int, int, str], kind: str, reason: str, workers: int) -> None:
    good = (10, 1, "")
    spec = replace(SPEC, workers=workers)
    report = look(data_set([good] * 70, "a"), data_set([good, row, good], "b"), spec=spec)
    (bad,) = report.bad
    assert (bad.key, bad.path, bad.position, bad.error) == ("b:1", "b, line 2", 1, kind)
    assert reason in bad.reason
    assert [one.num_bad for one in report.sets] == [0, 1]
    assert report.sets[1].kinds == {kind: 1}
    assert report.sets[1].tokens.total == 20
    assert report.epoch is not None
    assert report.epoch.num_records == 72


def test_a_quick_look_decodes_nothing() -> None:
    assert look(data_set([(5, 0, "decode")]), decode=False).is_good


def test_nothing_usable() -> None:
    report = look(data_set([(5, 0, "row")] * 3))
    assert report.epoch is None
    assert report.sets[0].tokens.histogram == ()
    assert len(report.bad) == 3


def test_only_the_rows_in_use_are_looked_at() -> None:
    part = replace(data_set([(5, 0, "")] * 6 + [(5, 0, "row")] * 6), repeat=0.5)
    assert look(part).is_good
    twice = look(replace(data_set([(5, 0, "")] * 6), repeat=2))
    assert (twice.sets[0].num_rows, twice.sets[0].per_epoch) == (6, 12)
    assert twice.epoch is not None
    assert twice.epoch.num_records == 12


def test_packs_of_an_epoch() -> None:
    spec = replace(SPEC, batching=Batching(packs=2, max_tokens=100, max_tiles=8))
    report = look(data_set([(50, 1, "")] * 12), spec=spec)
    assert report.epoch is not None
    assert (report.epoch.num_steps, report.epoch.token_fill) == (3, 1.0)
    assert report.epoch.tile_fill == 12 / (6 * 8)


def test_progress_counts_rows_of_each_set() -> None:
    told: list[tuple[str, float, float | None]] = []
    sets = [data_set([(5, 0, "")] * 70, "a"), data_set([(5, 0, "")], "b")]
    check(sets, FakeExamples(), SPEC, progress=lambda *row: told.append(row))
    assert told == [("a", 64, 70), ("a", 70, 70), ("b", 1, 1)]
