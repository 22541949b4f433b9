"""Preference training on two processes is that on one: gradients, and the mean of all rewards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.training.world import Mode, World
from tests.training.preference_worker import Kind, measure
from tests.training.processes import run


@pytest.mark.parametrize(("mode", "kind"), [("ddp", "adapters_off"), ("fsdp", "copy")])
def test_two_processes_are_one(tmp_path: Path, mode: Mode, kind: Kind) -> None:
    run(2, "tests.training.preference_worker", tmp_path / "two.safetensors", mode, kind)
    two, one = load_file(tmp_path / "two.safetensors"), measure(World(), mode, kind)
    assert float(one["count"]) == 2 * 2 * 4
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
