"""Steps are the same however many processes compute them, whatever is broken, and wherever a run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Lock
from time import sleep
from typing import Any
from weakref import finalize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.data.bad_samples import BadSamplesLog
from internvl.data.batch import Batch, pack
from internvl.data.example import Example, Size
from internvl.data.feed import Feed, Step
from internvl.data.meta import DataSet
from internvl.data.mixture import Mixture
from internvl.data.spec import BadSamples, Batching, DataSpec
from internvl.errors import TrainingError
from tests.data.fakes import FakeExamples, data_set

Row = tuple[int, int, str]
PACK = partial(pack, tile_size=2)
LIMITS = {"max_tokens": 64, "max_tiles": 6}
TOLERANT = BadSamples(limit=1.0)
BY_EXAMPLES = DataSpec(batching=Batching(examples=6, **LIMITS), bad_samples=TOLERANT)
BY_PACKS = DataSpec(batching=Batching(packs=6, **LIMITS), bad_samples=TOLERANT)
GROUPED = replace(BY_EXAMPLES, group_by_length=True)
SKIPPING = replace(BY_PACKS, bad_samples=BadSamples(policy="skip", limit=1.0))
SKIPPING_EXAMPLES = replace(BY_EXAMPLES, bad_samples=BadSamples(policy="skip", limit=1.0))
SPECS = {
    "examples": BY_EXAMPLES,
    "packs": BY_PACKS,
    "grouped": GROUPED,
    "skip, packs": SKIPPING,
    "skip, examples": SKIPPING_EXAMPLES,
}


def rows(number: int, faults: str = "") -> list[Row]:
    """Sizes from 2 to 40 tokens and 0 to 4 tiles; every 7th row has one of the faults."""
    kinds = faults.split() if faults else [""]
    return [
        (2 + index * 17 % 39, index * 3 % 5, kinds[index // 7 % len(kinds)] if index % 7 == 3 else "")
        for index in range(number)
    ]


FAULTY = rows(60, "row measure decode decode")


def make_feed(
    data: Sequence[Row], spec: DataSpec, *, log: Path | None = None, **options: Any
) -> Feed[Any, Any]:
    half = len(data) // 2
    sets = [data_set(data[:half], "a"), data_set(data[half:], "b")] if half else [data_set(data, "a")]
    bad = BadSamplesLog(log, spec.bad_samples)
    mixture = Mixture(sets, spec.sampling, seed=1)
    return Feed(mixture, FakeExamples(), spec, seed=1, pack=PACK, bad=bad, **options)


def take(number: int, *arguments: Any, **options: Any) -> list[Step[Any]]:
    with closing(make_feed(*arguments, **options)) as feed:
        return [made(feed.take()) for _ in range(number)]


def made(step: Step[Any]) -> Step[Any]:
    """The step with all its batches, to be looked at more than once."""
    step.batches = tuple(step.batches)  # type: ignore[assignment]
    return step


def content(steps: Sequence[Step[Any]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Keys and target tokens of each step, which carry the seeds; in no order within a step."""
    return [
        sorted((key, row) for batch in step.batches for key, row in zip(batch.keys, _ids(batch), strict=True))
        for step in steps
    ]


def _ids(batch: Any) -> list[tuple[int, ...]]:
    return [(int(target), prefix) for target, (prefix, _) in zip(batch.targets_A, batch.groups, strict=True)]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 3), (3, 2)])
def test_a_step_is_the_same_on_any_number_of_processes(name: str, world: int, accumulate: int) -> None:
    whole = take(5, FAULTY, SPECS[name])
    shares = [
        take(5, FAULTY, SPECS[name], world=world, rank=rank, accumulate=accumulate) for rank in range(world)
    ]
    for number, step in enumerate(whole):
        parts = [share[number] for share in shares]
        joined = sorted(pair for part in parts for pair in content([part])[0])
        assert joined == content([step])[0]
        assert {(part.first, part.position) for part in parts} == {(step.first, step.position)}
        assert all(len(part.batches) == accumulate for part in parts)
        assert all(len(batch.keys) for part in parts for batch in part.batches)
        assert sum(part.num_examples for part in parts) == step.num_examples
        assert sum(part.num_tokens for part in parts) == step.num_tokens


