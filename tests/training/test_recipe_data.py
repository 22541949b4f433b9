"""How long a run is, and what it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from internvl.data.meta import open_data
from internvl.data.spec import Batching, DataSpec
from internvl.errors import InputError, TrainingError
from internvl.training.build import build
from internvl.training.objective_spec import NextToken, ObjectiveSpec, Preference, SelfCritical
from internvl.training.recipe import AdamW, ModelSpec, Recipe
from internvl.training.recipe_data import (
    check_unchanged,
    count_steps,
    data_facts,
    make_examples,
    open_mixture,
)
from tests.conftest import GoldenFixtures

RECIPE = Recipe(
    name="x", params=((".*", AdamW(lr=1.0)),), epochs=2, data=DataSpec(batching=Batching(examples=8))
)


@pytest.mark.parametrize(
    ("epochs", "records", "steps"), [(2, 16, 4), (2, 17, 5), (1, 3, 1), (0.5, 160, 10), (0.001, 8, 1)]
)
def test_epochs_in_steps(epochs: float, records: int, steps: int) -> None:
    assert count_steps(replace(RECIPE, epochs=epochs), records) == steps


@pytest.mark.parametrize("epochs", [1e300, 1e308])
def test_epochs_have_an_end(epochs: float) -> None:
    with pytest.raises(TrainingError, match=r"epochs of 100 records are .* more than 9007199254740992"):
        count_steps(replace(RECIPE, epochs=epochs), 100)


def test_steps_are_what_they_are() -> None:
    packs = DataSpec(batching=Batching(packs=2))
    assert count_steps(replace(RECIPE, steps=7, epochs=None, data=packs), 1000) == 7


def test_epochs_of_packs_have_no_length() -> None:
    with pytest.raises(TrainingError, match="packed data needs `steps`"):
        count_steps(replace(RECIPE, data=DataSpec(batching=Batching(packs=2))), 1000)


def test_the_mixture_is_that_of_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x"}\n' * 50)
    orders = [
        [open_mixture(DataSpec(meta=str(path)), seed).pick(position).row for position in range(50)]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(50))
    with pytest.raises(TrainingError, match="names no data"):
        open_mixture(DataSpec(), 0)


def test_data_sets_are_drawn_as_the_sampling_says(tmp_path: Path) -> None:
    for name, count in (("large", 16), ("small", 4)):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n' * count)
    meta = {name: {"annotation": f"{name}.jsonl", "weight": 1} for name in ("large", "small")}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    spec = DataSpec(meta=str(tmp_path / "meta.json"))
    shares = {}
    for sampling in ("length", "sqrt", "weight"):
        mixture = open_mixture(replace(spec, sampling=sampling), 0)
        shares[sampling] = [mixture.pick(position).dataset for position in range(len(mixture))].count(1)
    assert shares == {"length": 4, "sqrt": 7, "weight": 10}


def test_examples_are_made_as_the_recipe_says(tmp_path: Path, golden_dir: GoldenFixtures) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    captions = {"image": "a.png", "en": ["Red.", "A red square."], "zh": ["红色"]}
    preference = {"question": "What?", "chosen": "Red.", "rejected": "Blue."}
    path.write_text(f"{json.dumps(captions)}\n{json.dumps(preference)}\n")
    (dataset,) = open_data(path)
    built = build(ModelSpec(checkpoint=str(golden_dir / "internvl2_5_qwen2"), max_tiles=1), 0)

    def branches(row: int, objective: ObjectiveSpec, **data: object) -> int:
        examples = make_examples(built, replace(DataSpec(), **data), objective)  # type: ignore[arg-type]
        return len(examples.example(dataset.source.row(row), dataset, seed=0).branches)

    assert branches(0, NextToken()) == 3
    assert branches(0, NextToken(), language="en") == 2
    assert branches(0, NextToken(), share_pictures=False) == 1
    assert branches(1, Preference(reference="adapters_off")) == 2
    with pytest.raises(InputError, match="no ref_chosen_logps"):
        branches(1, Preference(reference="stored"))
    for row, objective in ((0, Preference()), (1, NextToken()), (1, SelfCritical())):
        with pytest.raises(InputError, match="this objective"):
            branches(row, objective)
    with pytest.raises(InputError, match="the limit is 20 "):
        branches(0, NextToken(), max_length=20)


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    """Rows, the order of the sets, how they are used, the steps; facts come back from JSON."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x"}\n' * 5)
    facts = data_facts(open_mixture(DataSpec(meta=str(path)), 0), 7)
    use = [["rows", 1.0, None, False, None]]
    assert facts == json.loads(json.dumps(facts)) == {"rows": [["rows", 5]], "use": use, "steps": 7}
    check_unchanged(facts, facts)
    check_unchanged({"rows": [["rows", 5]], "steps": 7}, facts)  # of an older run less is known
    changes = ({"rows": [["rows", 9]]}, {"steps": 9}, {"rows": [["rows", 5], ["more", 1]]})
    for change in changes:
        with pytest.raises(
            TrainingError, match=r"began with rows \(5 rows\) and 7 steps, now .* Put them back"
        ):
            check_unchanged(facts, facts | change)
    for used in (
        (5.0, None, False, None),
        (1.0, 0.5, False, None),
        (1.0, None, True, None),
        (1.0, None, False, 2),
    ):
        with pytest.raises(TrainingError, match="max_dynamic_patch of rows has changed"):
            check_unchanged(facts, facts | {"use": [["rows", *used]]})
