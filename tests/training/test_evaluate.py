"""Held-out measurements against the same numbers made by hand, and the choice of the best."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from internvl.data.bad_samples import key_of
from internvl.data.example import Branch, Example
from internvl.data.meta import DataSet
from internvl.errors import ContextOverflowError, ImageError, InputError, TrainingError
from internvl.evaluation.scores import cider_d
from internvl.models.attention import Packed
from internvl.models.vlm import VLM
from internvl.training.evaluate import Best, Evaluator, mean_loss
from internvl.training.objectives import next_token
from internvl.training.recipe import Evaluation
from internvl.training.world import World

STOP = 2
TILE = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Rows:
    rows: Sequence[Example | str]
    name: str = "rows"

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Mapping[str, Any]:
        return {"example": self.rows[index]}

    def where(self, index: int) -> str:
        return f"{self.name}.jsonl, line {index + 1}"


class Maker:
    """Rows that hold their example, or the text of an error."""

    def measure(self, row: Mapping[str, Any], dataset: DataSet) -> Any:
        raise NotImplementedError

    def example(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str) -> Example:
        if isinstance(row["example"], str):
            raise ImageError(row["example"])
        assert not dataset.augment
        assert key.startswith(dataset.name)
        return cast(Example, row["example"])

    def ask(self, row: Mapping[str, Any], dataset: DataSet) -> Any:
        """What comes before an answer is the conversation here, as ids."""
        one = cast(Example, row["example"])
        found: dict[tuple[int, ...], list[str]] = {}
        for branch in one.branches:
            head, answer = branch.ids[: branch.trained.index(True)], branch.ids[branch.trained.index(True) :]
            found.setdefault((*one.prefix, *head), []).append(decode(answer))
        return [
            SimpleNamespace(
                conversation=SimpleNamespace(ids=ids, slots=one.slots, tiles_N3HW=one.tiles_N3HW),
                references=tuple(texts),
            )
            for ids, texts in found.items()
        ]


class FakeProcessor:
    stop_ids = (STOP,)

    def __call__(self, conversation: Any, *, max_tokens: int) -> Any:
        if len(conversation.ids) > max_tokens:
            raise ContextOverflowError(f"{len(conversation.ids)} tokens, 64 positions")
        keys = () if conversation.tiles_N3HW is None else ("picture",)
        return SimpleNamespace(**vars(conversation), image_keys=keys)

    def text(self, ids: Sequence[int]) -> str:
        return decode(ids)


def decode(ids: Iterable[int]) -> str:
    return " ".join(f"w{id}" for id in ids if id != STOP)


PROCESSOR = cast(Any, FakeProcessor())


def data_set(rows: Sequence[Example | str], name: str = "rows") -> DataSet:
    return DataSet(name=name, source=Rows(rows, name), root=Path(), augment=True)


def example(key: str, *answers: Sequence[int], head: Sequence[int] = (), has_tile: bool = True) -> Example:
    prefix = (1, 7, 7, 7, 7, 9) if has_tile else (1, 9)
    branches = tuple(
        Branch((*head, *answer), (*[False] * len(head), *[True] * len(answer))) for answer in answers
    )
    slots = (1, 2, 3, 4) if has_tile else ()
    return Example(
        key=key, prefix=prefix, branches=branches, slots=slots, tiles_N3HW=TILE if has_tile else None
    )


def evaluator(model: VLM, sets: Sequence[DataSet], *, world: Any = None, **settings: Any) -> Evaluator:
    chosen = Evaluation(**{"max_new_tokens": 4, **settings})
    objective = partial(next_token, reduction="token")
    return Evaluator(model.eval(), PROCESSOR, sets, Maker(), chosen, objective, world=world)


def hidden(model: VLM, ids: Sequence[int], has_tile: bool) -> Tensor:
    ids_T = torch.tensor(ids)
    vision_SD = model.encode_tiles(TILE)[0] if has_tile else torch.empty(0, model.config.text.width)
    slots_S = torch.arange(1, 1 + len(vision_SD))
    x_TD = model.embed(ids_T, slots_S, vision_SD)
    return model.llm(x_TD, torch.arange(len(ids_T)), Packed([len(ids_T)]))


@torch.no_grad()
def loss_of(model: VLM, one: Example) -> tuple[float, int]:
    total, count = 0.0, 0
    for branch in one.branches:
        ids = [*one.prefix, *branch.ids]
        logits_TV = model.llm.logits(hidden(model, ids, one.size.tiles > 0))
        for place, is_trained in enumerate(branch.trained, start=len(one.prefix)):
            if is_trained:
                total += float(cross_entropy(logits_TV[place - 1], torch.tensor(ids[place])))
                count += 1
    return total, count


@torch.no_grad()
def greedy(model: VLM, ids: Sequence[int], has_tile: bool, count: int) -> list[int]:
    made = list(ids)
    while len(made) < len(ids) + count and made[-1] != STOP:
        made.append(int(model.llm.logits(hidden(model, made, has_tile)[-1]).argmax()))
    return made[len(ids) :]


ONE = example("1", (11, 12, STOP), (13, STOP))
TWO = example("2", (14, 15, 16, STOP), head=(20, 21), has_tile=False)
THREE = example("3", (30,) * 5)


def test_losses_are_those_of_every_data_set_and_their_mean(model: VLM) -> None:
    row = evaluator(model, [data_set([ONE, TWO], "a"), data_set([THREE], "b")]).evaluate()
    expected = {}
    for name, examples in (("a", (ONE, TWO)), ("b", (THREE,))):
        sums = [loss_of(model, one) for one in examples]
        expected[f"val_loss/{name}"] = sum(s for s, _ in sums) / sum(c for _, c in sums)
    expected["val_loss"] = sum(expected.values()) / 2
    assert row == pytest.approx(expected, rel=1e-5)


def test_exact_answers_are_counted(model: VLM) -> None:
    """One record's answer is what the model says, with its pictures and without; the other's is not."""
    model.eval()
    right = greedy(model, ONE.prefix, True, 4)
    text = greedy(model, (*TWO.prefix, 20, 21), False, 4)
    wrong = [id + 1 for id in right]
    rows = [
        example("1", wrong, right),
        example("2", text, head=(20, 21), has_tile=False),
        example("3", wrong),
        example("4", wrong),
    ]
    row = evaluator(model, [data_set(rows)], metric="exact").evaluate()
    assert row["val_exact"] == row["val_exact/rows"] == 0.5
    assert "val_cider" not in row


def test_questions_about_one_picture_are_asked_apart(model: VLM) -> None:
    model.eval()
    answers = {head: greedy(model, (*ONE.prefix, *head), True, 4) for head in ((20,), (21, 22))}
    branches = tuple(
        Branch((*head, *answer), (*[False] * len(head), *[True] * len(answer)))
        for head, answer in answers.items()
    )
    row = evaluator(model, [data_set([replace(ONE, branches=branches)])], metric="exact").evaluate()
    assert row["val_exact"] == 1.0


def test_cider_is_that_of_the_texts(model: VLM) -> None:
    model.eval()
    rows = [example("1", greedy(model, ONE.prefix, True, 4), (13,)), example("2", (40, 41), (42,)), TWO]
    row = evaluator(model, [data_set(rows)], metric="cider").evaluate()
    prompts = [(ONE.prefix, True), (ONE.prefix, True), ((*TWO.prefix, 20, 21), False)]
    answers = [decode(greedy(model, ids, has_tile, 4)) for ids, has_tile in prompts]
    references = [
        [decode(id for id, counts in zip(b.ids, b.trained, strict=True) if counts) for b in one.branches]
        for one in rows
    ]
    assert row["val_cider"] == pytest.approx(cider_d(answers, references)[0])
    assert row["val_cider"] > 0


def test_records_are_spread_evenly_and_limited(model: VLM) -> None:
    made = evaluator(model, [data_set([ONE] * 10)], examples=4)
    assert made.sets[0].rows == (0, 2, 5, 7)
    assert evaluator(model, [data_set([ONE] * 3)], examples=4).sets[0].rows == (0, 1, 2)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_autocast_is_that_of_the_training(model: VLM, autocast: str | None) -> None:
    seen = []

    def objective(model: VLM, batch: Any) -> Any:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return next_token(model, batch)

    sets = [data_set([ONE])]
    Evaluator(model.eval(), PROCESSOR, sets, Maker(), Evaluation(), objective, autocast=autocast).evaluate()
    assert seen == [(autocast is not None, torch.bfloat16)]


def test_bad_records_are_reported_and_left_out(model: VLM) -> None:
    made = evaluator(model, [data_set([ONE, "cut off", TWO])])
    assert [(bad.key, bad.path, bad.reason, bad.error) for bad in made.bad] == [
        (key_of(data_set([ONE]), 1), "rows.jsonl, line 2", "cut off", "ImageError")
    ]
    assert made.evaluate() == evaluator(model, [data_set([ONE, TWO])]).evaluate()
    with pytest.raises(InputError, match="no record of rows can be used to evaluate: cut off"):
        evaluator(model, [data_set(["cut off"])])


def test_a_prompt_without_room_for_an_answer_is_bad(model: VLM) -> None:
    long = replace(TWO, prefix=(1,) * 60)
    assert evaluator(model, [data_set([TWO, long])]).bad == []
    assert "64 positions" in evaluator(model, [data_set([TWO, long])], metric="exact").bad[0].reason


@dataclass
class Pair:
    """What two processes share in a test: sums that wait for one another."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=30))
    values: dict[int, Tensor] = field(default_factory=dict)

    def sum(self, rank: int, values: Tensor) -> Tensor:
        self.values[rank] = values.clone()
        self.barrier.wait()
        total = self.values[0] + self.values[1]
        self.barrier.wait()
        return total


