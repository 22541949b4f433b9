"""Whole runs of the tiny golden model on a few records: what they read, learn, refuse and leave behind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from internvl.adapt.lora import LoRA, adapters
from internvl.checkpoints.adapters import load_adapters
from internvl.checkpoints.load import load_model
from internvl.data.batch import Batch
from internvl.data.meta import open_data
from internvl.data.spec import BadSamples, Batching, DataSpec
from internvl.errors import CheckpointError, ConfigError, InputError, TrainingError
from internvl.models.vlm import VLM
from internvl.training import precision, recipe_file, report
from internvl.training.build import build
from internvl.training.loop import Objected
from internvl.training.loss import Loss
from internvl.training.objective_spec import NextToken, Preference
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving, Schedule
from internvl.training.recipe_data import make_examples
from internvl.training.reference import store
from internvl.training.run import run
from internvl.training.saves import Saves
from tests.conftest import GoldenFixtures
from tests.invariants.training_worker import Ending, losses, write_records
from tests.training.processes import finish
from tests.training.processes import run as run_processes
from tests.training.processes import start as start_processes

LANGUAGE = r"llm\.layers\.\d+\.(attn|mlp)\..*"
FROZEN = (".*", None)
ADAPTERS = ((r".*\.lora_.*", AdamW(lr=5e-3)), FROZEN)
WORKER = "tests.invariants.training_worker"


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a short run; the report's own tests draw."""
    monkeypatch.setattr(report, "_picture", lambda *_: "")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty preferences, every second one about a picture."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for index in range(20):
        row = {
            "question": f"What is {index}?",
            "chosen": "a square " * (1 + index % 3),
            "rejected": "nothing",
        }
        if index % 2:
            row["image"] = f"{index}.png"
            Image.new("RGB", (60, 60 + index), (index * 12, 90, 200)).save(folder / row["image"])
        lines.append(json.dumps(row))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def full(golden_dir: GoldenFixtures, data: Path) -> Recipe:
    """Four steps of everything but the embeddings."""
    return Recipe(
        name="tiny",
        model=ModelSpec(checkpoint=str(golden_dir / "internvl2_5_qwen2"), max_tiles=2),
        data=DataSpec(meta=str(data), max_length=2048, batching=Batching(examples=4)),
        params=((r"llm\.embed\..*", None), (".*", AdamW(lr=1e-3))),
        schedule=Schedule(kind="constant"),
        steps=4,
        log_every=1,
        saving=Saving(every=2),
    )


@pytest.fixture(scope="module")
def lora(full: Recipe) -> Recipe:
    model = replace(full.model, adapters=((LANGUAGE, LoRA(rank=4, dropout=0.1)),))
    return replace(full, model=model, params=ADAPTERS)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def base(recipe: Recipe) -> VLM:
    model = load_model(recipe.model.checkpoint)
    assert isinstance(model, VLM)
    return model


def state(out: Path) -> Mapping[str, Tensor]:
    """All tensors of the last checkpoint."""
    return tensors(sorted((out / "checkpoints").glob("step-*"))[-1])


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def trained(out: Path) -> dict[str, Tensor]:
    return {name: value for name, value in state(out).items() if name.startswith("model")}


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance)


def test_everything_is_trained_and_the_result_is_a_checkpoint(full: Recipe, tmp_path: Path) -> None:
    recipe = replace(full, steps=8)
    outcome = run(recipe, tmp_path)
    assert (outcome.reason, outcome.step, outcome.result) == ("finished", 8, tmp_path / "model")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"recipe.json", "log.jsonl", "report.md", "checkpoints", "model"}
    assert recipe_file.read(tmp_path / "recipe.json") == recipe
    assert "finished" in (tmp_path / "report.md").read_text()
    found = [loss for _, loss, _ in losses(tmp_path)]
    assert len(found) == 8
    assert found[-1] < 0.8 * found[0]
    made, before = load_model(tmp_path / "model"), dict(base(recipe).named_parameters())
    assert isinstance(made, VLM)
    same = {name for name, value in made.named_parameters() if torch.equal(value, before[name])}
    assert same == {"llm.embed.weight"}
    kept = state(tmp_path)
    for name, value in made.named_parameters():
        if name != "llm.embed.weight":
            assert torch.equal(kept[f"model/{name}"], value), name
    again = run(
        replace(recipe, model=replace(recipe.model, checkpoint=str(tmp_path / "model"))), tmp_path / "2"
    )
    assert losses(again.result.parent)[0][1] < found[0]  # type: ignore[union-attr]


