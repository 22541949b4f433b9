"""Which precision a recipe is computed in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.recipes import catalog
from internvl.training import precision
from internvl.training.precision import for_device, has_bfloat16

CPU = torch.device("cpu")
NANO = catalog.find("nano-2")


def test_a_device_with_bfloat16_keeps_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    assert for_device(NANO, CPU) is NANO


def test_one_without_it_widens_products_and_frozen_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert NANO.model.frozen_dtype == NANO.execution.autocast == "bfloat16"
    made = for_device(NANO, CPU)
    assert made.model == replace(NANO.model, frozen_dtype=None)
    assert made.execution == replace(NANO.execution, autocast=None)
    assert replace(made, model=NANO.model, execution=NANO.execution) == NANO
    assert for_device(made, CPU) is made


def test_accelerators_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_bfloat16(torch.device("cuda:1"))
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert not has_bfloat16(CPU)
