"""From a path to our tensors: layouts found by keys, adapters merged, everything amiss reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.load import build
from internvl.checkpoints.resolve import check, open_checkpoint, open_tower, unwrap_adapters
from internvl.errors import WeightsError
from tests.checkpoints.tiny import (
    LARGE_VIT,
    SMALL_VIT,
    State,
    chat_config,
    chat_json,
    equal,
    random_state,
    vision_json,
    vit_shapes,
    write_json,
    write_official,
)

VIT_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LLM_TARGETS = {
    "qwen2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"),
    "internlm2": ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w3"),
}


def opened_state(path: Path) -> dict[str, Tensor]:
    return {name: fetch(tensor) for name, tensor in open_checkpoint(path).tensors.items()}


def wrapped(state: State, family: str, rank: int) -> tuple[State, State]:
    """A training checkpoint with adapters on both towers, and the same merged by hand."""
    peft: State = {}
    merged = dict(state)
    generator = torch.Generator().manual_seed(1)
    for key, value in state.items():
        model, _, rest = key.partition(".")
        if model == "mlp1":
            peft[key] = value
            continue
        name, _, end = rest.rpartition(".")
        targets = VIT_TARGETS if model == "vision_model" else LLM_TARGETS[family]
        prefix = f"{model}.base_model.model.{name}"
        if not any(name.endswith(target) for target in targets):
            peft[f"{prefix}.{end}" if name else f"{model}.base_model.model.{end}"] = value
            continue
        peft[f"{prefix}.base_layer.{end}"] = value
        if end == "weight":
            down = torch.randn(rank, value.shape[1], generator=generator)
            up = torch.randn(value.shape[0], rank, generator=generator)
            peft[f"{prefix}.lora_A.default.weight"] = down
            peft[f"{prefix}.lora_B.default.weight"] = up
            merged[key] = value + 2.0 * up @ down
    return peft, merged


def training_run(tmp_path: Path, family: str, rank: int = 3, said: int = 3) -> State:
    config = chat_config(family)
    state = write_official(tmp_path, config, family)
    peft, merged = wrapped(state, family, rank)
    write_json(
        {**chat_json(config, family), "use_backbone_lora": said, "use_llm_lora": said},
        tmp_path / "config.json",
    )
    save_file(peft, tmp_path / "model.safetensors")
    write_official(tmp_path / "merged", config, family, merged)
    return peft


@pytest.mark.parametrize("family", LLM_TARGETS)
def test_adapters_are_merged_while_loading(tmp_path: Path, family: str) -> None:
    training_run(tmp_path, family)
    found, expected = opened_state(tmp_path), opened_state(tmp_path / "merged")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_adapters_of_half_precision_are_merged_in_float32(tmp_path: Path) -> None:
    peft = training_run(tmp_path, "qwen2")
    save_file({key: value.bfloat16() for key, value in peft.items()}, tmp_path / "model.safetensors")
    prefix = "vision_model.base_model.model.encoder.layers.0.attn.proj"
    parts = [f"{prefix}.{end}.weight" for end in ("base_layer", "lora_B.default", "lora_A.default")]
    base, up, down = (peft[part].bfloat16().float() for part in parts)
    found = opened_state(tmp_path)["vit.layers.0.attn.out.weight"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, (base + 2 * up @ down).bfloat16())


def test_adapters_of_another_rank_than_configured(tmp_path: Path) -> None:
    training_run(tmp_path, "qwen2", rank=3, said=8)
    with pytest.raises(WeightsError, match=r"factors \(3, \d+\) and \(\d+, 3\) .*config\.json says rank 8"):
        open_checkpoint(tmp_path)


def test_older_wrapping_without_base_layer() -> None:
    held: dict[str, Lazy] = {
        "language_model.base_model.model.model.x.weight": Held(torch.zeros(3, 2)),
        "language_model.base_model.model.model.x.lora_A.default.weight": Held(torch.ones(1, 2)),
        "language_model.base_model.model.model.x.lora_B.default.weight": Held(torch.ones(3, 1)),
    }
    merged = unwrap_adapters(held, (0, 1))
    assert merged.keys() == {"language_model.model.x.weight"}
    assert torch.equal(fetch(merged["language_model.model.x.weight"]), torch.full((3, 2), 2.0))


@pytest.mark.parametrize(
    ("weight", "down", "up"),
    [
        ((3, 2), (2,), (3, 1)),
        ((3, 2), (1, 2), (3,)),
        ((3, 2), (), ()),
        ((3,), (1,), (3, 1)),
        ((3,), (1, 3), (3, 1)),
    ],
)
def test_factors_that_are_no_matrices_for_a_matrix(
    weight: tuple[int, ...], down: tuple[int, ...], up: tuple[int, ...]
) -> None:
    held: dict[str, Lazy] = {
        "x.base_layer.weight": Held(torch.zeros(weight)),
        "x.lora_A.default.weight": Held(torch.ones(down)),
        "x.lora_B.default.weight": Held(torch.ones(up)),
    }
    with pytest.raises(WeightsError, match=r"adapter of x\.weight has factors \("):
        unwrap_adapters(held, (0, 0))


@pytest.mark.parametrize("lost", ["base_layer", "lora_A.default", "lora_B.default"])
def test_half_an_adapter(tmp_path: Path, lost: str) -> None:
    peft = training_run(tmp_path, "qwen2")
    del peft[f"vision_model.base_model.model.encoder.layers.1.attn.qkv.{lost}.weight"]
    save_file(peft, tmp_path / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"adapter of vision_model\.encoder\.layers\.1\.attn\.qkv\.weight lacks"
    ):
        open_checkpoint(tmp_path)


def test_the_same_tensor_twice() -> None:
    held: dict[str, Lazy] = {"a.weight": Held(torch.ones(1)), "a.base_layer.weight": Held(torch.ones(1))}
    with pytest.raises(WeightsError, match="are the same tensor, with and without adapter"):
        unwrap_adapters(held, (0, 0))


def test_a_tower_from_inside_a_chat_model(tmp_path: Path) -> None:
    state = write_official(tmp_path, chat_config("internlm2", LARGE_VIT), "internlm2")
    tower = open_tower(tmp_path)
    assert tower.description.config == LARGE_VIT
    assert torch.equal(fetch(tower.tensors["layers.0.ls1"]), state["vision_model.encoder.layers.0.ls1"])
    assert tower.tensors.keys() == build(LARGE_VIT).state_dict().keys()


def bare(tmp_path: Path) -> State:
    """The 6B tower's `.pth` file, at a size where heads are 128 wide."""
    names = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers.": "blocks.",
        ".ls1": ".ls1.gamma",
        ".ls2": ".ls2.gamma",
    }
    state = random_state(vit_shapes(LARGE_VIT))
    renamed: State = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = value
    poolers = {"clip_projector.norm1_q.weight": torch.ones(4), "logit_scale": torch.tensor(4.6)}
    torch.save({"module": {**renamed, **poolers}}, tmp_path / "intern_vit_6b_224px.pth")
    return state


