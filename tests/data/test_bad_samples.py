"""What is written about bad records, and when they end a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from internvl.data.bad_samples import BadSample, BadSamplesLog, read_kinds, read_rows
from internvl.data.spec import BadSamples
from internvl.errors import TrainingError


def bad(number: int = 1, reason: str = "cut off") -> BadSample:
    return BadSample(
        key=f"a:{number}", path=f"a.jsonl, line {number}", position=number, reason=reason, error="ImageError"
    )


def test_every_one_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    log = BadSamplesLog(path, BadSamples(limit=1.0))
    log.add([bad(1), bad(2)], num_seen=10)
    log.add([], num_seen=90)
    log.add([bad(3)], stands_for=2)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in rows] == ["a:1", "a:2", "a:3"]
    assert set(rows[0]) == {"key", "path", "position", "reason", "error"}
    assert (log.num_seen, log.num_bad) == (100, 4)


def test_no_file_without_bad_ones_nor_on_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    log = BadSamplesLog(path, BadSamples())
    log.add([], num_seen=5)
    log.add([bad()], num_seen=5, is_written=False)
    assert not path.exists()
    assert log.num_bad == 1


def test_names_that_are_no_unicode_are_written(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    BadSamplesLog(path, BadSamples()).add([bad(reason="no \udcff\n图.jpg")])
    (row,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["reason"] == "no \udcff\n图.jpg"


def test_stop_ends_at_the_first(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    log = BadSamplesLog(path, BadSamples(policy="stop"))
    with pytest.raises(TrainingError, match=r"a:1 \(a.jsonl, line 1\) cannot be used: cut off"):
        log.add([bad()], num_seen=1)
    assert len(path.read_text().splitlines()) == 1, "it is written before the run ends"


def test_the_limit_counts_after_the_first_hundred(tmp_path: Path) -> None:
    log = BadSamplesLog(tmp_path / "bad.jsonl", BadSamples(limit=0.1))
    log.add([bad(number) for number in range(50)], num_seen=99)
    with pytest.raises(TrainingError, match=r"51 of 109 records cannot be used, more than 10%"):
        log.add([bad()], num_seen=10)


def test_all_there_are_may_be_judged_before(tmp_path: Path) -> None:
    log = BadSamplesLog(tmp_path / "bad.jsonl", BadSamples(limit=0.1))
    log.judge()
    log.add([bad(number) for number in range(19)], num_seen=20)
    with pytest.raises(
        TrainingError, match=r"19 of 20 records .* more than 10%; see .*bad.jsonl, the last a:18"
    ):
        log.judge()


def test_a_run_that_goes_on_writes_nothing_twice(tmp_path: Path) -> None:
    """And its first row does not end the line that a crash cut short."""
    path = tmp_path / "bad.jsonl"
    BadSamplesLog(path, BadSamples()).add([bad(1), bad(2)], num_seen=50)
    whole = path.read_text()
    path.write_text(whole + whole[:30])
    again = BadSamplesLog(path, BadSamples())
    again.restore({"num_seen": 20, "num_bad": 1})
    again.add([bad(2), bad(3)], num_seen=50)
    assert again.state() == {"num_seen": 70, "num_bad": 3}
    assert [row["key"] for row in read_rows(path)] == ["a:1", "a:2", "a:3"]
    assert [row["key"] for row in map(json.loads, path.read_text().splitlines()[3:])] == ["a:3"]


def test_a_record_of_several_epochs_is_one(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    assert read_kinds(path) == {}
    log = BadSamplesLog(path, BadSamples())
    log.add([bad(1), replace(bad(1), position=21), bad(2)])
    assert len(list(read_rows(path))) == 3
    assert read_kinds(path) == {"a:1": "ImageError", "a:2": "ImageError"}


def test_as_many_as_the_limit_are_endured() -> None:
    log = BadSamplesLog(None, BadSamples(limit=0.1))
    log.add([*map(bad, range(20)), bad(3)], num_seen=200)
    with pytest.raises(TrainingError, match="22 of 200"):
        log.add([bad()], stands_for=2)
