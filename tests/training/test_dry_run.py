"""An estimate of a run from its model and its first records, without a step of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from internvl.adapt.lora import LoRA
from internvl.data.spec import Batching, DataSpec
from internvl.errors import TrainingError
from internvl.training import dry_run as module
from internvl.training.dry_run import dry_run
from internvl.training.objective_spec import Contrastive
from internvl.training.recipe import AdamW, ModelSpec, Recipe
from tests.conftest import GoldenFixtures
from tests.invariants.training_worker import write_records

BATCHING = Batching(examples=4, max_tokens=2048)


@pytest.fixture
def recipe(golden_dir: GoldenFixtures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """One and a half epochs over twenty records; this machine does a billion operations a second."""
    monkeypatch.setattr(module, "measure_rate", lambda *_: 1e9)
    return Recipe(
        name="x",
        model=ModelSpec(checkpoint=str(golden_dir / "internvl2_5_qwen2"), max_tiles=2),
        params=((r"projector\..*", AdamW(lr=1e-3)), (".*", None)),
        data=DataSpec(meta=str(write_records(tmp_path)), max_length=2048, batching=BATCHING),
        epochs=1.5,
    )


def test_records_decide_length_and_time(recipe: Recipe) -> None:
    made = dry_run(recipe)
    assert made.steps == 8  # 1.5 x 20 records in fours
    assert not made.is_limit
    assert 0 < made.load.trained < made.load.tokens < 4 * 2048
    assert made.seconds == pytest.approx(8 * made.flops / 1e9)
    assert made.memory > made.weights > 0


def test_only_what_the_rules_train_counts(recipe: Recipe) -> None:
    made = dry_run(recipe)
    assert [group.name for group in made.groups if group.trained] == ["projector"]
    projector = next(group for group in made.groups if group.name == "projector")
    assert projector.trained == projector.total
    assert made.gradients == 4 * projector.total


def test_without_data_a_record_is_as_long_as_it_may_be(recipe: Recipe) -> None:
    made = dry_run(replace(recipe, data=replace(recipe.data, meta=None), steps=7, epochs=None))
    assert made.is_limit
    assert made.load.tokens == 4 * 2048
    assert made.steps == 7


def test_packs_of_a_number_of_epochs_have_no_length(recipe: Recipe) -> None:
    with pytest.raises(TrainingError, match="packed data needs `steps`"):
        dry_run(replace(recipe, data=replace(recipe.data, batching=Batching(packs=2))))


def test_broken_records_are_left_to_the_check(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text() + '{"image": "gone.png", "caption": "x"}\nno json\n')
    made = dry_run(recipe)
    assert made.steps == 9  # 1.5 x 22 records
    assert not made.is_limit


def test_weights_in_int8_are_smaller(recipe: Recipe) -> None:
    adapters = ((r"llm\.layers\.\d+\.(attn|mlp)\..*", LoRA(rank=2)),)
    lora = replace(recipe, model=replace(recipe.model, adapters=adapters))
    quantised = replace(lora, model=replace(lora.model, int8=(r"llm\.layers\..*",)))
    wide, narrow = (
        {group.name: group for group in dry_run(one).groups}["llm.layers"] for one in (lora, quantised)
    )
    assert narrow.total == wide.total
    assert narrow.bytes < 0.5 * wide.bytes


def test_processes_share_the_work(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = dry_run(recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = dry_run(recipe)
    assert shared.seconds == pytest.approx((alone.seconds or 0) / 2)
    assert shared.activations < alone.activations


def test_pairs(recipe: Recipe, tmp_path: Path, golden_dir: GoldenFixtures) -> None:
    """A record is a picture and one of its captions."""
    (tmp_path / "records.jsonl").write_text(
        "".join(f'{{"image": "{n % 4}.png", "en": ["a square", "a red square"]}}\n' for n in range(20))
    )
    for index in range(4):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{index}.png")
    model = ModelSpec(checkpoint=str(golden_dir / "internvl_14b"))
    pairs = replace(
        recipe,
        model=model,
        objective=Contrastive(),
        params=((r"image_pool\..*|logit_scale", AdamW(lr=1e-3)), (".*", None)),
    )
    made = dry_run(pairs)
    assert (made.steps, made.is_limit, made.load.tiles) == (8, False, 4)
    assert 4 * 4 < made.load.tokens < 4 * 40
    assert [group.name for group in made.groups if group.trained] == ["logit_scale", "image_pool"]
    longest = dry_run(replace(pairs, data=replace(pairs.data, meta=None), steps=7, epochs=None))
    assert longest.is_limit
    assert (longest.load.tokens, longest.load.tiles) == (4 * 80, 4)
    assert longest.flops > made.flops