def test_a_bare_pth_file_needs_no_configuration(tmp_path: Path) -> None:
    state = bare(tmp_path)
    tower = open_checkpoint(tmp_path / "intern_vit_6b_224px.pth")
    assert tower.layout.name == "timm"
    assert (tower.description.config.width, tower.description.config.num_layers) == (16, 2)
    assert torch.equal(fetch(tower.tensors["embed.position"]), state["embeddings.position_embedding"])
    check(tower, {name: tuple(value.shape) for name, value in build(LARGE_VIT).state_dict().items()})


def test_a_pth_file_with_its_configuration(tmp_path: Path) -> None:
    bare(tmp_path)
    write_json(vision_json(LARGE_VIT), tmp_path / "config.json")
    assert open_checkpoint(tmp_path).description.config == LARGE_VIT
    assert open_tower(tmp_path).description.config == LARGE_VIT


def test_weights_of_another_layout_than_configured(tmp_path: Path) -> None:
    write_official(tmp_path, chat_config("qwen2"), "qwen2")
    save_file({"transformer.wte.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"do not fit its config\.json: none is called vision_model.*transformer"
    ):
        open_checkpoint(tmp_path)


def report(directory: Path) -> str:
    checkpoint = open_checkpoint(directory)
    config = checkpoint.description.config
    with pytest.raises(WeightsError) as caught:
        check(checkpoint, {k: tuple(v.shape) for k, v in build(config).state_dict().items()})  # type: ignore[arg-type]
    return str(caught.value)


def edited(tmp_path: Path, state: State, **changes: Tensor | None) -> str:
    """The report after some tensors were replaced or (None) removed."""
    altered = {**state, **{key.replace("__", "."): value for key, value in changes.items()}}
    save_file(
        {key: value for key, value in altered.items() if value is not None}, tmp_path / "model.safetensors"
    )
    return report(tmp_path)


def test_missing_tensors_are_named_as_on_disk(tmp_path: Path) -> None:
    state = write_official(tmp_path, chat_config("qwen2"), "qwen2")
    key = "language_model__model__layers__1__self_attn__v_proj__weight"
    told = edited(tmp_path, state, **{key: None, "mlp1__0__bias": None})
    assert "2 missing: mlp1.0.bias, language_model.model.layers.1.self_attn.v_proj.weight" in told
    assert "incomplete" in told
    assert "unexpected" not in told


def test_unexpected_tensors_are_named_as_on_disk(tmp_path: Path) -> None:
    state = write_official(tmp_path, chat_config("qwen2"), "qwen2")
    extra = {"vision_model__encoder__layers__2__ls1": torch.ones(16), "strange": torch.ones(1)}
    told = edited(tmp_path, state, **extra)
    assert "2 unexpected: strange, vision_model.encoder.layers.2.ls1" in told


def test_misshapen_tensors_tell_both_shapes(tmp_path: Path) -> None:
    state = write_official(tmp_path, chat_config("internlm2"), "internlm2")
    told = edited(tmp_path, state, language_model__output__weight=torch.ones(41, 24))
    assert "1 misshapen: language_model.output.weight is (41, 24), expected (40, 24)" in told
    assert "vocabulary" in told


def test_long_lists_are_cut(tmp_path: Path) -> None:
    state = write_official(tmp_path, chat_config("qwen2"), "qwen2")
    told = edited(tmp_path, state, **{f"x{number:02}": torch.ones(1) for number in range(25)})
    assert "25 unexpected: x00" in told
    assert "x09, ... (15 more)" in told
    assert "x10" not in told


def test_a_checkpoint_of_another_size(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    write_official(tmp_path, config, "qwen2")
    larger = chat_json(config, "qwen2")
    larger["llm_config"]["num_hidden_layers"] = 3
    write_json(larger, tmp_path / "config.json")
    assert "language_model.model.layers.2." in report(tmp_path)


def test_q_and_k_norms_are_never_lost(tmp_path: Path) -> None:
    """A 6B tower under a configuration that forgets its norms must not load."""
    config = chat_config("llama", LARGE_VIT)
    write_official(tmp_path, config, "llama")
    forgetful = chat_json(config, "llama")
    forgetful["vision_config"]["qk_normalization"] = False
    write_json(forgetful, tmp_path / "config.json")
    assert "4 unexpected: vision_model.encoder.layers.0.attn.k_norm.weight" in report(tmp_path)


def test_nothing_is_lost_or_invented(tmp_path: Path) -> None:
    state = write_official(tmp_path, chat_config("qwen2", SMALL_VIT), "qwen2")
    assert equal(load_file(tmp_path / "model.safetensors"), state)
    total = sum(value.numel() for value in opened_state(tmp_path).values())
    assert total == sum(value.numel() for value in state.values())
