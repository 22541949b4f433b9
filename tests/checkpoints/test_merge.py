"""Merging adapters into checkpoints: measured, exact where untouched, nothing half done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from internvl.adapt.lora import LoRA, adapters, add_adapters
from internvl.checkpoints import merge
from internvl.checkpoints.adapters import load_adapters, save_adapters
from internvl.checkpoints.load import build, load_model
from internvl.checkpoints.merge import answer, distance, merge_checkpoint
from internvl.checkpoints.write import save_model
from internvl.config import ChatConfig, VisionConfig
from internvl.errors import CheckpointError, ConfigError, WeightsError
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import SMALL_VIT, chat_config

LORA = LoRA(rank=2)


def saved(
    config: ChatConfig | VisionConfig, path: Path, dtype: torch.dtype = torch.float32, **kw: Any
) -> Path:
    model = build(config).to_empty(device="cpu")
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        value.data.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.2)
    save_model(model.to(dtype), config, path, **kw)
    return path


def adapted(base: Path, path: Path, rule: str, lora: LoRA = LORA, **kw: Any) -> VLM | VisionTower:
    model = load_model(base)
    add_adapters(model, [(rule, lora)])
    for module in adapters(model).values():
        module.lora_up.data.normal_(std=0.2)
    save_adapters(model, path, **kw)
    return model


@pytest.mark.parametrize("lora", [LORA, LoRA(rank=2, magnitude=True)])
@pytest.mark.parametrize("layout", ["official", "hf"])
def test_merged_answers_like_adapted(layout: str, lora: LoRA, tmp_path: Path) -> None:
    base = saved(chat_config("internlm2"), tmp_path / "base", family="internlm2")
    rule = r"llm\.layers\..*|vit\.layers\.0\..*"
    model = adapted(base, tmp_path / "adapter", rule, lora, family="internlm2")
    report = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out", layout, image_token_id=39)
    assert len(report.modules) == 12
    assert report.effect > 0.05
    assert report.error < 1e-5
    merged = load_model(tmp_path / "out")
    assert isinstance(merged, VLM)
    torch.testing.assert_close(answer(merged), answer(model), atol=1e-4, rtol=1e-3)


def test_what_no_adapter_touches_is_kept_to_the_bit(tmp_path: Path) -> None:
    base = saved(chat_config("qwen2"), tmp_path / "base", torch.bfloat16)
    adapted(base, tmp_path / "adapter", r"llm\..*mlp\.down")
    report = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert report.error < 1e-5 < report.rounding < report.effect
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    differing = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert differing == {f"language_model.model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)}


def test_adapters_lost_in_rounding_are_refused(tmp_path: Path) -> None:
    base = saved(chat_config("qwen2"), tmp_path / "base", torch.bfloat16)
    model = load_model(base)
    add_adapters(model, [(r"llm\..*mlp\.down", LORA)])
    for module in adapters(model).values():
        module.lora_up.data.normal_(std=1e-4)
    save_adapters(model, tmp_path / "adapter")
    with pytest.raises(WeightsError, match="dtype swallows the adapters"):
        merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_modules_stored_whole_are_replaced(tmp_path: Path) -> None:
    base = saved(chat_config("qwen2"), tmp_path / "base")
    model = load_model(base)
    add_adapters(model, [(r"llm\..*out", LORA)])
    trained = model.get_parameter("projector.fc1.bias")
    trained.data.add_(1.0)
    save_adapters(model, tmp_path / "adapter", trained=["projector.fc1.bias"])
    report = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert report.effect > 0
    assert torch.equal(load_model(tmp_path / "out").get_parameter("projector.fc1.bias"), trained)


def test_a_tower(tmp_path: Path) -> None:
    base = saved(SMALL_VIT, tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", r"layers\..*", layout="hf")
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    merged = load_model(tmp_path / "out")
    assert distance(answer(model), answer(merged)) < 1e-5


def test_a_merge_that_changes_the_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(chat_config("qwen2"), tmp_path / "base")
    adapted(base, tmp_path / "adapter", r"llm\..*out")

    def spoil(model: VLM) -> None:
        model.llm.layers[0].attn.out.weight.data.mul_(2)

    monkeypatch.setattr(merge, "merge_adapters", spoil)
    with pytest.raises(WeightsError, match=r"merged model's answer is .* nothing was written"):
        merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").touch()
    with pytest.raises(CheckpointError, match="is not empty"):
        merge_checkpoint(tmp_path / "no base", tmp_path / "no adapter", tmp_path)


def test_files_that_do_not_read_back_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(chat_config("qwen2"), tmp_path / "base")
    adapted(base, tmp_path / "adapter", r"llm\..*out")
    monkeypatch.setattr(merge, "_same", lambda one, other: False)
    with pytest.raises(WeightsError, match="did not come back"):
        merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_adapters_of_another_model(tmp_path: Path) -> None:
    base = saved(SMALL_VIT, tmp_path / "base")
    adapted(saved(chat_config("qwen2"), tmp_path / "other"), tmp_path / "adapter", r"llm\..*")
    with pytest.raises(
        WeightsError, match="of another model: it has no linear module for 15 of the 15 names"
    ):
        merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")


def test_parameters_beside_modules_are_stored_alone(tmp_path: Path) -> None:
    """They are no module that PEFT could be told to put in place of another."""
    base = saved(chat_config("qwen2"), tmp_path / "base")
    model = load_model(base)
    add_adapters(model, [(r"llm\..*out", LORA)])
    trained = ["vit.layers.0.ls1", "vit.embed.class_token"]
    for name in trained:
        model.get_parameter(name).data.add_(0.5)
    save_adapters(model, tmp_path / "adapter", trained=trained)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] is None
    again = load_model(base)
    assert set(load_adapters(again, tmp_path / "adapter").replaced) == set(trained)
    for name in trained:
        assert torch.equal(again.get_parameter(name), model.get_parameter(name))


def test_weights_under_a_trained_adapter_have_no_place_in_the_format(tmp_path: Path) -> None:
    model = load_model(saved(chat_config("qwen2"), tmp_path / "base"))
    add_adapters(model, [(r"llm\..*out", LORA)])
    with pytest.raises(ConfigError, match=r"layers\.0\.attn\.out has an adapter and its own weights"):
        save_adapters(model, tmp_path / "adapter", trained=["llm.layers.0.attn.out.weight"])
    assert not (tmp_path / "adapter").exists()


def test_a_failed_load_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    base = saved(chat_config("qwen2"), tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", r"llm\..*")
    module = next(reversed(adapters(model).values()))
    module.lora_up.data[0] = torch.nan
    save_adapters(model, tmp_path / "adapter", overwrite=True)
    fresh = load_model(base)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        load_adapters(fresh, tmp_path / "adapter")
    assert not adapters(fresh)


def test_a_model_with_adapters_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    model = adapted(saved(chat_config("qwen2"), tmp_path / "base"), tmp_path / "adapter", r"llm\..*out")
    with pytest.raises(WeightsError, match=r"no rule for 4 keys: llm\.layers\.0\.attn\.out\.lora_down"):
        save_model(model, model.config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def broken(tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The base of an adapter whose file was changed."""
    base = saved(chat_config("qwen2"), tmp_path / "base")
    adapted(base, tmp_path / "adapter", r"llm\..*mlp\.down")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return base


