"""config.json of InternVL-C and -G: what the released code leaves out, where sizes hide, and back again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from internvl.checkpoints.configs import Description, describe_json
from internvl.checkpoints.contrastive_config import infer_contrastive, write_contrastive
from internvl.checkpoints.fields import Fields
from internvl.checkpoints.layouts import family_called
from internvl.config import ContrastiveConfig
from internvl.errors import ConfigError, WeightsError
from tests.checkpoints.tiny import LARGE_VIT
from tests.checkpoints.tiny_contrastive import C_ALONE, PAIR, TEXT, config_json


def describe(values: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> Description:
    return describe_json(Fields(values), Fields(preprocessor or {}))


def read(values: dict[str, Any]) -> ContrastiveConfig:
    config = describe(values).config
    assert isinstance(config, ContrastiveConfig)
    return config


def test_the_published_form() -> None:
    description = describe(config_json(use_qllama_lora=16))
    assert description.config == PAIR
    assert (description.kind, description.dtype, description.lora_ranks) == (
        "contrastive",
        "float32",
        (0, 16),
    )
    assert description.family is family_called("llama")
    assert description.heads == (4, 4)


def test_what_is_left_out_is_as_in_the_released_code() -> None:
    values = config_json(replace(PAIR, vision=replace(LARGE_VIT, width=32)))
    for name in ("clip_embed_dim", "attn_pool_num_heads", "num_query_token", "force_image_size"):
        del values[name]
    for name in ("num_query_token", "cross_attention_frequency", "architectures", "model_type"):
        del values["qllama_config"][name]
    values["qllama_config"]["hidden_size"] = 32
    found = read(values)
    assert (found.embed_dim, found.pool_heads, found.num_queries, found.cross_every) == (768, 16, 96, 2)
    assert (found.image_size, found.text.bos_id, found.normalization) == (56, 1, "imagenet")


def test_the_frequency_at_the_top_wins() -> None:
    assert read(config_json(cross_attention_frequency=2)).cross_every == 2


def test_the_table_has_the_size_that_is_forced() -> None:
    """Fine-tuned checkpoints keep the tower's old size beside a table of the new one."""
    found = read(config_json(force_image_size=84))
    assert (found.image_size, found.vision.image_size) == (84, 84)


def test_normalisation_is_the_preprocessors() -> None:
    config = describe(config_json(), {"image_mean": [0.48145466, 0.4578275, 0.40821073]}).config
    assert isinstance(config, ContrastiveConfig)
    assert config.normalization == "clip"


def test_no_queries_is_internvl_c_alone() -> None:
    found = read(config_json(C_ALONE))
    assert found == C_ALONE
    assert not found.is_generative


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_query_token": -1}, "num_query_token is -1; expected a whole number from 0"),
        ({"num_query_token": 1 << 40}, "num_query_token is 1099511627776; expected"),
        ({"num_query_token": "96"}, "num_query_token is '96'; expected a whole number"),
        ({"cross_attention_frequency": 0}, "cross_attention_frequency is 0; expected"),
        (
            {"attn_pool_num_heads": 5},
            "attn_pool_num_heads is 5; expected a divisor of the width 16 that is pooled",
        ),
        (
            {"attn_pool_num_heads": 16},
            "attn_pool_num_heads is 16; expected a divisor of the width 24 that is pooled",
        ),
        ({"clip_embed_dim": -3}, "clip_embed_dim is -3; expected"),
        ({"vision_config": []}, r"vision_config is \[\]; expected an object"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"qllama_config": {}}, "qllama_config: hidden_size is missing"),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(config_json(**changes))


@pytest.mark.parametrize("config", [PAIR, C_ALONE, replace(PAIR, text=replace(TEXT, num_kv_heads=2))])
def test_written_and_read_again(config: ContrastiveConfig) -> None:
    written = write_contrastive(config, family_called("llama"), {})
    assert read(written) == config
    assert (written["architectures"], written["model_type"]) == (["InternVLModel"], "internvl")
    assert written["qllama_config"]["num_query_token"] == config.num_queries
    assert written["qllama_config"]["cross_attention_frequency"] == config.cross_every


def test_fields_without_a_meaning_here_are_carried() -> None:
    base = config_json(max_txt_len=32)
    written = write_contrastive(PAIR, family_called("llama"), base)
    assert (written["max_txt_len"], written["label_smoothing"]) == (32, 0.1)
    assert written["vision_config"] == base["vision_config"]
    assert written["qllama_config"] == base["qllama_config"]


def test_a_table_that_was_resized_is_written_at_its_size() -> None:
    config = read(config_json(force_image_size=84))
    written = write_contrastive(config, family_called("llama"), config_json(force_image_size=84))
    assert (written["vision_config"]["image_size"], written["force_image_size"]) == (84, None)
    assert read(written) == config


def test_pictures_of_another_size_than_the_table_are_refused() -> None:
    with pytest.raises(ConfigError, match="pictures of 84 px on a position table for 56 px"):
        write_contrastive(replace(PAIR, image_size=84), family_called("llama"), {})


def test_shapes_say_what_internvl_c_is() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "qllama.embed.weight": (49_954, 256),
        "qllama.layers.0.mlp.gate_up.weight": (1376, 256),
        "text_projection": (256, 768),
        "vit.embed.position": (1, 257, 384),
        "vit.embed.patch.weight": (384, 3, 14, 14),
        "vit.layers.0.mlp.fc1.weight": (1536, 384),
        "vit.layers.0.attn.q_norm.weight": (384,),
    }
    shapes |= {f"vit.layers.{layer}.ls1": (384,) for layer in range(4)}
    shapes |= {f"qllama.layers.{layer}.mlp.down.weight": (256, 688) for layer in range(3)}
    found = infer_contrastive(shapes)
    assert (found.image_size, found.vision.num_layers, found.vision.num_heads) == (224, 4, 3)
    text = found.text
    assert (text.vocab_size, text.num_layers, text.num_heads, text.head_dim) == (49_954, 3, 2, 128)
    assert (text.mlp_width, text.max_positions, text.norm_eps) == (688, 2048, 1e-6)
    assert (found.embed_dim, found.pool_heads, found.num_queries) == (768, 16, 0)
    assert infer_contrastive(shapes, TEXT).text is TEXT


def test_shapes_of_something_else() -> None:
    with pytest.raises(WeightsError, match=r"not the weights of InternVL-C: no qllama\.embed\.weight"):
        infer_contrastive({"text_projection": (2, 2)})
