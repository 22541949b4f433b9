"""Preference training on two processes is that on one: gradients, and the mean of all rewards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.training.world import Mode, World
from tests.training.preference_worker import KINDS, Kind, measure
from tests.training.processes import run


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed in each mode."""
    folder = tmp_path_factory.mktemp("two")
    run(2, "tests.training.preference_worker", folder)
    return folder


@pytest.mark.parametrize(("mode", "kind"), KINDS.items())
def test_two_processes_are_one(measured: Path, mode: Mode, kind: Kind) -> None:
    two, one = load_file(measured / f"{mode}.safetensors"), measure(World(), mode, kind)
    assert float(one["count"]) == 2 * 2 * 4
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