@pytest.mark.parametrize("count", [1, 3])
def test_two_processes_measure_what_one_measures(model: VLM, count: int) -> None:
    sets = [data_set([ONE, TWO, THREE][:count], "a"), data_set([TWO], "b")]
    pair = Pair()

    def run(rank: int) -> dict[str, float]:
        world = SimpleNamespace(
            rank=rank, size=2, device=torch.device("cpu"), sum=lambda values: pair.sum(rank, values)
        )
        return evaluator(model, sets, world=world, metric="cider").evaluate()

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(run, range(2)))
    assert rows[0] == rows[1]
    alone = evaluator(model, sets, world=World(), metric="cider").evaluate()
    assert rows[0] == pytest.approx(alone, rel=1e-5)


def test_an_objective_keeps_what_it_had_before(model: VLM) -> None:
    class Counting:
        seen = 5

        def __call__(self, model: VLM, batch: Any) -> Any:
            self.seen += 1
            return next_token(model, batch)

        def state(self) -> dict[str, int]:
            return {"seen": self.seen}

        def restore(self, state: Mapping[str, int]) -> None:
            self.seen = state["seen"]

    objective = Counting()
    made = Evaluator(model.eval(), PROCESSOR, [data_set([ONE])], Maker(), Evaluation(), objective)
    made.evaluate()
    assert objective.seen == 5