@pytest.mark.parametrize("name", SPECS)
def test_a_run_resumes_at_any_step(name: str) -> None:
    whole = take(7, FAULTY, SPECS[name])
    for number in range(7):
        rest = take(7 - number, FAULTY, SPECS[name], position=whole[number].first)
        assert content(rest) == content(whole[number:])
        assert [step.position for step in rest] == [step.position for step in whole[number:]]


def test_a_run_resumes_on_another_number_of_processes() -> None:
    whole = take(6, FAULTY, BY_PACKS)
    middle = whole[3].first
    shares = [take(3, FAULTY, BY_PACKS, world=2, rank=rank, position=middle) for rank in range(2)]
    joined = [sorted(a + b) for a, b in zip(*map(content, shares), strict=True)]
    assert joined == content(whole[3:])


@pytest.mark.parametrize("name", ["examples", "packs", "grouped"])
def test_every_record_comes_once_an_epoch(name: str) -> None:
    """Steps cross the ends of epochs, so 3 epochs are met in full and no further record twice."""
    number, met = 47, []
    with closing(make_feed(rows(number), SPECS[name])) as feed:
        while feed.position < 3 * number:
            step = made(feed.take())
            met += [key for batch in step.batches for key in batch.keys]
    counts = {key: met.count(key) for key in met}
    assert len(counts) == number
    assert set(counts.values()) <= {3, 4}
    assert len(met) == feed.position


def test_groups_keep_epochs_apart() -> None:
    spec = replace(GROUPED, batching=Batching(examples=1, **LIMITS))
    keys = [step.batches[0].keys[0] for step in take(40, rows(20), spec)]
    assert len(set(keys[:20])) == len(set(keys[20:])) == 20
    assert keys[:20] != keys[20:]


def test_groups_are_of_like_length() -> None:
    def spread(spec: DataSpec) -> float:
        steps = take(16, [(tokens, 0, "") for tokens, _, _ in rows(96)], spec)
        widths = [[length for length, _ in batch.groups] for step in steps for batch in step.batches]
        return sum(max(width) - min(width) for width in widths) / len(widths)

    assert spread(GROUPED) < 0.5 * spread(BY_EXAMPLES)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(2, 80),
            st.integers(0, 8),
            st.sampled_from(["", "", "", "", "row", "measure", "decode"]),
        ),
        min_size=12,
        max_size=40,
    ),
    st.integers(1, 4),
    st.sampled_from(["replace", "skip"]),
)
def test_budgets_hold_whatever_is_broken(data: list[Row], packs: int, policy: Any) -> None:
    """One pack for each micro-batch, so a batch shows what its pack holds, replacements included."""
    data = [(4, 1, ""), *data[1:-1], (4, 1, "")]
    spec = DataSpec(
        batching=Batching(packs=packs, **LIMITS), bad_samples=BadSamples(policy=policy, limit=1.0)
    )
    for step in take(3, data, spec, accumulate=packs):
        for batch in step.batches:
            assert len(batch.keys) >= 1
            assert sum(prefix + 1 for prefix, _ in batch.groups) <= 64
            assert len(batch.tiles_N3HW) <= 6


