"""Saved directories load again, whole, in every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from internvl.checkpoints.configs import describe_normalization
from internvl.checkpoints.load import build, load_model
from internvl.checkpoints.write import save_model
from internvl.config import ChatConfig, ProjectorConfig, TilingConfig
from internvl.errors import CheckpointError, ConfigError, UnknownNameError, WeightsError
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import (
    FAMILIES,
    LARGE_VIT,
    SMALL_VIT,
    chat_config,
    chat_json,
    equal,
    official_state,
    write_json,
    write_official,
)


def random_model(config: Any) -> Any:
    model = build(config).to_empty(device="cpu")
    with torch.no_grad():
        for value in model.parameters():
            value.normal_()
    return model


def same(left: nn.Module, right: nn.Module) -> bool:
    return equal(left.state_dict(), right.state_dict())


@pytest.mark.parametrize("layout", ["official", "hf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_chat_models_reload(tmp_path: Path, family: str, layout: str) -> None:
    config = chat_config(family, LARGE_VIT, system_message="Hi.", template="Hermes-2")
    model = random_model(config)
    save_model(model, config, tmp_path / "saved", layout, family=family, image_token_id=39)
    again = load_model(tmp_path / "saved")
    assert again.config == config
    assert same(model, again)


@pytest.mark.parametrize("layout", ["official", "hf"])
@pytest.mark.parametrize("config", [SMALL_VIT, LARGE_VIT])
def test_towers_reload(tmp_path: Path, config: Any, layout: str) -> None:
    tower = random_model(config)
    save_model(tower, config, tmp_path / "saved", layout)
    again = load_model(tmp_path / "saved")
    assert isinstance(again, VisionTower)
    assert again.config == config
    assert same(tower, again)


def test_the_normalisation_of_a_tower_is_saved(tmp_path: Path) -> None:
    tower = random_model(SMALL_VIT)
    save_model(tower, SMALL_VIT, tmp_path / "plain")
    save_model(tower, SMALL_VIT, tmp_path / "clip", normalization="clip")
    save_model(tower, SMALL_VIT, tmp_path / "again", extra_files_from=tmp_path / "clip")
    names = ("plain", "clip", "again")
    assert [describe_normalization(tmp_path / name) for name in names] == ["imagenet", "clip", "clip"]


def test_chat_1_0_reloads_in_its_own_layout(tmp_path: Path) -> None:
    tiling = TilingConfig(tile_size=28, dynamic=False, max_tiles=1, thumbnail=False, pad_to_square=True)
    config = chat_config(
        "llama",
        LARGE_VIT,
        projector=ProjectorConfig(shuffle=None, norm=False),
        tiling=tiling,
        select_layer=-2,
        template="vicuna_v1.1",
    )
    model = random_model(config)
    save_model(model, config, tmp_path / "saved", "llava")
    again = load_model(tmp_path / "saved")
    assert again.config == config
    assert same(model, again)


def test_half_precision_and_shards(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    model = random_model(config).bfloat16()
    save_model(model, config, tmp_path / "saved", max_shard_bytes=20_000)
    assert len(list((tmp_path / "saved").glob("model-*-of-*.safetensors"))) > 2
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert same(model, load_model(tmp_path / "saved", dtype="auto"))


def test_the_family_of_the_source_is_kept(tmp_path: Path) -> None:
    config = chat_config("internlm2")
    state = write_official(tmp_path / "source", config, "internlm2")
    model = load_model(tmp_path / "source")
    save_model(model, config, tmp_path / "saved", extra_files_from=tmp_path / "source")
    assert equal(load_file(tmp_path / "saved" / "model.safetensors"), state)
    save_model(model, config, tmp_path / "llama", extra_files_from=tmp_path / "source", family="llama")
    assert "language_model.lm_head.weight" in load_file(tmp_path / "llama" / "model.safetensors")
    assert same(model, load_model(tmp_path / "llama"))


def test_saving_over_the_directory_a_model_came_from(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    write_official(tmp_path / "model", config, "qwen2")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    model = load_model(tmp_path / "model")
    assert isinstance(model, VLM)
    with torch.no_grad():
        model.llm.head.weight.fill_(3)
    with pytest.raises(CheckpointError, match="is not empty"):
        save_model(model, config, tmp_path / "model", extra_files_from=tmp_path / "model")
    save_model(model, config, tmp_path / "model", extra_files_from=tmp_path / "model", overwrite=True)
    assert same(model, load_model(tmp_path / "model"))
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


def test_what_a_model_changed_is_written(tmp_path: Path) -> None:
    """A new configuration wins over the source's, and says so in config.json."""
    config = chat_config("qwen2")
    write_official(tmp_path / "source", config, "qwen2")
    changed = replace(
        config,
        tiling=replace(config.tiling, max_tiles=3),
        template="Hermes-2",
        system_message="X",
        select_layer=-2,
    )
    save_model(
        load_model(tmp_path / "source"), changed, tmp_path / "saved", extra_files_from=tmp_path / "source"
    )
    assert load_model(tmp_path / "saved").config == changed


