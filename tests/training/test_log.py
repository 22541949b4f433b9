"""The log: every row is on disk at once, a resumed run continues it, trackers get the same numbers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from internvl.errors import InputError, TrainingError
from internvl.training.log import Log, read_rows


def test_rows_are_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    log = Log(tmp_path / "run")
    log.write(step=1, loss=2.5, keys=("a", "b"))
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text()) == {
        "step": 1,
        "loss": 2.5,
        "keys": ["a", "b"],
    }
    log.close()


def test_a_second_log_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        log = Log(tmp_path)
        log.write(step=step, loss=1.0)
        log.close()
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]


def test_a_line_cut_short_by_a_crash_is_removed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    log = Log(tmp_path)
    log.write(step=2, loss=1.0)
    log.close()
    assert [row["loss"] for row in read_rows(tmp_path)] == [2.0, 1.0]


def test_numbers_that_are_not_finite_stay_readable_json(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(step=1, loss=float("nan"), norm=torch.tensor(float("inf")), path=tmp_path, n=torch.tensor(3))
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert row == {"step": 1, "loss": "nan", "norm": "inf", "path": str(tmp_path), "n": 3}


def test_steps_that_a_resumed_run_repeats_count_once(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(event="started")
    for step in (1, 2, 3):
        log.write(step=step, loss=float(step))
    log.write(step=3, val_loss=9.0)
    log.write(step=2, event="resumed")
    log.write(step=3, loss=30.0)
    log.close()
    assert read_rows(tmp_path) == [
        {"event": "started"},
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "event": "resumed"},
        {"step": 3, "loss": 30.0},
    ]


def test_only_newlines_end_a_row(tmp_path: Path) -> None:
    log = Log(tmp_path)
    row = {"step": 1, "val_loss/of\u2028two\x85lines": 1.0}
    log.write(**row)
    log.close()
    assert read_rows(tmp_path) == [row]


@pytest.mark.parametrize("line", ["nonsense", "[1]", "3"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(InputError, match="line 2"):
        read_rows(tmp_path)


def test_no_log_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = Log(tmp_path, tensorboard=True)
    log.write(step=7, loss=0.25, event="saved")
    log.close()
    loader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.25)]


def test_wandb_gets_the_numbers_and_resumes_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    def init(**settings: Any) -> Any:
        calls.append(("init", settings))
        return SimpleNamespace(
            log=lambda numbers, step: calls.append(("log", (step, numbers))),
            finish=lambda: calls.append(("finish", None)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for step in (1, 2):
        log = Log(tmp_path, wandb="project")
        log.write(step=step, loss=1.0, text="x")
        log.close()
    assert [name for name, _ in calls] == ["init", "log", "finish"] * 2
    assert calls[1][1] == (1, {"loss": 1.0})
    assert calls[0][1] == calls[3][1]
    assert calls[0][1]["resume"] == "allow"
    assert calls[0][1]["project"] == "project"


@pytest.mark.parametrize(
    ("module", "asked", "remedy"),
    [
        ("torch.utils.tensorboard", {"tensorboard": True}, "pip install tensorboard"),
        ("wandb", {"wandb": "project"}, "pip install wandb"),
    ],
)
def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, asked: dict[str, Any], remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TrainingError, match=remedy):
        Log(tmp_path, **asked)
