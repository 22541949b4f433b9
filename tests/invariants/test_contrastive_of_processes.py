"""Contrastive training on two processes is that on one with all pairs: losses, metrics and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.training.world import Mode, World
from tests.training.contrastive_worker import KINDS, measure
from tests.training.processes import run


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed of each kind."""
    folder = tmp_path_factory.mktemp("two")
    run(2, "tests.training.contrastive_worker", folder)
    return folder


@pytest.mark.parametrize(("mode", "name"), KINDS)
def test_two_processes_are_one(measured: Path, mode: Mode, name: str) -> None:
    two, one = load_file(measured / f"{mode}-{name}.safetensors"), measure(World(), mode, name)
    assert float(one["weight"]) == 6
    assert two.keys() == one.keys()
    for tensor, value in one.items():
        torch.testing.assert_close(two[tensor], value, rtol=2e-4, atol=1e-5, msg=f"{tensor} differs")