def test_adapters_and_the_projector_beside_them(lora: Recipe, tmp_path: Path) -> None:
    recipe = replace(lora, params=((r"projector\..*", AdamW(lr=1e-3)), *ADAPTERS))
    outcome = run(recipe, tmp_path)
    assert outcome.result == tmp_path / "adapter"
    assert {path.name for path in outcome.result.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    made = base(recipe)
    loaded = load_adapters(made, outcome.result)
    assert len(loaded.modules) == 3 * 4
    assert set(loaded.replaced) == {f"projector.{name}" for name, _ in made.projector.named_parameters()}
    kept = state(tmp_path)
    parameters = dict(made.named_parameters())
    names = [name for name in parameters if ".lora_" in name or name.startswith("projector.")]
    assert set(trained(tmp_path)) == {f"model/{name}" for name in names}
    for name in names:
        torch.testing.assert_close(parameters[name], kept[f"model/{name}"])
    assert all(module.lora_up.abs().max() > 0 for module in adapters(made).values())


def test_int8_weights_are_trained_around(lora: Recipe, tmp_path: Path) -> None:
    """QLoRA follows the adapters of the whole weights closely, and its file fits the whole model."""
    plain = replace(lora, model=replace(lora.model, adapters=((LANGUAGE, LoRA(rank=4)),)))
    quantised = replace(plain, model=replace(plain.model, int8=(r"llm\.layers\..*", r"vit\.layers\..*")))
    run(plain, tmp_path / "plain")
    outcome = run(quantised, tmp_path / "int8")
    expected, found = (torch.tensor(losses(tmp_path / name))[:, 1] for name in ("plain", "int8"))
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    assert found[-1] < found[0]
    assert outcome.result is not None
    assert len(load_adapters(base(lora), outcome.result).modules) == 12


def test_int8_under_frozen_bfloat16_and_autocast(
    lora: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    model = replace(lora.model, int8=(r"llm\.layers\..*",), frozen_dtype="bfloat16")
    recipe = replace(lora, model=model, execution=Execution(autocast="bfloat16"))
    run(lora, tmp_path / "wide")
    run(recipe, tmp_path / "narrow")
    assert {value.dtype for value in trained(tmp_path / "narrow").values()} == {torch.float32}
    expected, found = (torch.tensor(losses(tmp_path / name))[:, 1] for name in ("wide", "narrow"))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_kept_features_are_fresh_ones(
    full: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autocast: Literal["bfloat16"] | None,
) -> None:
    """Losses, what is learnt and what is measured; the second time nothing is computed anew."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    recipe = replace(
        full,
        params=((r"vit\..*", None), (r"llm\..*", None), (".*", AdamW(lr=1e-3))),
        evaluation=Evaluation(data=full.data, every=4, examples=5),
        execution=Execution(autocast=autocast),
    )
    cached = replace(recipe, execution=replace(recipe.execution, cache_features=True))
    run(recipe, tmp_path / "fresh")
    run(cached, tmp_path / "kept")
    tolerance = 1e-5 if autocast is None else 2e-2
    expected, found = (torch.tensor(losses(tmp_path / name))[:, 1] for name in ("fresh", "kept"))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    measured = [
        [row["val_loss"] for row in rows(tmp_path / name) if "val_loss" in row] for name in ("fresh", "kept")
    ]
    assert measured[1] == pytest.approx(measured[0], rel=tolerance)
    files = sorted((tmp_path / "kept" / "features").rglob("*.safetensors"))
    assert files
    if autocast is None:
        assert_close(trained(tmp_path / "kept"), trained(tmp_path / "fresh"), 1e-5)


def test_answers_are_measured_while_frozen_parts_are_narrow(
    full: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projector in float32 between a tower and a language model in bfloat16."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    recipe = replace(
        full,
        model=replace(full.model, frozen_dtype="bfloat16"),
        params=((r"projector\..*", AdamW(lr=1e-3)), (".*", None)),
        evaluation=Evaluation(data=full.data, every=1, metric="cider", max_new_tokens=4),
        execution=replace(full.execution, autocast="bfloat16"),
    )
    assert run(recipe, tmp_path).reason == "finished"
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(row["val_cider"] >= 0 for row in rows if "val_loss" in row)
    assert any("val_cider" in row for row in rows)


def test_without_bfloat16_a_run_is_one_in_float32(
    full: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; the folder keeps what was asked for, so another machine can go on with it."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    narrow = replace(
        full,
        model=replace(full.model, frozen_dtype="bfloat16"),
        execution=replace(full.execution, autocast="bfloat16"),
    )
    run(full, tmp_path / "wide")
    run(narrow, tmp_path / "narrow")
    assert losses(tmp_path / "narrow") == losses(tmp_path / "wide")
    assert_close(trained(tmp_path / "narrow"), trained(tmp_path / "wide"), 0)
    assert recipe_file.read(tmp_path / "narrow" / "recipe.json").execution.autocast == "bfloat16"


def test_a_new_projector_is_trained(full: Recipe, tmp_path: Path) -> None:
    recipe = replace(
        full,
        model=replace(full.model, fresh_projector=True),
        params=((r"projector\..*", None), (".*", AdamW(lr=1e-3))),
    )
    with pytest.raises(ConfigError, match=r"no rule of params trains it"):
        run(recipe, tmp_path / "out")


def test_features_of_changing_pictures_or_towers_are_not_kept(full: Recipe, tmp_path: Path) -> None:
    execution = Execution(cache_features=True)
    with pytest.raises(TrainingError, match="tower that is trained"):
        run(replace(full, execution=execution), tmp_path / "1")
    meta = tmp_path / "meta.json"
    source = Path(full.data.meta or "")
    entry = {"root": str(source.parent), "annotation": str(source), "data_augment": True}
    meta.write_text(json.dumps({"shaken": entry}))
    recipe = replace(
        full,
        data=replace(full.data, meta=str(meta)),
        params=((r"vit\..*", None), (".*", AdamW(lr=1e-3))),
    )
    with pytest.raises(TrainingError, match=r"augmented pictures cannot be kept \(shaken\)"):
        run(replace(recipe, execution=execution), tmp_path / "2")
    assert run(replace(recipe, steps=1), tmp_path / "3").reason == "finished"


def test_resumed_with_adapters_dropout_and_measurements_is_the_same_run(lora: Recipe, tmp_path: Path) -> None:
    evaluation = Evaluation(data=lora.data, every=2, examples=4)
    recipe = replace(lora, steps=6, evaluation=evaluation, ema=0.5)
    run(recipe, tmp_path / "whole")
    with Ending(tmp_path / "parts", "ask", 3):
        outcome = run(recipe, tmp_path / "parts")
    assert (outcome.reason, outcome.step, outcome.result) == ("interrupted", 3, None)
    with Ending(tmp_path / "parts", "ask", 4):  # a measurement is due
        assert run(recipe, tmp_path / "parts", resume=True).reason == "interrupted"
    assert run(recipe, tmp_path / "parts", resume=True).reason == "finished"
    assert_same_runs(tmp_path / "parts", tmp_path / "whole")
    count = len([row for row in rows(tmp_path / "whole") if "val_loss" in row])
    assert run(recipe, tmp_path / "whole", resume=True).reason == "finished"
    assert len([row for row in rows(tmp_path / "whole") if "val_loss" in row]) == count  # not once more


def assert_same_runs(out: Path, reference: Path) -> None:
    """Bit for bit: losses, measurements, state, result."""
    assert losses(out) == losses(reference)
    measured = [[row for row in rows(folder) if "val_loss" in row] for folder in (out, reference)]
    assert measured[0] == measured[1]
    expected, found = state(reference), state(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (file,) = reference.glob("adapter/*.safetensors")
    before, after = load_file(file), load_file(out / "adapter" / file.name)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (out / "checkpoints/best.json").read_text() == (reference / "checkpoints/best.json").read_text()


def test_resumed_preferences_keep_their_mean(lora: Recipe, pairs: Path, tmp_path: Path) -> None:
    recipe = preferring(lora, pairs, "adapters_off")
    run(recipe, tmp_path / "whole")
    with Ending(tmp_path / "parts", "ask", 3):
        assert run(recipe, tmp_path / "parts").reason == "interrupted"
    assert run(recipe, tmp_path / "parts", resume=True).reason == "finished"
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    deltas = [
        [row["delta"] for row in rows(tmp_path / name) if "delta" in row] for name in ("parts", "whole")
    ]
    assert deltas[0] == deltas[1]
    assert deltas[1][-1] != 0


def preferring(recipe: Recipe, pairs: Path, reference: Literal["adapters_off", "stored", "copy"]) -> Recipe:
    """Without dropout, so that the start is the reference."""
    adapters = ((LANGUAGE, LoRA(rank=4)),)
    return replace(
        recipe,
        model=replace(recipe.model, adapters=adapters),
        data=replace(recipe.data, meta=str(pairs)),
        objective=Preference(reference=reference, beta=1.0),
    )


def test_three_references_of_preferences_agree(lora: Recipe, pairs: Path, tmp_path: Path) -> None:
    """Adapters off, a copy and stored numbers: the same losses, rewards and adapters."""
    off = preferring(lora, pairs, "adapters_off")
    copy = preferring(lora, pairs, "copy")
    start = build(replace(off.model, adapters=()), 0)
    (dataset,) = open_data(pairs)
    kept = pairs.with_name("stored.jsonl")
    assert store(start.model, make_examples(start, off.data, off.objective), dataset, kept) == {}
    stored = preferring(lora, kept, "stored")
    found = {}
    for name, recipe in (("off", off), ("copy", copy), ("stored", stored)):
        run(recipe, tmp_path / name)
        found[name] = [row for row in rows(tmp_path / name) if "sigmoid" in row]
    first, *_, last = found["off"]
    assert first["sigmoid"] == pytest.approx(0.6931, abs=1e-3)  # nothing is learnt yet
    assert first["chosen_reward"] == pytest.approx(0.0, abs=1e-3)
    assert last["sigmoid"] < 0.5
    assert last["reward_accuracy"] > 0.5
    for name in ("copy", "stored"):
        for row, expected in zip(found[name], found["off"], strict=True):
            for value in ("loss", "sigmoid", "bco", "chosen_loss", "chosen_reward", "delta"):
                assert row[value] == pytest.approx(expected[value], rel=1e-3, abs=1e-4), (name, value)
        assert_close(trained(tmp_path / name), trained(tmp_path / "off"), 1e-3)


def test_a_copy_stays_what_the_start_was_when_the_run_goes_on(
    full: Recipe, pairs: Path, tmp_path: Path
) -> None:
    recipe = replace(
        full,
        data=replace(full.data, meta=str(pairs)),
        params=((r"llm\.embed\..*", None), (".*", AdamW(lr=1e-4))),
        objective=Preference(reference="copy", beta=1.0),
    )
    run(recipe, tmp_path / "whole")
    with Ending(tmp_path / "parts", "ask", 2):
        run(recipe, tmp_path / "parts")
    run(recipe, tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    rewards = [row["chosen_reward"] for row in rows(tmp_path / "whole") if "chosen_reward" in row]
    assert rewards[0] == pytest.approx(0.0, abs=1e-4)
    assert rewards[-1] > 0.01


def test_a_sharded_copy_is_measured_by_unequal_shares(full: Recipe, pairs: Path, tmp_path: Path) -> None:
    """Seventeen held-out pairs in eights are two batches for one process and one for the other."""
    recipe = replace(
        full,
        steps=2,
        data=replace(full.data, meta=str(pairs)),
        params=((r"llm\.embed\..*", None), (".*", AdamW(lr=1e-4))),
        objective=Preference(reference="copy"),
        evaluation=Evaluation(data=replace(full.data, meta=str(pairs)), every=1, examples=17),
    )
    run(recipe, tmp_path / "one")
    sharded = replace(recipe, execution=Execution(parallel="fsdp"))
    recipe_file.write(tmp_path / "recipe.json", sharded)
    run_processes(2, WORKER, tmp_path / "recipe.json", tmp_path / "two")
    for name in ("loss", "val_loss"):
        expected, found = (
            [row[name] for row in rows(tmp_path / folder) if name in row] for folder in ("one", "two")
        )
        assert len(expected) == 2
        assert found == pytest.approx(expected, rel=1e-4)


def test_adapters_off_is_no_reference_where_more_is_trained(
    lora: Recipe, pairs: Path, tmp_path: Path
) -> None:
    recipe = preferring(lora, pairs, "adapters_off")
    recipe = replace(recipe, params=((r"projector\..*", AdamW(lr=1e-3)), *ADAPTERS))
    with pytest.raises(TrainingError, match=r"adapters_off, but projector\..* is trained too"):
        run(recipe, tmp_path)


def test_packs(full: Recipe, tmp_path: Path) -> None:
    """Two packs a step hold what fits; the loss of a step is that of its records laid one by one."""
    packs = replace(full.data, batching=Batching(packs=2, max_tokens=300, max_tiles=6))
    recipe = replace(full, data=packs, objective=NextToken(reduction="square"))
    run(recipe, tmp_path / "packs")
    made = [row for row in rows(tmp_path / "packs") if "position" in row]
    assert [row["step"] for row in made] == [1, 2, 3, 4]
    ends = [row["position"] for row in made]
    taken = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert all(count >= 2 for count in taken)
    assert len(set(taken)) > 1
    one = replace(recipe, steps=1, data=replace(full.data, batching=Batching(examples=int(taken[0]))))
    run(one, tmp_path / "one")
    assert losses(tmp_path / "one")[0][1] == pytest.approx(losses(tmp_path / "packs")[0][1], rel=1e-5)


def test_packs_of_epochs_have_no_length(full: Recipe, tmp_path: Path) -> None:
    packs = replace(full.data, batching=Batching(packs=2))
    with pytest.raises(TrainingError, match="packed data needs `steps`"):
        run(replace(full, data=packs, steps=None, epochs=1), tmp_path)


def test_epochs_are_counted_in_records(full: Recipe, tmp_path: Path) -> None:
    outcome = run(replace(full, steps=None, epochs=0.5), tmp_path)
    assert outcome.step == 3  # half of twenty records in fours
    assert rows(tmp_path)[2]["position"] == 12


def test_averaged_weights_are_what_is_exported(full: Recipe, tmp_path: Path) -> None:
    run(replace(full, ema=0.5), tmp_path)
    made, kept = load_model(tmp_path / "model"), state(tmp_path)
    name = "llm.layers.0.mlp.down.weight"
    assert torch.equal(made.get_parameter(name), kept[f"ema/{name}"])
    assert not torch.equal(made.get_parameter(name), kept[f"model/{name}"])


def test_a_folder_belongs_to_one_run(full: Recipe, tmp_path: Path) -> None:
    run(replace(full, steps=1), tmp_path)
    with pytest.raises(TrainingError, match=r"holds a run already: continue it with --resume"):
        run(replace(full, steps=1), tmp_path)
    other = replace(full, steps=1, params=((".*", AdamW(lr=5e-4)),))
    with pytest.raises(TrainingError, match="was started with params"):
        run(other, tmp_path, resume=True)
    with pytest.raises(TrainingError, match="was started with steps = 1, now it is 2"):
        run(replace(full, steps=2), tmp_path, resume=True)
    data = replace(full.data, batching=Batching(examples=5), workers=2)
    with pytest.raises(TrainingError, match=r"was started with data\.batching\.examples = 4, now it is 5: "):
        run(replace(full, steps=1, data=data), tmp_path, resume=True)
    rate = replace(full, steps=1, params=(full.params[0], (".*", AdamW(lr=5e-4))))
    with pytest.raises(TrainingError, match=r"was started with params\.1\.1\.lr = 0\.001, now it is 0\.0005"):
        run(rate, tmp_path, resume=True)


def test_rows_that_came_later_are_refused(full: Recipe, tmp_path: Path) -> None:
    lines = Path(full.data.meta or "").read_text().splitlines(keepends=True)
    path = Path(full.data.meta or "").with_name("growing.jsonl")
    path.write_text("".join(lines[:8]))
    recipe = replace(full, data=replace(full.data, meta=str(path)), steps=None, epochs=1)
    assert run(recipe, tmp_path / "out").step == 2
    path.write_text("".join(lines[:16]))
    with pytest.raises(
        TrainingError, match=r"growing \(8 rows\) and 2 steps, now .*growing \(16 rows\) and 4 "
    ):
        run(recipe, tmp_path / "out", resume=True)


def test_a_run_that_fails_has_a_report(full: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the steps before it."""
    forward = Objected.forward

    def failing(module: Objected, batch: Batch) -> Loss:
        loss = forward(module, batch)
        return replace(loss, total=loss.total * math.nan) if rows(tmp_path) else loss

    monkeypatch.setattr(Objected, "forward", failing)
    with pytest.raises(TrainingError, match="step 2: loss nan"):
        run(full, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| reason | failed: step 2: loss nan" in text
    assert "| step | 1 |" in text
    assert "at step 1" in text
    assert "* step 2: not finite" in text


def test_a_run_that_fails_in_a_way_nobody_expected_has_a_report(
    full: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a folder that took no step is free for another recipe."""

    def failing(module: Objected, batch: Batch) -> Loss:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Objected, "forward", failing)
        with pytest.raises(RuntimeError):
            run(full, tmp_path)
    assert "| reason | failed: out of memory |" in (tmp_path / "report.md").read_text()
    stale = tmp_path / "rank-1/log.jsonl"
    stale.parent.mkdir()
    stale.write_text('{"step": 0, "event": "failed: no more"}\n')
    run(replace(full, steps=1), tmp_path)
    assert "failed" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_alone_leaves_its_reason(full: Recipe, tmp_path: Path, rank: int) -> None:
    recipe_file.write(tmp_path / "recipe.json", full)
    out = tmp_path / "out"
    processes = start_processes(2, WORKER, tmp_path / "recipe.json", out, "fail", "2", str(rank))
    assert finish(processes) == [1, 1]
    text = (out / "report.md").read_text()
    told = ("| reason | failed: no disk in step 2 |", "* rank-1, step 2: failed: no disk in step 2")
    assert told[rank] in text
    assert "| step | 2 |" in text
    assert ("no disk" in rows(out / "rank-1")[-1]["event"]) == (rank == 1)


def test_a_step_is_computed_in_parts(full: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = Objected.forward

    def counting(module: Objected, batch: Batch) -> Loss:
        sizes.append(len(batch.keys))
        return forward(module, batch)

    monkeypatch.setattr(Objected, "forward", counting)
    run(replace(full, steps=2, execution=Execution(accumulate=3)), tmp_path)
    assert len(sizes) == 2 * 3
    assert sum(sizes) == 2 * 4


def test_a_run_goes_on_from_any_folder(full: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(full.data.meta or "")
    monkeypatch.chdir(place.parent)
    with Ending(tmp_path, "ask", 2):
        run(replace(full, data=replace(full.data, meta=place.name)), tmp_path)
    monkeypatch.chdir(tmp_path)
    saved = recipe_file.read(tmp_path / "recipe.json")
    assert saved.data.meta == str(place)
    assert run(saved, tmp_path, resume=True).reason == "finished"


def test_what_decides_nothing_may_change(full: Recipe, tmp_path: Path) -> None:
    with Ending(tmp_path, "ask", 2):
        run(full, tmp_path)
    changed = replace(full, saving=Saving(every=1, keep=1), log_every=2, execution=Execution(accumulate=2))
    assert run(changed, tmp_path, resume=True).reason == "finished"
    assert recipe_file.read(tmp_path / "recipe.json") == changed
    events = [row["event"] for row in rows(tmp_path) if "event" in row]
    assert events == ["interrupted", "resumed", "finished"]


def test_patience_ends_a_run_with_its_result(full: Recipe, tmp_path: Path) -> None:
    """A rate that leads away from any answer."""
    recipe = replace(
        full,
        params=((".*", AdamW(lr=1.0)),),
        evaluation=Evaluation(data=full.data, every=1, examples=4, patience=1),
    )
    outcome = run(recipe, tmp_path)
    assert outcome.reason == "no better"
    assert outcome.step < 4
    assert outcome.result is not None
    assert (outcome.result / "config.json").is_file()


def test_patience_lasts_over_an_interruption(full: Recipe, tmp_path: Path) -> None:
    evaluation = Evaluation(data=full.data, every=1, examples=4, patience=2)
    recipe = replace(full, params=((".*", AdamW(lr=1.0)),), evaluation=evaluation)
    whole = run(recipe, tmp_path / "whole")
    assert (whole.reason, whole.step) == ("no better", 3)
    with Ending(tmp_path / "parts", "ask", 2):
        assert run(recipe, tmp_path / "parts").reason == "interrupted"
    parts = run(recipe, tmp_path / "parts", resume=True)
    assert (parts.reason, parts.step) == ("no better", 3)


def test_the_best_weights_can_be_the_result(full: Recipe, tmp_path: Path) -> None:
    """A rate that leads away from any answer: the first measurement is the best."""
    evaluation = Evaluation(data=full.data, every=1, examples=4, result="best")
    run(replace(full, steps=3, params=((".*", AdamW(lr=0.3)),), evaluation=evaluation), tmp_path)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())["step"]
    assert best < 3
    made = load_model(tmp_path / "model").get_parameter("projector.fc1.weight")
    folders = {path.name: path for path in (tmp_path / "checkpoints").glob("step-*")}
    kept = {name: tensors(path)["model/projector.fc1.weight"] for name, path in folders.items()}
    assert torch.equal(made, kept[f"step-{best:08d}"])
    assert not torch.equal(made, kept["step-00000003"])


def test_the_best_is_known_after_a_kill(
    full: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the best measurement was complete, best.json not written yet."""
    evaluation = Evaluation(data=full.data, every=1, examples=4, result="best")
    recipe = replace(full, steps=3, params=((".*", AdamW(lr=0.3)),), evaluation=evaluation)

    class KilledError(Exception):
        pass

    keep_best = Saves.keep_best

    def kill(saves: Saves, step: int) -> None:
        saves.wait()
        if step == 2:
            raise KilledError
        keep_best(saves, step)

    with monkeypatch.context() as patch:
        patch.setattr(Saves, "keep_best", kill)
        with pytest.raises(KilledError):
            run(recipe, tmp_path)
    best = tmp_path / "checkpoints" / "best.json"
    assert json.loads(best.read_text()) == {"step": 1}
    run(recipe, tmp_path, resume=True)
    losses = {row["step"]: row["val_loss"] for row in rows(tmp_path) if "val_loss" in row}
    assert json.loads(best.read_text()) == {"step": 2}
    assert min(losses, key=losses.__getitem__) == 2


def test_a_large_seed_is_one(full: Recipe, tmp_path: Path) -> None:
    for seed in (2**40, -(2**40)):
        assert run(replace(full, steps=1, seed=seed), tmp_path / str(seed)).reason == "finished"


def test_preferences_without_a_reference_are_bad(lora: Recipe, pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for row in rows[1:]:
        row |= {"ref_chosen_logps": -3.0, "ref_rejected_logps": -4.0}
    path = pairs.with_name("stored.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = preferring(lora, path, "stored")
    recipe = replace(recipe, data=replace(recipe.data, bad_samples=BadSamples(limit=1.0)), steps=8)
    outcome = run(recipe, tmp_path)
    assert (outcome.reason, outcome.num_bad) == ("finished", 1)
    bad = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert {row["key"] for row in bad} == {"stored:0"}
    assert "internvl data reference" in bad[0]["reason"]


def test_broken_records_are_written_down(full: Recipe, tmp_path: Path) -> None:
    source = Path(full.data.meta or "")
    lines = source.read_text().splitlines()
    broken = [*lines[:6], '{"image": "gone.png", "caption": "x"}', "no json"]
    path = source.with_name("broken.jsonl")
    path.write_text("\n".join(broken) + "\n")
    spec = replace(full.data, meta=str(path), bad_samples=BadSamples(limit=1.0))
    recipe = replace(full, data=spec, evaluation=Evaluation(data=spec, every=4))
    outcome = run(recipe, tmp_path)
    assert (outcome.reason, outcome.num_bad) == ("finished", 2)
    bad = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert {row["key"] for row in bad} == {"broken:6", "broken:7"}
    assert "2 records could not be used" in (tmp_path / "report.md").read_text()
    stopping = replace(recipe, data=replace(spec, bad_samples=BadSamples(policy="stop")))
    with pytest.raises(TrainingError, match=r"broken:[67] .* cannot be used"):
        run(stopping, tmp_path / "stop")


def test_records_that_an_objective_cannot_learn_from_are_bad(
    full: Recipe, lora: Recipe, pairs: Path, tmp_path: Path
) -> None:
    """Preferences where answers are learnt; answers where preferences are, be there one or two of them."""
    ordinary = [
        {"question": "What?", "answers": ["red", "a red thing"]},
        {"question": "What?", "answer": "red"},
    ]
    lines = [*pairs.read_text().splitlines()[:2], *map(json.dumps, ordinary)]
    mixed = pairs.with_name("mixed.jsonl")
    mixed.write_text("\n".join(lines) + "\n")
    preferring_lora = preferring(lora, pairs, "adapters_off")
    for recipe, keys in ((full, {"mixed:0", "mixed:1"}), (preferring_lora, {"mixed:2", "mixed:3"})):
        out = tmp_path / type(recipe.objective).__name__
        spec = replace(full.data, meta=str(mixed), bad_samples=BadSamples(limit=1.0))
        evaluation = Evaluation(data=spec, every=4)
        assert run(replace(recipe, data=spec, evaluation=evaluation), out).reason == "finished"
        bad = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
        assert {row["key"] for row in bad} == keys
        assert any("val_loss" in row for row in rows(out))
    with pytest.raises(TrainingError, match=r"pairs:\d+: a preference, .* set objective\.type=Preference"):
        run(replace(full, data=replace(full.data, meta=str(pairs))), tmp_path / "pairs")


def half_missing(full: Recipe, **settings: Any) -> Recipe:
    """On twenty rows of which every second one names a picture that is not there."""
    source = Path(full.data.meta or "")
    path = source.with_name("half.jsonl")
    missing = [f'{{"image": "gone{number}.png", "caption": "x"}}' for number in range(10)]
    lines = source.read_text().splitlines()[:10]
    path.write_text("".join(f"{line}\n" for pair in zip(lines, missing, strict=True) for line in pair))
    return replace(full, data=replace(full.data, meta=str(path)), **settings)


TOO_MANY = r"of 20 records cannot be used, more than 10%; see .*bad_samples\.jsonl"


@pytest.mark.parametrize("epochs", [1, 3])
def test_too_many_bad_records_of_a_small_set_end_the_run(full: Recipe, tmp_path: Path, epochs: int) -> None:
    """After its first epoch, once more when it goes on, and not where the limit is raised then."""
    recipe = half_missing(full, steps=None, epochs=epochs)
    with pytest.raises(TrainingError, match=f"^10 {TOO_MANY}"):
        run(recipe, tmp_path)
    assert "| reason | failed: 10 of 20 records" in (tmp_path / "report.md").read_text()
    assert rows(tmp_path)[-1]["step"] == 5
    assert not (tmp_path / "model").exists()
    before = (tmp_path / "bad_samples.jsonl").read_text()
    with pytest.raises(TrainingError, match=f"^10 {TOO_MANY}"):
        run(recipe, tmp_path, resume=True)
    assert (tmp_path / "bad_samples.jsonl").read_text() == before
    if epochs == 1:
        tolerant = replace(recipe.data, bad_samples=BadSamples(limit=0.5), workers=2, read_ahead=9)
        assert run(replace(recipe, data=tolerant), tmp_path, resume=True).num_bad == 10


def test_bad_records_are_counted_over_an_interruption(full: Recipe, tmp_path: Path) -> None:
    recipe = half_missing(full, steps=5)
    with Ending(tmp_path, "ask", 2):
        assert run(recipe, tmp_path).reason == "interrupted"
    with pytest.raises(TrainingError, match=f"^10 {TOO_MANY}"):
        run(recipe, tmp_path, resume=True)


def test_what_cannot_start_says_so(full: Recipe, lora: Recipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the recipe names no data"):
        run(replace(full, data=DataSpec()), tmp_path / "1")
    with pytest.raises(InputError, match="gone"):
        run(replace(full, data=DataSpec(meta=str(tmp_path / "gone.jsonl"))), tmp_path / "2")
    with pytest.raises(CheckpointError, match="has an adapter and its own weights were trained too"):
        run(replace(lora, params=((".*", AdamW(lr=1e-3)),)), tmp_path / "3")
