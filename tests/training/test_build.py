"""A model built as a recipe says: overrides, new projector, dtypes, int8 weights, adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internvl.adapt.lora import LoRA, LoRAInt8Linear, adapters
from internvl.adapt.qlora import Int8Linear
from internvl.checkpoints.adapters import save_adapters
from internvl.checkpoints.load import load_model
from internvl.checkpoints.write import save_model
from internvl.errors import InputError, TrainingError
from internvl.models.layers import DropPath
from internvl.models.vit import VisionTower
from internvl.training.build import build, narrow_frozen
from internvl.training.optim import freeze
from internvl.training.recipe import AdamW, ModelSpec, Recipe
from tests.conftest import GoldenFixtures

ATTENTION = r"llm\.layers\.\d+\.attn\..*"


@pytest.fixture
def checkpoint(golden_dir: GoldenFixtures) -> str:
    return str(golden_dir / "internvl2_5_qwen2")


def test_as_the_checkpoint_has_it(checkpoint: str) -> None:
    built = build(ModelSpec(checkpoint=checkpoint), 0)
    assert built.source == Path(checkpoint)
    assert (built.adapted, built.family) == ((), "qwen2")
    assert built.processor.config == built.model.config
    config = built.model.config
    assert (config.select_layer, config.vision.drop_path, config.tiling.max_tiles) == (-1, 0.0, 12)
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}


def test_overrides(checkpoint: str) -> None:
    spec = ModelSpec(
        checkpoint=checkpoint, select_layer=-2, drop_path=0.3, max_tiles=4, template="internvl_zh"
    )
    built = build(spec, 0)
    config = built.model.config
    assert (config.select_layer, config.tiling.max_tiles, config.template) == (-2, 4, "internvl_zh")
    rates = [module.rate for module in built.model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.15, 0.3])
    assert built.processor.config == config


def test_a_fresh_projector_depends_on_the_seed_alone(checkpoint: str) -> None:
    spec = ModelSpec(checkpoint=checkpoint, fresh_projector=True)
    before = build(ModelSpec(checkpoint=checkpoint), 0).model
    weights = []
    for seed in (1, 1, 2):
        torch.rand(seed + 5)
        model = build(spec, seed).model
        weights.append(model.projector.fc1.weight)
        assert (model.get_parameter("projector.norm.weight") == 1).all()
        assert torch.equal(model.vit.embed.position, before.vit.embed.position)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], before.projector.fc1.weight)


def test_a_fresh_projector_has_the_dtype_of_the_rest(checkpoint: str) -> None:
    model = build(ModelSpec(checkpoint=checkpoint, fresh_projector=True, dtype="bfloat16"), 0).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_frozen_weights_may_be_narrower(checkpoint: str) -> None:
    """What is trained is not rounded on the way."""
    exact = load_model(checkpoint)
    for parameter in exact.parameters():
        parameter.data.mul_(1 + 2**-12)
    model = build(ModelSpec(checkpoint=checkpoint, frozen_dtype="bfloat16"), 0).model
    model.load_state_dict(exact.state_dict())
    freeze(model, ((r"projector\..*", AdamW(lr=1.0)), (".*", None)))
    narrow_frozen(model, "bfloat16")
    for name, parameter in model.named_parameters():
        trained = name.startswith("projector.")
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name
        if trained:
            assert torch.equal(parameter, exact.get_parameter(name)), name


def test_adapters_depend_on_the_seed_alone(checkpoint: str) -> None:
    spec = ModelSpec(checkpoint=checkpoint, adapters=((ATTENTION, LoRA(rank=2)),), frozen_dtype="bfloat16")
    made = [build(spec, seed) for seed in (1, 1, 2)]
    name = "llm.layers.0.attn.qkv"
    assert set(made[0].adapted) == {
        f"llm.layers.{i}.attn.{part}" for i in range(3) for part in ("qkv", "out")
    }
    downs = [adapters(built.model)[name].lora_down for built in made]
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])
    assert downs[0].dtype == torch.float32


@pytest.mark.parametrize("frozen", [None, "bfloat16"])
def test_int8_weights_lie_under_adapters(checkpoint: str, frozen: str | None) -> None:
    spec = ModelSpec(
        checkpoint=checkpoint,
        int8=(r"llm\.layers\..*", r"vit\.layers\..*"),
        frozen_dtype=frozen,
        adapters=((ATTENTION, LoRA(rank=2)),),
    )
    plain, model = build(ModelSpec(checkpoint=checkpoint), 0).model, build(spec, 0).model
    assert type(model.get_submodule("llm.layers.0.attn.qkv")) is LoRAInt8Linear
    assert type(model.get_submodule("llm.layers.0.mlp.down")) is Int8Linear
    module = model.get_submodule("vit.layers.0.mlp.fc1")
    assert isinstance(module, Int8Linear)
    assert module.weight_scale.dtype == torch.float32
    weight = plain.get_parameter("vit.layers.0.mlp.fc1.weight")
    rounding = 2**-8 if frozen else 0.0
    limit = module.weight_scale * 0.501 + rounding * weight.abs()
    assert bool(((module.dense_weight() - weight).abs() <= limit).all())


def test_adapters_of_a_run_before(checkpoint: str, tmp_path: Path) -> None:
    """Training goes on with their values; what the recipe says of them must be true."""
    rules = ((ATTENTION, LoRA(rank=2)),)
    before = build(ModelSpec(checkpoint=checkpoint, adapters=rules), 1).model
    for module in adapters(before).values():
        torch.nn.init.normal_(module.lora_up)
    save_adapters(before, tmp_path / "adapter", trained=["projector.fc1.weight"])
    spec = ModelSpec(checkpoint=checkpoint, adapters=rules, adapter=str(tmp_path / "adapter"))
    built = build(replace(spec, frozen_dtype="bfloat16"), 2)
    assert built.adapted == tuple(adapters(before))
    for name, module in adapters(built.model).items():
        assert torch.equal(module.lora_up, adapters(before)[name].lora_up)
        assert torch.equal(module.lora_down, adapters(before)[name].lora_down)
    with pytest.raises(TrainingError, match=r"in 6 modules.*rank 2,.*rank 4,"):
        build(replace(spec, adapters=((ATTENTION, LoRA(rank=4)),)), 0)
    with pytest.raises(TrainingError, match=r"in 3 modules.*says None"):
        build(replace(spec, adapters=((r"llm\..*attn.qkv", LoRA(rank=2)),)), 0)
    with pytest.raises(TrainingError, match="say which in"):
        ModelSpec(adapter="somewhere")


def test_int8_without_adapters_could_not_be_saved() -> None:
    with pytest.raises(TrainingError, match=r"model\.int8 needs model\.adapters"):
        Recipe(name="x", params=((".*", None),), steps=1, model=ModelSpec(int8=(r"llm\..*",)))


def test_a_pattern_without_a_module_is_named(checkpoint: str) -> None:
    with pytest.raises(InputError, match="lmm"):
        build(ModelSpec(checkpoint=checkpoint, adapters=((r"lmm\..*", LoRA(rank=2)),)), 0)


def test_a_tower_alone_is_refused(checkpoint: str, tmp_path: Path) -> None:
    tower = build(ModelSpec(checkpoint=checkpoint), 0).model.vit
    assert isinstance(tower, VisionTower)
    save_model(tower, tower.config, tmp_path / "tower", tokenizer_files={"x.txt": b""})
    with pytest.raises(TrainingError, match="is not a chat model"):
        build(ModelSpec(checkpoint=str(tmp_path / "tower")), 0)


def test_adapters_cannot_carry_another_layer(checkpoint: str) -> None:
    spec = ModelSpec(checkpoint=checkpoint, select_layer=-2, adapters=((r"llm\..*out", LoRA(rank=2)),))
    with pytest.raises(TrainingError, match=r"select_layer -2 is not the checkpoint's -1"):
        build(spec, 0)


def test_adapters_cannot_carry_another_template(checkpoint: str, tmp_path: Path) -> None:
    spec = ModelSpec(checkpoint=checkpoint, template="internvl_zh", adapters=((r"llm\..*out", LoRA(rank=2)),))
    with pytest.raises(TrainingError, match=r"template internvl_zh is not the checkpoint's internvl2_5"):
        build(spec, 0)
    assert build(replace(spec, template="internvl2_5"), 0).model.config.template == "internvl2_5"
    silent = shutil.copytree(checkpoint, tmp_path / "silent")
    fields = json.loads((silent / "config.json").read_text())
    del fields["template"]
    (silent / "config.json").write_text(json.dumps(fields))
    assert build(replace(spec, checkpoint=str(silent)), 0).model.config.template == "internvl_zh"