def test_a_lost_factor(tmp_path: Path) -> None:
    def without_first_down(found: dict[str, Tensor]) -> dict[str, Tensor]:
        lost = min(name for name in found if "lora_A" in name)
        return {name: value for name, value in found.items() if name != lost}

    base = broken(tmp_path, without_first_down)
    with pytest.raises(WeightsError, match=r"has up; it should have down, up \(lora_A"):
        load_adapters(load_model(base), tmp_path / "adapter")


def test_factors_of_another_size(tmp_path: Path) -> None:
    base = broken(tmp_path, lambda found: {name: value[:, :-1].clone() for name, value in found.items()})
    with pytest.raises(WeightsError, match="have no rank in common"):
        load_adapters(load_model(base), tmp_path / "adapter")


def test_names_that_nothing_has(tmp_path: Path) -> None:
    def rename(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return found | {name.replace("down", "side"): value.clone() for name, value in found.items()}

    with pytest.raises(WeightsError, match=r"for 2 of the 4 names, first .*side_proj"):
        load_adapters(load_model(broken(tmp_path, rename)), tmp_path / "adapter")


def test_no_files(tmp_path: Path) -> None:
    base = broken(tmp_path, lambda found: found)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no adapter weights"):
        load_adapters(load_model(base), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_adapters(load_model(base), tmp_path / "nothing")
