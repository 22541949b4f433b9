"""The loop: it learns, resumes exactly, and stops for losses that are not finite."""

from __future__ import annotations

import copy
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl.errors import TrainingError
from internvl.models.vlm import VLM
from internvl.training.loop import train
from internvl.training.objectives import Loss, caption_tokens
from internvl.training.recipe import AdamW, Recipe
from internvl.training.state import trained
from tests.training.tiny import batch

RECIPE = Recipe(
    name="tiny",
    params=((r"projector\..*", AdamW(lr=1e-2)), (".*", None)),
    steps=6,
    batch_size=2,
    warmup=1,
    log_every=1,
    eval_every=3,
    save_every=2,
)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_steps_lower_the_loss_and_leave_frozen_weights_alone(model: VLM, tmp_path: Path) -> None:
    before = copy.deepcopy(model.state_dict())
    first = float(caption_tokens(model, batch()).total.detach())
    assert train(model, replace(RECIPE, steps=2), caption_tokens, lambda _: batch(), tmp_path) == 2
    assert float(caption_tokens(model, batch()).total.detach()) < first
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("projector.") for name in changed)


def test_a_stopped_run_continues_exactly(model: VLM, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    train(model, RECIPE, caption_tokens, batch, tmp_path / "whole")

    def broken(step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return batch(step)

    fresh = copy.deepcopy(other)
    assert train(other, RECIPE, caption_tokens, broken, tmp_path / "parts") == 3
    assert rows(tmp_path / "parts")[-1] == {"step": 3, "event": "interrupted"}
    assert train(fresh, RECIPE, caption_tokens, batch, tmp_path / "parts") == 6
    for name, value in trained(model).items():
        assert torch.equal(value, trained(fresh)[name]), name


def test_ctrl_c_within_a_step_waits_for_its_end(model: VLM, tmp_path: Path) -> None:
    def interrupted(model: VLM, batch: Any) -> Loss:
        signal.raise_signal(signal.SIGINT)
        return caption_tokens(model, batch)

    before = copy.deepcopy(trained(model))
    handler = signal.getsignal(signal.SIGINT)
    assert train(model, RECIPE, interrupted, batch, tmp_path) == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert rows(tmp_path)[-1] == {"step": 1, "event": "interrupted"}
    assert any(not torch.equal(value, before[name]) for name, value in trained(model).items())


def test_the_log_has_a_row_a_step_and_the_evaluations(model: VLM, tmp_path: Path) -> None:
    train(model, RECIPE, caption_tokens, batch, tmp_path, evaluate=lambda _: {"val_loss": 1.5})
    logged = rows(tmp_path)
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row for row in logged if "val_loss" in row] == [
        {"step": 3, "val_loss": 1.5},
        {"step": 6, "val_loss": 1.5},
    ]
    assert logged[0]["captions"] == 5


def test_a_loss_that_is_not_finite_stops_the_run_before_it_harms(model: VLM, tmp_path: Path) -> None:
    def objective(model: VLM, batch: Any) -> Loss:
        loss = caption_tokens(model, batch)
        return replace(loss, total=loss.total * float("nan"))

    before = copy.deepcopy(trained(model))
    with pytest.raises(TrainingError, match="loss of step 1 is nan"):
        train(model, RECIPE, objective, batch, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in trained(model).items())
    assert not (tmp_path / "state.safetensors").exists()


def test_a_state_of_another_recipe_is_refused(model: VLM, tmp_path: Path) -> None:
    train(model, replace(RECIPE, steps=1), caption_tokens, batch, tmp_path)
    wider = replace(RECIPE, params=((r"projector\..*|llm\.norm\..*", AdamW(lr=1e-2)), (".*", None)))
    with pytest.raises(TrainingError, match=r"llm\.norm\.weight"):
        train(model, wider, caption_tokens, batch, tmp_path)


def test_a_damaged_state_is_named(model: VLM, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="Remove the file"):
        train(model, RECIPE, caption_tokens, batch, tmp_path)
