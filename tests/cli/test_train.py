"""The command line of training: which recipe, with which changes, in which folder, and how it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from internvl.cli.main import INTERRUPTED, WRONG_USE
from internvl.cli.train import run as train
from internvl.errors import InputError
from internvl.recipes import catalog
from internvl.training import precision, recipe_file
from internvl.training import run as training_run
from internvl.training.recipe import AdamW, Recipe
from tests.cli.conftest import Run

PLAIN = Recipe(name="plain", params=((".*", AdamW(lr=1e-3)),), steps=10)


class Trained:
    """What training was asked for; ends as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Recipe, Path, bool, str]] = []
        self.reason, self.num_bad = "finished", 0

    def __call__(self, recipe: Recipe, out: Path, *, resume: bool, device: str) -> Any:
        self.calls.append((recipe, out, resume, device))
        done = self.reason == "finished"
        result = out / "model" if done else None
        return SimpleNamespace(reason=self.reason, step=7, result=result, num_bad=self.num_bad)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    made = Trained()
    monkeypatch.setattr(training_run, "run", made)
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    (tmp_path / "before").mkdir()
    recipe_file.write(tmp_path / "before" / "recipe.json", PLAIN)
    return tmp_path / "before" / "recipe.json"


def test_recipes_are_listed_with_what_they_are(run: Run) -> None:
    listed = run("train", "--list", "--json").json["recipes"]
    assert [row["name"] for row in listed] == list(catalog.names())
    assert all(row["about"] for row in listed)
    table = run("train", "--list").out
    assert all(f"\n{name} " in table for name in catalog.names())


def test_a_named_recipe_with_changes(run: Run, trained: Trained, tmp_path: Path) -> None:
    words = ("--data", "my.jsonl", "--model", "m=1", "--set", "steps=3", "--set", "epochs=none")
    finished = run("train", "lora", *words, "--out", str(tmp_path), "--json")
    assert finished.json == {
        "reason": "finished",
        "step": 7,
        "run": str(tmp_path),
        "result": str(tmp_path / "model"),
    }
    ((recipe, out, resume, device),) = trained.calls
    settings = ["data.meta=my.jsonl", "model.checkpoint=m=1", "steps=3", "epochs=none"]
    assert recipe == recipe_file.override(catalog.find("lora"), settings)
    assert (out, resume, device) == (tmp_path, False, "cpu")


def test_the_result_is_what_is_printed(run: Run, trained: Trained) -> None:
    finished = run("train", "lora")
    assert finished.out == f"{Path('runs/lora/model')}\n"
    assert "finished after 7 steps" in finished.err
    assert "could not be used" not in finished.err


def test_records_that_could_not_be_used_are_told(run: Run, trained: Trained) -> None:
    trained.num_bad = 19
    told = f"19 records could not be used, see {Path('runs/lora/bad_samples.jsonl')}\n"
    assert told in run("train", "lora").err


def test_a_saved_recipe(run: Run, trained: Trained, saved: Path) -> None:
    assert run("train", str(saved), "--device", "cuda").status == 0
    assert trained.calls == [(PLAIN, Path("runs/plain"), False, "cuda")]


def test_a_run_goes_on_in_its_folder(run: Run, trained: Trained, saved: Path) -> None:
    assert run("train", str(saved.parent), "--resume").status == 0
    assert trained.calls == [(PLAIN, saved.parent, True, "cpu")]


def test_an_interrupted_run_says_how_it_goes_on(run: Run, trained: Trained, tmp_path: Path) -> None:
    trained.reason = "interrupted"
    folder = tmp_path / "a run"
    finished = run("train", "lora", "--out", str(folder))
    assert finished.status == INTERRUPTED
    assert f"internvl train '{folder}' --resume" in finished.err


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_processor_without_bfloat16_is_told_of(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
) -> None:
    """The recipe is handed over as it is."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has_bfloat16)
    finished = run("train", "lora")
    assert (precision.WIDENED in finished.err) is not has_bfloat16
    assert trained.calls[0][0].execution.autocast == "bfloat16"


def test_one_of_several_processes_tells(run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    finished = run("train", "lora")
    assert (finished.status, finished.out, finished.err) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), WRONG_USE, "--list"),
        (("lara",), WRONG_USE, "no recipe 'lara'"),
        (("none.json",), WRONG_USE, "no recipe file none.json"),
        (("runs/none", "--resume"), WRONG_USE, "no run in runs/none: there is no such folder"),
        ((__file__,), WRONG_USE, "data go in --data"),
        (("lora", "--set", "schedule.wormup=1"), WRONG_USE, "no field 'wormup'; there are kind, warmup"),
        (("lora", "--set", "steps=5"), WRONG_USE, "give steps or epochs"),
        (("lora", "--set", "params.0.1.lr=-1"), WRONG_USE, "a learning rate (lr) is above 0, got -1"),
        (("lora", "--threads", "0"), WRONG_USE, "--threads"),
    ],
)
def test_wrong_use(run: Run, trained: Trained, words: tuple[str, ...], status: int, message: str) -> None:
    finished = run("train", *words)
    assert (finished.status, finished.out) == (status, "")
    assert message in finished.err
    assert trained.calls == []


def test_a_folder_without_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe file .*recipe\.json"):
        train([str(tmp_path)])