def test_micro_batches_are_alike() -> None:
    batching = Batching(examples=24, **LIMITS)
    shares = [
        take(4, rows(60), replace(BY_EXAMPLES, batching=batching), world=4, rank=rank) for rank in range(4)
    ]
    for number in range(4):
        works = [share[number].num_tokens / 64 + share[number].num_tiles / 6 for share in shares]
        assert max(works) - min(works) <= 40 / 64 + 4 / 6
        assert max(works) <= 1.3 * min(works)


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_broken_records_are_replaced_from_their_own_data_set_and_reported(tmp_path: Path) -> None:
    log = tmp_path / "bad_samples.jsonl"
    steps = take(12, FAULTY, BY_EXAMPLES, log=log)
    assert all(step.num_examples == 6 for step in steps)
    found = read_log(log)
    mixture = Mixture([data_set(FAULTY[:30], "a"), data_set(FAULTY[30:], "b")], seed=1)
    for row in found:
        name, number = row["key"].split(":")
        fault = FAULTY[int(number) + (30 if name == "b" else 0)][2]
        error = {"row": "InputError", "measure": "InputError", "decode": "ImageError"}[fault]
        assert row["error"] == error
        assert row["path"] == f"{name}, line {int(number) + 1}"
        assert mixture.datasets[mixture.pick(row["position"]).dataset].name == name
    own = {mixture.pick(position).row + 30 * mixture.pick(position).dataset for position in range(72)}
    broken = {index for index in own if FAULTY[index][2]}
    assert {int(row["key"][2:]) + (30 if row["key"][0] == "b" else 0) for row in found} >= broken
    good = {key for step in steps for batch in step.batches for key in batch.keys}
    assert good.isdisjoint(row["key"] for row in found)


def test_reports_of_processes_join_to_the_report_of_one(tmp_path: Path) -> None:
    take(6, FAULTY, BY_PACKS, log=tmp_path / "one.jsonl")
    for rank in range(3):
        take(6, FAULTY, BY_PACKS, log=tmp_path / "three.jsonl", world=3, rank=rank)
    one, three = (sorted(map(str, read_log(tmp_path / name))) for name in ("one.jsonl", "three.jsonl"))
    assert one == three != []


def test_what_one_process_decodes_stands_for_the_others() -> None:
    """Faults that all processes find count once, those of decoding on average."""
    broken = rows(60, "decode measure")
    counts = []
    for world in (1, 2):
        logs = []
        for rank in range(world):
            with closing(make_feed(broken, BY_EXAMPLES, world=world, rank=rank)) as feed:
                for _ in range(10):
                    made(feed.take())
            logs.append(feed.bad)
        assert {log.num_seen for log in logs} == {60}
        counts.append(sum(log.num_bad for log in logs) / world)
    assert counts[0] == counts[1] >= 8


def test_what_is_read_ahead_is_not_reported_yet(tmp_path: Path) -> None:
    log = tmp_path / "bad_samples.jsonl"
    position = take(2, FAULTY, BY_EXAMPLES, log=log)[-1].position
    assert all(row["position"] < position for row in read_log(log))


def test_skipped_records_leave_no_trace_but_the_report(tmp_path: Path) -> None:
    log = tmp_path / "bad_samples.jsonl"
    met: list[str] = []
    with closing(make_feed(FAULTY, SKIPPING_EXAMPLES, log=log)) as feed:
        while feed.position < 60:
            step = made(feed.take())
            assert step.num_examples == 6
            met += [key for batch in step.batches for key in batch.keys]
    assert len(met) + len(read_log(log)) == feed.position
    assert set(met[:50]).isdisjoint(row["key"] for row in read_log(log))


@pytest.mark.parametrize("fault", ["row", "measure", "decode"])
def test_stop_ends_the_run_with_the_record(fault: str, tmp_path: Path) -> None:
    log = tmp_path / "bad_samples.jsonl"
    spec = replace(BY_EXAMPLES, bad_samples=BadSamples(policy="stop"))
    with pytest.raises(TrainingError, match=r"line \d+\) cannot be used"):
        take(12, rows(30, fault), spec, log=log)
    assert len(read_log(log)) == 1