def test_a_larger_vocabulary_is_written(tmp_path: Path) -> None:
    config = chat_config("internlm2")
    write_official(tmp_path / "source", config, "internlm2")
    larger = replace(config, text=replace(config.text, vocab_size=50))
    model = random_model(larger)
    save_model(model, larger, tmp_path / "saved", extra_files_from=tmp_path / "source")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())["llm_config"]
    assert (written["vocab_size"], written["eos_token_id"]) == (50, 2)
    assert same(model, load_model(tmp_path / "saved"))


def test_unknown_layouts_and_families(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    model = random_model(config)
    with pytest.raises(UnknownNameError, match="layout 'onnx'; there are official, hf, llava"):
        save_model(model, config, tmp_path / "saved", "onnx")
    with pytest.raises(UnknownNameError, match="family 'gpt2'"):
        save_model(model, config, tmp_path / "saved", family="gpt2")
    with pytest.raises(ConfigError, match=r"a llama model cannot have .*qk_norm=True; save it as another"):
        save_model(
            random_model(chat_config("qwen3")), chat_config("qwen3"), tmp_path / "saved", family="llama"
        )
    assert not (tmp_path / "saved").exists()


def test_a_model_the_layout_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    config = chat_config("llama", projector=ProjectorConfig(shuffle="v1"))
    with pytest.raises(ConfigError, match="only pixel unshuffle 'v2'"):
        save_model(random_model(config), config, tmp_path / "saved", "hf", image_token_id=39)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("llava", {}, r"the llava layout is for LLaMA models without pixel unshuffle"),
        ("official", {"projector": ProjectorConfig(shuffle=None, norm=False)}, "save with layout='llava'"),
    ],
)
def test_a_model_of_another_make_is_told_so(
    tmp_path: Path, layout: str, changes: dict[str, Any], message: str
) -> None:
    """And not that a tensor has no name there."""
    config = chat_config("llama", **changes)
    with pytest.raises(ConfigError, match=message):
        save_model(random_model(config), config, tmp_path / "saved", layout)


def test_weights_that_are_not_those_of_the_configuration(tmp_path: Path) -> None:
    config = chat_config("llama")
    with pytest.raises(WeightsError, match=r"no rule for .* llm\.layers\.0\.attn\.q_norm\.weight"):
        save_model(random_model(chat_config("qwen3")), config, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    with pytest.raises(CheckpointError, match=r"there is no directory .*/gone, .* pass tokenizer_files"):
        save_model(random_model(config), config, tmp_path / "saved", extra_files_from=tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["official", "hf"])
def test_tokenizer_files_at_hand_serve_where_the_source_is_gone(tmp_path: Path, layout: str) -> None:
    config = chat_config("qwen2")
    model = random_model(config)
    files = {"vocab.json": b"{}", "added_tokens.json": b'{"<IMG_CONTEXT>": 37}'}
    for name, source in (("a", None), ("b", tmp_path / "gone")):
        saved = tmp_path / name
        save_model(model, config, saved, layout, extra_files_from=source, tokenizer_files=files)
        assert {file: (saved / file).read_bytes() for file in files} == files
        assert json.loads((saved / "config.json").read_text()).get("image_token_id") in (None, 37)
        assert same(model, load_model(saved))


def test_a_source_that_is_there_wins_over_tokenizer_files(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "vocab.json").write_text("source")
    config = chat_config("qwen2")
    save_model(
        random_model(config),
        config,
        tmp_path / "saved",
        extra_files_from=tmp_path / "source",
        tokenizer_files={"vocab.json": b"memory"},
    )
    assert (tmp_path / "saved" / "vocab.json").read_text() == "source"


def test_a_source_that_says_nothing_useful(tmp_path: Path) -> None:
    """A directory with only tokenizer files is a fine source; the family is then implied."""
    (tmp_path / "source").mkdir()
    write_json({"model_type": "bert"}, tmp_path / "source" / "config.json")
    config = chat_config("qwen2")
    save_model(random_model(config), config, tmp_path / "saved", extra_files_from=tmp_path / "source")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written["llm_config"]["architectures"] == ["Qwen2ForCausalLM"]


def test_official_names_are_the_published_ones(tmp_path: Path) -> None:
    config: ChatConfig = chat_config("internlm2", LARGE_VIT)
    save_model(random_model(config), config, tmp_path / "saved", family="internlm2")
    found = load_file(tmp_path / "saved" / "model.safetensors")
    assert found.keys() == official_state(config, "internlm2").keys()
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    for name, value in chat_json(config, "internlm2").items():
        assert name in written
        if not isinstance(value, dict):
            assert written[name] == value
