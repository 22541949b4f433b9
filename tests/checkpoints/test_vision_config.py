"""Vision configurations in both forms, and from shapes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from internvl.checkpoints.fields import Fields
from internvl.checkpoints.load import build
from internvl.checkpoints.vision_config import (
    infer_vision,
    read_hf_vision,
    read_vision,
    write_hf_vision,
    write_vision,
)
from internvl.config import VisionConfig
from internvl.errors import ConfigError, WeightsError
from tests.checkpoints.tiny import LARGE_VIT, SMALL_VIT, vision_json

TOWERS = [SMALL_VIT, LARGE_VIT]


@pytest.mark.parametrize("config", TOWERS)
def test_official_form(config: VisionConfig) -> None:
    assert read_vision(Fields(vision_json(config))) == config
    assert read_vision(Fields(write_vision(config, {}))) == config


@pytest.mark.parametrize("config", TOWERS)
def test_hf_form(config: VisionConfig) -> None:
    written = write_hf_vision(config)
    assert written["image_size"] == [56, 56]
    assert read_hf_vision(Fields(written)) == config
    assert read_hf_vision(Fields({**written, "image_size": 56, "patch_size": 14})) == config


def test_fields_left_out_are_the_6b_tower_at_224() -> None:
    config = read_vision(Fields({}))
    assert (config.width, config.num_layers, config.num_heads, config.mlp_width) == (3200, 48, 25, 12800)
    assert (config.image_size, config.norm, config.qk_norm, config.qkv_bias) == (224, "rms", True, False)


def test_fields_left_out_of_the_hf_form() -> None:
    config = read_hf_vision(Fields({}))
    assert (config.width, config.num_layers, config.image_size) == (1024, 24, 448)
    assert (config.norm, config.qk_norm, config.qkv_bias) == ("layer", False, False)


def test_a_base_that_says_the_same_is_kept() -> None:
    base = {**vision_json(SMALL_VIT), "use_flash_attn": False, "their_own": 1}
    assert write_vision(SMALL_VIT, base) == base
    assert "their_own" not in write_vision(LARGE_VIT, base)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm_type": "batch_norm"}, "norm_type is 'batch_norm'; expected rms_norm or layer_norm"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected gelu"),
        ({"num_channels": 4}, "num_channels is 4; expected 3"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3; expected a divisor of hidden_size = 16"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_what_cannot_be_built_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_vision(Fields({**vision_json(SMALL_VIT), **fields}))


@pytest.mark.parametrize("name", ["use_mean_pooling", "use_absolute_position_embeddings"])
def test_hf_towers_of_another_make(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is False"):
        read_hf_vision(Fields({**write_hf_vision(SMALL_VIT), name: False}))


def test_hf_towers_norm_q_and_k_with_a_fixed_eps() -> None:
    """transformers' code ignores `layer_norm_eps` there, the official code does not."""
    config = replace(LARGE_VIT, norm_eps=1e-5)
    assert read_vision(Fields(write_vision(config, {}))) == config
    with pytest.raises(ConfigError, match="eps 1e-06, this tower with 1e-05: save it with layout='official'"):
        write_hf_vision(config)
    with pytest.raises(ConfigError, match="layer_norm_eps is 1e-05; expected 1e-06"):
        read_hf_vision(Fields({**write_hf_vision(LARGE_VIT), "layer_norm_eps": 1e-5}))
    plain = replace(SMALL_VIT, norm_eps=1e-5)
    assert read_hf_vision(Fields(write_hf_vision(plain))) == plain


@pytest.mark.parametrize(("config", "heads"), [(SMALL_VIT, 64), (LARGE_VIT, 128)])
def test_dimensions_from_shapes(config: VisionConfig, heads: int) -> None:
    shapes = {name: tuple(value.shape) for name, value in build(config).state_dict().items()}
    inferred = infer_vision(shapes)
    assert inferred.num_heads == max(1, config.width // heads)
    for name in (
        "image_size",
        "patch_size",
        "width",
        "num_layers",
        "mlp_width",
        "norm",
        "qkv_bias",
        "qk_norm",
    ):
        assert getattr(inferred, name) == getattr(config, name)


def test_shapes_of_something_else() -> None:
    with pytest.raises(WeightsError, match=r"not the weights of a vision tower: no embed\.position"):
        infer_vision({"norm.weight": (3,)})