def test_the_best_loss_is_the_lowest() -> None:
    best = Best("loss", patience=2)
    values = [2.0, 1.0, 1.0, math.nan]
    assert [best.update({"val_loss": value}) for value in values] == [True, True, False, False]
    assert best.is_hopeless
    assert best.update({"val_loss": 0.5})
    assert not best.is_hopeless


def test_the_best_score_is_the_highest_and_without_patience_there_is_hope() -> None:
    best = Best("cider")
    assert [best.update({"val_cider": value}) for value in (0.1, 0.0, 0.2)] == [True, False, True]
    for _ in range(100):
        best.update({"val_cider": 0.0})
    assert not best.is_hopeless


def test_the_best_is_restored() -> None:
    best = Best("loss", 2)
    best.update({"val_loss": 1.0})
    best.update({"val_loss": 2.0})
    again = Best("loss", 2)
    again.restore(best.state())
    assert not again.update({"val_loss": 1.5})
    assert again.is_hopeless


def test_what_another_measurement_said_is_forgotten() -> None:
    """A loss of 2 is no score that nothing beats; nor is that of other records."""
    best = Best("loss", 1, of="these")
    assert best.update({"val_loss": 2.0}, 10)
    best.update({"val_loss": 3.0}, 20)
    for other in (Best("exact", 1, of="these"), Best("loss", 1, of="those")):
        other.restore(best.state())
        assert not other.is_hopeless
        assert other.step is None
        assert other.update({f"val_{other.metric}": 0.5}, 30)
    same, older = Best("loss", 1, of="these"), Best("loss", 1, of="these")
    same.restore(best.state())
    assert (same.value, same.step, same.is_hopeless) == (2.0, 10, True)
    older.restore({"value": 2.0, "waited": 1})
    assert (older.value, older.step, older.is_hopeless) == (2.0, None, True)


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(TrainingError, match="no 'val_cider' was measured, only val_loss"):
        Best("cider").update({"val_loss": 1.0})
    with pytest.raises(TrainingError, match="counts from 1"):
        Best("loss", 0)


def test_the_mean_loss_of_rows_is_what_a_run_measures(model: VLM) -> None:
    data, bad = data_set([ONE, "cut off", TWO, THREE]), []
    row = evaluator(model, [data]).evaluate()
    found = mean_loss(model, replace(data, augment=False), range(4), cast(Any, Maker()), bad)
    assert found == pytest.approx(row["val_loss"], rel=1e-6)
    assert [one.key for one in bad] == ["rows:1"]
    assert mean_loss(model, replace(data, augment=False), [1], cast(Any, Maker()), bad) is None


def test_of_a_preference_the_mean_loss_is_that_of_the_chosen_answer(model: VLM) -> None:
    chosen, rejected = TWO.branches[0], Branch((30, 31, STOP), (True,) * 3)
    pair = replace(TWO, branches=(chosen, rejected), is_preference=True)
    found = [
        mean_loss(model, replace(data_set([one]), augment=False), [0], cast(Any, Maker()), [])
        for one in (pair, replace(TWO, branches=(chosen,)), replace(pair, is_preference=False))
    ]
    assert found[0] == found[1] != found[2]
