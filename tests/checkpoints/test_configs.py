"""What a directory is, by its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internvl.checkpoints.chat_config import write_hf_chat
from internvl.checkpoints.configs import describe, describe_normalization, describe_vision
from internvl.checkpoints.rules import Heads
from internvl.checkpoints.vision_config import write_hf_vision
from internvl.errors import CheckpointError, ConfigError
from tests.checkpoints.tiny import (
    LARGE_VIT,
    SMALL_VIT,
    chat_config,
    chat_json,
    of,
    text_config,
    text_json,
    vision_json,
    write_json,
)


def directory(tmp_path: Path, values: object, preprocessor: object = None) -> Path:
    write_json(values, tmp_path / "config.json")
    if preprocessor is not None:
        write_json(preprocessor, tmp_path / "preprocessor_config.json")
    return tmp_path


def test_a_chat_model(tmp_path: Path) -> None:
    values = {**chat_json(chat_config("internlm2"), "internlm2"), "use_llm_lora": 8}
    found = describe(directory(tmp_path, values))
    assert (found.kind, found.config, found.family) == ("chat", chat_config("internlm2"), of("internlm2"))
    assert found.heads == Heads(6, 2)
    assert found.lora_ranks == (0, 8)
    assert found.dtype == "float32"
    assert not found.is_head_tied


def test_an_hf_chat_model_remembers_where_it_came_from(tmp_path: Path) -> None:
    found = describe(directory(tmp_path, write_hf_chat(chat_config("internlm2"), of("internlm2"), {}, 39)))
    assert (found.family, found.origin) == (of("llama"), of("internlm2"))
    assert [layout.name for layout in found.layouts] == ["hf", "hf-unprefixed"]


def test_towers(tmp_path: Path) -> None:
    found = describe(directory(tmp_path, vision_json(LARGE_VIT)))
    assert (found.kind, found.config) == ("vision", LARGE_VIT)
    found = describe(directory(tmp_path, write_hf_vision(SMALL_VIT)))
    assert (found.kind, found.config) == ("vision", SMALL_VIT)
    assert found.layouts[0].name == "hf-vision"


def test_a_language_model(tmp_path: Path) -> None:
    values = {**text_json(text_config("qwen2"), "qwen2"), "tie_word_embeddings": True}
    found = describe(directory(tmp_path, values))
    assert (found.kind, found.config, found.is_head_tied) == ("text", text_config("qwen2"), True)


def test_any_file_of_the_directory_will_do(tmp_path: Path) -> None:
    directory(tmp_path, vision_json(SMALL_VIT))
    assert describe(tmp_path / "config.json").config == SMALL_VIT


def test_the_preprocessor_is_read_too(tmp_path: Path) -> None:
    values = chat_json(chat_config("qwen2"), "qwen2")
    found = describe(directory(tmp_path, values, {"image_mean": [0.5, 0.5, 0.5]}))
    assert found.config.tiling.normalization == "siglip"  # type: ignore[union-attr]


def test_the_tower_inside_a_chat_model(tmp_path: Path) -> None:
    assert describe_vision(directory(tmp_path, chat_json(chat_config("qwen2"), "qwen2"))) == SMALL_VIT
    values = write_hf_chat(chat_config("qwen2", LARGE_VIT), of("qwen2"), {}, 39)
    assert describe_vision(directory(tmp_path, values)) == LARGE_VIT
    with pytest.raises(ConfigError, match=r"describes no vision tower .*model_type 'qwen2'"):
        describe_vision(directory(tmp_path, text_json(text_config("qwen2"), "qwen2")))


def test_a_llava_model_needs_its_tower(tmp_path: Path) -> None:
    values = {
        **text_json(text_config("llama"), "llama"),
        "model_type": "llava",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "OpenGVLab/InternViT-6B-224px",
        "mm_vision_select_layer": -2,
    }
    directory(tmp_path, values)
    with pytest.raises(ConfigError, match=r"InternViT-6B-224px\): pass vision_path"):
        describe(tmp_path)
    assert describe(tmp_path, vision=LARGE_VIT).config.vision == LARGE_VIT  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "describes nothing, which is not supported here; there are InternVLChatModel"),
        ({"model_type": "bert"}, "describes bert"),
        (
            {"architectures": ["InternVLClipModel"], "model_type": "internvl_clip"},
            "describes InternVLClipModel",
        ),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(directory(tmp_path, values))


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json in"):
        describe(tmp_path)
    with pytest.raises(ConfigError, match=r"no config\.json in"):
        describe_vision(tmp_path)


def test_a_broken_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        describe(tmp_path)


def test_the_normalisation_of_a_tower(tmp_path: Path) -> None:
    assert describe_normalization(tmp_path) == "imagenet"
    write_json({"image_mean": [0.5, 0.5, 0.5]}, tmp_path / "preprocessor_config.json")
    (tmp_path / "model.safetensors").touch()
    assert describe_normalization(tmp_path) == "siglip"
    assert describe_normalization(tmp_path / "model.safetensors") == "siglip"
