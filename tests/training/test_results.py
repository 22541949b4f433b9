"""What a run hands over is all that it and the runs before it have learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from internvl.adapt.lora import LoRA, merge_adapters
from internvl.checkpoints.adapters import load_adapters
from internvl.checkpoints.load import load_model
from internvl.training.build import build
from internvl.training.optim import freeze
from internvl.training.recipe import AdamW, ModelSpec, Recipe, Rule
from internvl.training.results import write_result
from tests.conftest import GoldenFixtures

RATE = AdamW(lr=1e-3)
ADAPTERS: Rule = (r".*\.lora_(down|up)", RATE)
PROJECTOR: Rule = (r"projector\.fc1\..*", RATE)
REST: Rule = (r".*", None)


def run(recipe: Recipe, out: Path) -> dict[str, torch.Tensor]:
    """A run that changes all it trains; the weights it ends with, adapters merged."""
    built = build(recipe.model, 0)
    freeze(built.model, recipe.params)
    with torch.no_grad():
        for value in built.model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.1)
    write_result(built, recipe, out)
    merge_adapters(built.model)
    return built.model.state_dict()


def test_a_projector_that_a_run_before_trained_is_not_lost(
    golden_dir: GoldenFixtures, tmp_path: Path
) -> None:
    """The second run goes on with the adapters alone, and the third with what the second left."""
    torch.manual_seed(0)
    base = golden_dir / "internvl2_5_qwen2"
    spec = ModelSpec(checkpoint=str(base), adapters=((r"llm\.layers\..*attn\..*", LoRA(rank=2)),))
    recipe = Recipe(name="x", model=spec, params=(ADAPTERS, PROJECTOR, REST), steps=1)
    expected = run(recipe, tmp_path / "first")
    projector = expected["projector.fc1.weight"]
    assert not torch.equal(projector, load_model(base).state_dict()["projector.fc1.weight"])
    for before, after in (("first", "second"), ("second", "third")):
        further = replace(spec, adapter=str(tmp_path / before / "adapter"))
        expected = run(replace(recipe, model=further, params=(ADAPTERS, REST)), tmp_path / after)
        assert torch.equal(expected["projector.fc1.weight"], projector)
        found = load_model(base)
        load_adapters(found, tmp_path / after / "adapter")
        merge_adapters(found)
        for name, value in found.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