def test_too_many_bad_records_end_the_run(tmp_path: Path) -> None:
    log = tmp_path / "bad_samples.jsonl"
    spec = replace(BY_EXAMPLES, bad_samples=BadSamples(limit=0.05))
    with pytest.raises(TrainingError, match=r"records cannot be used, more than 5%"):
        take(40, FAULTY, spec, log=log)
    assert len(read_log(log)) > 5


@pytest.mark.parametrize("policy", ["replace", "skip"])
@pytest.mark.parametrize("fault", ["row", "decode"])
def test_nothing_but_bad_records_ends_too(policy: Any, fault: str, tmp_path: Path) -> None:
    log = tmp_path / "bad_samples.jsonl"
    spec = replace(BY_PACKS, bad_samples=BadSamples(policy=policy, limit=1.0))
    with pytest.raises(TrainingError, match=r"in a row|nothing is left"):
        take(1, [(4, 1, fault)] * 20, spec, log=log)
    assert read_log(log)


def test_a_lone_broken_record_gives_way_to_one_that_follows(tmp_path: Path) -> None:
    """Its data set has no other."""
    spec = replace(BY_EXAMPLES, batching=Batching(examples=3, **LIMITS))
    bad = BadSamplesLog(tmp_path / "bad.jsonl", TOLERANT)
    mixture = Mixture([data_set([(4, 1, "decode")], "a"), data_set([(4, 1, "")] * 2, "b")], seed=1)
    with closing(Feed(mixture, FakeExamples(), spec, seed=1, pack=PACK, bad=bad, accumulate=3)) as feed:
        step = made(feed.take())
    assert {key[0] for batch in step.batches for key in batch.keys} == {"b"}
    assert [row["key"] for row in read_log(tmp_path / "bad.jsonl")] == ["a:0"]


def test_a_fault_of_the_program_is_not_a_bad_record() -> None:
    with pytest.raises(ZeroDivisionError):
        take(5, rows(30, "program"), BY_EXAMPLES)


def test_records_over_a_limit_are_bad(tmp_path: Path) -> None:
    log = tmp_path / "bad_samples.jsonl"
    take(8, [*rows(40), (65, 0, ""), (4, 7, "")], BY_EXAMPLES, log=log)
    reasons = {row["reason"] for row in read_log(log)}
    assert any("65 tokens" in reason for reason in reasons)
    assert any("7 tiles" in reason for reason in reasons)


def test_text_alone_has_no_tiles() -> None:
    (step,) = take(1, [(8, 0, "")] * 9, BY_EXAMPLES)
    assert step.num_tiles == 0
    assert step.batches[0].tiles_N3HW.shape == (0, 3, 2, 2)


def test_workers_change_nothing() -> None:
    one, four = (take(5, FAULTY, replace(BY_PACKS, workers=workers)) for workers in (1, 4))
    assert content(one) == content(four)
    assert all(
        torch.equal(a.ids_T, b.ids_T)
        for x, y in zip(one, four, strict=True)
        for a, b in zip(x.batches, y.batches, strict=True)
    )


class CountedExamples(FakeExamples):
    """Knows how many tiles were decoded and are still held by someone, and the most there ever were."""

    def __init__(self) -> None:
        self.num_held = self.most = 0
        self._lock = Lock()

    def example(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str) -> Example:
        made = super().example(row, dataset, seed=seed, key=key)
        if made.tiles_N3HW is not None:
            self._add(len(made.tiles_N3HW))
            finalize(made.tiles_N3HW, self._add, -len(made.tiles_N3HW))
        return made

    def _add(self, number: int) -> None:
        with self._lock:
            self.num_held += number
            self.most = max(self.most, self.num_held)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", SPECS)
