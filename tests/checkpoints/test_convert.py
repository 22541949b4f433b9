"""Conversions on disk: there and back again, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.adapt.resize import resize_position_table
from internvl.checkpoints.configs import describe, describe_normalization
from internvl.checkpoints.convert import Language, convert
from internvl.checkpoints.edit import Resize
from internvl.checkpoints.lazy import fetch
from internvl.checkpoints.load import compose, load_model
from internvl.checkpoints.read import read_tensors
from internvl.errors import CheckpointError, ConfigError, InputError, WeightsError
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import (
    FAMILIES,
    LARGE_VIT,
    SMALL_VIT,
    chat_config,
    equal,
    official_state,
    random_state,
    text_config,
    text_json,
    text_shapes,
    vision_json,
    vit_shapes,
    write_json,
    write_official,
)


def state_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: fetch(tensor) for name, tensor in read_tensors(directory).items()}


@pytest.mark.parametrize("tower", [SMALL_VIT, LARGE_VIT])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_again(tmp_path: Path, family: str, tower: Any) -> None:
    config = chat_config(family, tower)
    state = official_state(config, family, torch.bfloat16)
    state["mlp1.0.weight"] = state["mlp1.0.weight"].float()
    write_official(tmp_path / "a", config, family, state)
    convert(tmp_path / "a", tmp_path / "b", "hf", image_token_id=39, max_shard_bytes=10_000)
    convert(tmp_path / "b", tmp_path / "c", "official")
    assert equal(state_of(tmp_path / "c"), state)
    assert describe(tmp_path / "c").config == describe(tmp_path / "b").config == config
    assert describe(tmp_path / "c").family == describe(tmp_path / "a").family


def test_golden_checkpoints_survive(golden_dir: Any, tmp_path: Path) -> None:
    for name in ("internvl2_5_qwen2", "internvl1_5_internlm2"):
        convert(golden_dir / name, tmp_path / name / "hf", "hf")
        convert(tmp_path / name / "hf", tmp_path / name / "official", "official")
        assert equal(state_of(tmp_path / name / "official"), state_of(golden_dir / name))
        assert describe(tmp_path / name / "official").config == describe(golden_dir / name).config


def test_older_hf_files_without_the_prefix(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    state = write_official(tmp_path / "a", config, "qwen2")
    convert(tmp_path / "a", tmp_path / "hf", "hf", image_token_id=39)
    renamed = {}
    for key, value in load_file(tmp_path / "hf" / "model.safetensors").items():
        key = key.removeprefix("model.")
        if key.startswith("language_model."):
            key = key.replace("language_model.", "language_model.model.", 1)
        renamed["language_model.lm_head.weight" if key == "lm_head.weight" else key] = value
    assert "vision_tower.embeddings.cls_token" in renamed
    assert "language_model.model.embed_tokens.weight" in renamed
    save_file(renamed, tmp_path / "hf" / "model.safetensors")
    convert(tmp_path / "hf", tmp_path / "b", "official")
    assert equal(state_of(tmp_path / "b"), state)


def test_an_hf_model_with_one_matrix_for_both_ends(tmp_path: Path) -> None:
    write_official(tmp_path / "a", chat_config("qwen2"), "qwen2")
    convert(tmp_path / "a", tmp_path / "hf", "hf", image_token_id=39)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: lm_head\.weight"):
        load_model(tmp_path / "hf")
    values = dict(describe(tmp_path / "hf").raw)
    write_json({**values, "tie_word_embeddings": True}, tmp_path / "hf" / "config.json")
    model = load_model(tmp_path / "hf")
    assert torch.equal(model.llm.head.weight, model.llm.embed.weight)  # type: ignore[union-attr]


def test_internlm2_can_become_llama_for_good(tmp_path: Path) -> None:
    write_official(tmp_path / "a", chat_config("internlm2"), "internlm2")
    convert(tmp_path / "a", tmp_path / "b", "official", family="llama")
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in state_of(tmp_path / "b")
    assert describe(tmp_path / "b").config == chat_config("internlm2")


@pytest.mark.parametrize("config", [SMALL_VIT, LARGE_VIT])
def test_towers(tmp_path: Path, config: Any) -> None:
    (tmp_path / "a").mkdir()
    write_json(vision_json(config), tmp_path / "a" / "config.json")
    state = random_state(vit_shapes(config))
    save_file(state, tmp_path / "a" / "model.safetensors")
    write_json({"image_mean": [0.5, 0.5, 0.5]}, tmp_path / "a" / "preprocessor_config.json")
    convert(tmp_path / "a", tmp_path / "b", "hf")
    convert(tmp_path / "b", tmp_path / "c", "official")
    assert describe_normalization(tmp_path / "b") == describe_normalization(tmp_path / "c") == "siglip"
    assert "encoder.layer.0.attention.q_proj.weight" in state_of(tmp_path / "b")
    assert equal(state_of(tmp_path / "c"), state)


def test_a_source_that_does_not_fit_its_configuration(tmp_path: Path) -> None:
    state = write_official(tmp_path / "a", chat_config("qwen2"), "qwen2")
    del state["mlp1.3.bias"]
    save_file(state, tmp_path / "a" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: mlp1\.3\.bias"):
        convert(tmp_path / "a", tmp_path / "b", "hf", image_token_id=39)
    assert not (tmp_path / "b").exists()


def test_targets_in_use_and_sources_of_another_kind(tmp_path: Path) -> None:
    write_official(tmp_path / "a", chat_config("qwen2"), "qwen2")
    with pytest.raises(CheckpointError, match="is not empty"):
        convert(tmp_path / "a", tmp_path / "a", "hf", image_token_id=39)
    (tmp_path / "llm").mkdir()
    write_json(text_json(text_config("qwen2"), "qwen2"), tmp_path / "llm" / "config.json")
    save_file(
        random_state(text_shapes(text_config("qwen2"), "qwen2")), tmp_path / "llm" / "model.safetensors"
    )
    with pytest.raises(ConfigError, match="no other layout to convert to"):
        convert(tmp_path / "llm", tmp_path / "b")


def test_in_place_with_permission(tmp_path: Path) -> None:
    write_official(tmp_path / "a", chat_config("qwen2"), "qwen2")
    before = load_model(tmp_path / "a").state_dict()
    convert(tmp_path / "a", tmp_path / "a", "hf", image_token_id=39, overwrite=True)
    assert equal(load_model(tmp_path / "a").state_dict(), before)
    assert "model.vision_tower.embeddings.cls_token" in state_of(tmp_path / "a")


@pytest.mark.parametrize("limit", [5e9, 10_000])
def test_progress_counts_every_byte_once(tmp_path: Path, limit: float) -> None:
    write_official(tmp_path / "a", chat_config("qwen2"), "qwen2")
    told: list[tuple[str, int, int]] = []
    convert(
        tmp_path / "a",
        tmp_path / "b",
        "hf",
        image_token_id=39,
        max_shard_bytes=limit,
        progress=lambda *step: told.append(step),
    )
    written = state_of(tmp_path / "b")
    assert sorted(name for name, _, _ in told) == sorted(written)
    done = 0
    for name, so_far, total in told:
        done += written[name].nbytes
        assert (so_far, total) == (done, sum(value.nbytes for value in written.values()))
    assert done == told[-1][2]


def chat(directory: Path, family: str = "qwen2", **changes: Any) -> Path:
    write_official(directory, chat_config(family, **changes), family)
    return directory


@pytest.mark.parametrize("layout", ["official", "hf"])
def test_the_tower_alone(tmp_path: Path, layout: str) -> None:
    source = chat(tmp_path / "chat")
    convert(source, tmp_path / "vit", layout, part="vit")
    tower, whole = load_model(tmp_path / "vit"), load_model(source)
    assert isinstance(tower, VisionTower)
    assert isinstance(whole, VLM)
    assert tower.config == whole.config.vision
    assert equal(tower.state_dict(), whole.vit.state_dict())


@pytest.mark.parametrize("layout", ["official", "hf"])
@pytest.mark.parametrize("family", ["internlm2", "qwen2"])
def test_parts_compose_to_the_whole(tmp_path: Path, family: str, layout: str) -> None:
    source = chat(tmp_path / "chat", family)
    for part in ("vit", "llm", "projector"):
        convert(source, tmp_path / part, layout, part=part)
    whole = load_model(source)
    assert isinstance(whole, VLM)
    joined = compose(
        tmp_path / "vit",
        tmp_path / "llm",
        tmp_path / "projector",
        template=whole.config.template,
        tiling=whole.config.tiling,
        projector=whole.config.projector,
    )
    assert joined.config.text == whole.config.text
    assert equal(joined.state_dict(), whole.state_dict())


def test_a_tower_has_no_parts(tmp_path: Path) -> None:
    convert(chat(tmp_path / "chat"), tmp_path / "vit", "official", part="vit")
    with pytest.raises(ConfigError, match="only a larger model has a llm to take out"):
        convert(tmp_path / "vit", tmp_path / "out", "official", part="llm")


def test_another_image_size(tmp_path: Path) -> None:
    source = chat(tmp_path / "chat")
    convert(source, tmp_path / "out", "official", sizes=Resize(image_size=112))
    model, expected = load_model(tmp_path / "out"), load_model(source)
    assert isinstance(model, VLM)
    assert isinstance(expected, VLM)
    resize_position_table(expected.vit, 112)
    assert model.config.tiling.tile_size == model.config.vision.image_size == 112
    assert model.config.tokens_per_tile == 16
    assert equal(model.vit.state_dict(), expected.vit.state_dict())
    with pytest.raises(InputError, match="positive multiple of the patch size 14"):
        convert(source, tmp_path / "other", "official", sizes=Resize(image_size=113))
    with pytest.raises(InputError, match="choose a multiple of 28"):
        convert(source, tmp_path / "other", "official", sizes=Resize(image_size=42))


def test_a_larger_vocabulary(tmp_path: Path) -> None:
    source = chat(tmp_path / "chat")
    convert(source, tmp_path / "out", "official", sizes=Resize(vocabulary=47))
    before, after = load_model(source), load_model(tmp_path / "out")
    assert isinstance(before, VLM)
    assert isinstance(after, VLM)
    assert after.config.text.vocab_size == 47
    for name in ("llm.embed.weight", "llm.head.weight"):
        assert torch.equal(after.get_parameter(name)[:40], before.get_parameter(name))
    torch.testing.assert_close(after.llm.head.weight[40:], before.llm.head.weight.mean(0).expand(7, -1))
    assert after.llm.embed.weight[40:].std() > 0
    with pytest.raises(InputError, match="has 40 rows and cannot shrink to 39"):
        convert(source, tmp_path / "other", "official", sizes=Resize(vocabulary=39))


def test_another_language_model(tmp_path: Path) -> None:
    source, donor = chat(tmp_path / "chat"), chat(tmp_path / "donor")
    weights = load_file(donor / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, donor / "model.safetensors")
    convert(donor, tmp_path / "llm", "official", part="llm")
    convert(source, tmp_path / "out", "official", language=Language(tmp_path / "llm", 36))
    before, other, after = (load_model(path) for path in (source, donor, tmp_path / "out"))
    for name, value in after.state_dict().items():
        if name in ("llm.embed.weight", "llm.head.weight"):
            assert torch.equal(value[:36], other.state_dict()[name][:36])
            assert torch.equal(value[36:], before.state_dict()[name][36:])
        else:
            expected = (other if name.startswith("llm.") else before).state_dict()[name]
            assert torch.equal(value, expected), name


def test_a_language_model_of_another_shape(tmp_path: Path) -> None:
    source = chat(tmp_path / "chat")
    convert(chat(tmp_path / "llama", "llama"), tmp_path / "llm", "official", part="llm")
    with pytest.raises(ConfigError, match="differ: qkv_bias True and False"):
        convert(source, tmp_path / "out", "official", language=Language(tmp_path / "llm", 36))
    with pytest.raises(ConfigError, match="a language model goes into a chat model"):
        convert(source, tmp_path / "out", "official", language=Language(source, 36))
    convert(source, tmp_path / "own", "official", part="llm")
    with pytest.raises(ConfigError, match="has 40 vocabulary rows; the chat model's own tokens begin at 41"):
        convert(source, tmp_path / "out", "official", language=Language(tmp_path / "own", 41))
