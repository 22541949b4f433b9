"""Checkpoints of several processes: exact on any number of them, complete or absent when a process dies."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from internvl.errors import TrainingError
from internvl.training.saves import Saves
from internvl.training.world import World
from tests.training.processes import finish, run, start
from tests.training.world_worker import Run

WORKER = "tests.training.world_worker"


def read(folder: Path, step: int) -> Run:
    """A run of one process that went on from the latest checkpoint of `folder`, which is of `step`."""
    fresh = Run(World(), steps=1)
    saves = Saves(folder, World(), keep=3)
    path = saves.latest()
    assert path is not None
    assert saves.load(path, fresh.model, fresh.optimizer, fresh.ema) == {"steps": step}
    assert saves.latest_step == step
    return fresh


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_one_two_one(tmp_path: Path) -> None:
    first = Run(World(), steps=3)
    Saves(tmp_path / "one", World(), keep=3).save(
        3, first.model, first.optimizer, {"steps": 3}, ema=first.ema, wait=True
    )
    run(2, WORKER, "reshard", tmp_path / "one", tmp_path / "two", "fsdp", "ddp")
    for mode in ("fsdp", "ddp"):
        shards = list((tmp_path / "two" / mode / "step-00000003").glob("*.safetensors"))
        assert len(shards) == 2
        assert_same(read(tmp_path / "two" / mode, 3).tensors(), first.tensors())


def test_killed_while_saving(tmp_path: Path) -> None:
    """Process 1 hangs in the middle of writing step 2 and both are killed: step 1 is the latest."""
    processes = start(2, WORKER, "stall", tmp_path, "fsdp", "1")
    partial = tmp_path / "step-00000002.partial"
    deadline = time.monotonic() + 60
    while len(list(partial.glob("*.safetensors"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
        assert all(process.poll() is None for process in processes)
    for process in processes:
        process.kill()
    assert finish(processes) == [-9, -9]
    assert partial.is_dir()
    assert not (tmp_path / "step-00000002").exists()
    one = read(tmp_path, 1)
    assert_same(one.tensors(), load_file(tmp_path / "whole-1.safetensors"))
    saves = Saves(tmp_path, World(), keep=3)
    saves.save(2, one.model, one.optimizer, {"steps": 2}, ema=one.ema, wait=True)
    assert not partial.exists()
    assert_same(read(tmp_path, 2).tensors(), one.tensors())


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it, so that the disk is left as it is."""


@pytest.mark.parametrize("operation", range(1, 9))
def test_stopped_after_any_operation_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: int
) -> None:
    """There is always a whole checkpoint: the one before, or the new one."""
    one = Run(World(), steps=1)
    saves = Saves(tmp_path, World(), keep=1)
    saves.save(1, one.model, one.optimizer, {"steps": 1}, ema=one.ema, wait=True)
    count = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == operation:
                raise Killed
            return original(*arguments)

        return call

    for place, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
        monkeypatch.setattr(place, name, counted(getattr(place, name)))
    with pytest.raises((Killed, TrainingError)):
        saves.save(2, one.model, one.optimizer, {"steps": 2}, ema=one.ema, wait=True)
    monkeypatch.undo()
    found = Saves(tmp_path, World(), keep=1).latest()
    assert found is not None
    assert found.name == ("step-00000001" if operation <= 5 else "step-00000002")
    read(tmp_path, 1 if operation <= 5 else 2)
    saves = Saves(tmp_path, World(), keep=1)
    saves.save(3, one.model, one.optimizer, {"steps": 3}, ema=one.ema, wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