def test_no_more_tiles_are_held_than_is_allowed(name: str, workers: int) -> None:
    """`read_ahead`, the micro-batch that is put together, and under policy "skip" one record a worker."""
    batching = replace(SPECS[name].batching, **{"packs" if "packs" in name else "examples": 24})
    spec = replace(SPECS[name], batching=batching, workers=workers, read_ahead=7)
    examples, bad = CountedExamples(), BadSamplesLog(None, TOLERANT)
    mixture = Mixture([data_set(FAULTY)], seed=1)
    largest = num_tiles = 0
    with closing(Feed(mixture, examples, spec, seed=1, pack=PACK, bad=bad, accumulate=12)) as feed:
        for _ in range(3):
            step = feed.take()
            assert len(step.batches) == 12
            for batch in step.batches:
                largest = max(largest, len(batch.tiles_N3HW))
            num_tiles += step.num_tiles
    measuring = 4 * workers if "skip" in name else 0
    assert examples.most <= 7 + largest + measuring
    assert num_tiles > 2 * (7 + largest + measuring)


def test_batches_are_made_when_they_are_asked_for() -> None:
    with closing(make_feed(rows(60), BY_PACKS, accumulate=3)) as feed:
        step = feed.take()
        assert (len(step.batches), step.num_examples) == (3, 0)
        numbers = []
        for batch in step.batches:
            numbers.append(len(batch.keys))
            assert step.num_examples == sum(numbers)
        assert len(numbers) == len(step.batches) == 3
        assert list(step.batches) == []
        feed.take()
        with pytest.raises(TrainingError, match="3 batches of the step before"):
            feed.take()


def test_what_is_done_to_a_batch_is_not_waiting() -> None:
    def prepare(batch: Batch) -> Batch:
        sleep(0.2)
        return replace(batch, keys=("prepared",))

    with closing(make_feed(rows(60), BY_EXAMPLES, prepare=prepare)) as feed:
        step = feed.take()
        assert [batch.keys for batch in step.batches] == [("prepared",)]
    assert step.num_examples == 6
    assert step.wait < 0.2


def test_waiting_is_measured_for_every_batch() -> None:
    class Slow(FakeExamples):
        def example(self, *arguments: Any, **options: Any) -> Example:
            sleep(0.01)
            return super().example(*arguments, **options)

    bad, spec = BadSamplesLog(None, TOLERANT), replace(BY_EXAMPLES, read_ahead=1)
    mixture = Mixture([data_set(rows(60))])
    with closing(Feed(mixture, Slow(), spec, seed=1, pack=PACK, bad=bad, accumulate=2)) as feed:
        step = feed.take()
        waits = [step.wait for _ in step.batches]
    assert 0.02 <= waits[0] <= waits[1] - 0.02


def test_a_later_epoch_has_other_seeds() -> None:
    spec = replace(BY_EXAMPLES, batching=Batching(examples=1, **LIMITS))
    steps = content(take(18, rows(6), spec))
    assert len({pair for (pair,) in steps}) == 18


def test_a_step_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(TrainingError, match="6 examples cannot be shared by 8 micro-batches"):
        make_feed(FAULTY, BY_EXAMPLES, world=4, accumulate=2)


def test_closing_in_the_middle_returns() -> None:
    feed = make_feed(FAULTY, BY_PACKS)
    made(feed.take())
    feed.close()
    feed.close()
    with pytest.raises(RuntimeError):
        feed.take()


class SlowExamples(FakeExamples):
    """Says when it is first asked, and how often it was."""

    def __init__(self) -> None:
        self.is_asked, self.num_asked = Event(), 0

    def measure(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int) -> Size:
        self.is_asked.set()
        self.num_asked += 1
        sleep(0.002)
        return super().measure(row, dataset, seed=seed)


def test_closing_does_not_wait_for_the_window() -> None:
    """192 records are sorted by length together."""
    examples, bad = SlowExamples(), BadSamplesLog(None, TOLERANT)
    feed = Feed(Mixture([data_set(rows(400))]), examples, GROUPED, seed=1, pack=PACK, bad=bad)
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(feed.take)
        examples.is_asked.wait()
        feed.close()
        with pytest.raises((CancelledError, RuntimeError)):
            step.result()
    assert examples.num_asked < 100
