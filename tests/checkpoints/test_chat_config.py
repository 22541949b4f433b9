"""Chat configurations: official, transformers and LLaVA forms, both ways."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from internvl.checkpoints.chat_config import (
    read_chat,
    read_hf_chat,
    read_llava,
    write_chat,
    write_hf_chat,
    write_llava,
)
from internvl.checkpoints.fields import Fields
from internvl.config import ChatConfig, ProjectorConfig, TilingConfig
from internvl.errors import ConfigError
from tests.checkpoints.tiny import FAMILIES, LARGE_VIT, chat_config, chat_json, of, text_json

NOTHING = Fields({})


def official(family: str = "qwen2", **changes: Any) -> Fields:
    return Fields({**chat_json(chat_config(family), family), **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_official_form(family: str) -> None:
    assert read_chat(official(family), NOTHING, None) == (chat_config(family), of(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_official_form_reads_back(family: str) -> None:
    tiling = TilingConfig(
        tile_size=28, dynamic=False, min_tiles=2, max_tiles=4, thumbnail=False, pad_to_square=True
    )
    config = chat_config(
        family,
        LARGE_VIT,
        tiling=tiling,
        projector=ProjectorConfig(shuffle="v1"),
        select_layer=-2,
        template="internvl_zh",
        system_message="你好",
    )
    written = write_chat(config, of(family), {})
    assert written["ps_version"] == "v1"
    assert written["architectures"] == ["InternVLChatModel"]
    assert written["hidden_size"] == config.text.width
    assert read_chat(Fields(written), NOTHING, None) == (config, of(family))


def test_fields_without_a_meaning_here_survive() -> None:
    base = {**official().values, "image_fold": None, "their_own": 3}
    written = write_chat(replace(chat_config("qwen2"), select_layer=-2), of("qwen2"), base)
    assert (written["their_own"], written["select_layer"]) == (3, -2)
    assert written["llm_config"] == base["llm_config"]


def test_the_shuffle_order_is_v1_when_nobody_says() -> None:
    fields = {key: value for key, value in official().values.items() if key != "ps_version"}
    assert read_chat(Fields(fields), NOTHING, None)[0].projector.shuffle == "v1"


def test_the_tile_size_is_the_towers_when_nobody_says() -> None:
    assert read_chat(official(force_image_size=None), NOTHING, None)[0].tiling.tile_size == 56
    assert read_chat(official(force_image_size=28), NOTHING, None)[0].tiling.tile_size == 28


def test_defaults_of_the_published_class() -> None:
    kept = ("vision_config", "llm_config", "template", "architectures")
    config, _ = read_chat(Fields({key: official().values[key] for key in kept}), NOTHING, None)
    assert config.tiling == TilingConfig(
        tile_size=56, dynamic=False, min_tiles=1, max_tiles=6, thumbnail=False
    )
    assert (config.select_layer, config.projector.factor) == (-1, 2)


def test_a_template_must_come_from_somewhere() -> None:
    with pytest.raises(ConfigError, match="names no template and none was given"):
        read_chat(official(template=None), NOTHING, None)
    assert read_chat(official(template=None), NOTHING, "Hermes-2")[0].template == "Hermes-2"
    assert read_chat(official(), NOTHING, "Hermes-2")[0].template == "Hermes-2"


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ([0.485, 0.456, 0.406], "imagenet"),
        ([0.48145466, 0.4578275, 0.40821073], "clip"),
        ([0.5, 0.5, 0.5], "siglip"),
        (None, "imagenet"),
    ],
)
def test_normalisation_by_its_mean(mean: list[float] | None, expected: str) -> None:
    config, _ = read_chat(official(), Fields({"image_mean": mean}), None)
    assert config.tiling.normalization == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ps_version": "v3"}, "ps_version is 'v3'; expected v1 or v2"),
        ({"downsample_ratio": 0.4}, "downsample_ratio is 0.4"),
        ({"downsample_ratio": 0}, "downsample_ratio is 0"),
        ({"select_layer": -4}, "select_layer is -4; expected one of the 3 hidden states, -3 to 2"),
        (
            {"llm_config": {"architectures": ["Qwen3MoeForCausalLM"]}},
            "Qwen3MoeForCausalLM.* is not supported",
        ),
        ({"llm_config": None}, "llm_config: language model architecture 'none'"),
        ({"use_thumbnail": "yes"}, "use_thumbnail"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_chat(official(**changes), NOTHING, None)


def test_an_unknown_normalisation_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"image_mean is \[0.1, 0.2, 0.3\]; expected that of imagenet, clip, siglip"
    ):
        read_chat(official(), Fields({"image_mean": [0.1, 0.2, 0.3]}), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_hf_form_reads_back(family: str) -> None:
    config = chat_config(family, template="Hermes-2", system_message="Hi.", select_layer=-2)
    written = write_hf_chat(config, of(family), {}, 39)
    assert (written["image_token_id"], written["image_seq_length"]) == (39, config.tokens_per_tile)
    read, packing = read_hf_chat(Fields(written), NOTHING, None)
    assert read == config
    assert packing == of("llama" if family == "internlm2" else family)


def test_hf_files_of_others_have_the_tiling_of_internvl_2_5() -> None:
    written = write_hf_chat(chat_config("qwen2"), of("qwen2"), {}, 39)
    del written["internvl_chat"]
    config, _ = read_hf_chat(Fields(written), NOTHING, None)
    assert config.template == "internvl2_5"
    assert config.tiling == TilingConfig(tile_size=56, max_tiles=12)
    sizes = {
        "size": {"height": 28, "width": 28},
        "min_patches": 2,
        "max_patches": 9,
        "crop_to_patches": False,
    }
    config, _ = read_hf_chat(Fields(written), Fields(sizes), "phi3-chat")
    assert config.template == "phi3-chat"
    assert config.tiling == TilingConfig(tile_size=28, min_tiles=2, max_tiles=9)


@pytest.mark.parametrize("shuffle", ["v1", None])
def test_the_hf_form_has_one_shuffle_order(shuffle: Any) -> None:
    config = chat_config("qwen2", projector=ProjectorConfig(shuffle=shuffle))
    with pytest.raises(ConfigError, match="only pixel unshuffle 'v2'"):
        write_hf_chat(config, of("qwen2"), {}, 39)


def llava_json(**changes: Any) -> Fields:
    text = {**text_json(chat_config("llama").text, "llama"), "architectures": ["LlavaLlamaForCausalLM"]}
    special = {"model_type": "llava", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    return Fields({**text, **special, "image_aspect_ratio": "pad", **changes})


def test_llava_form() -> None:
    config, family = read_llava(llava_json(), Fields({"crop_size": 28}), None, LARGE_VIT)
    assert family == of("llama")
    assert config.projector == ProjectorConfig(shuffle=None, norm=False)
    assert config.tiling == TilingConfig(
        tile_size=28, dynamic=False, max_tiles=1, thumbnail=False, pad_to_square=True
    )
    assert (config.select_layer, config.template) == (-2, "vicuna_v1.1")
    assert config.tokens_per_tile == 4
    again = read_llava(Fields(write_llava(config, family, {})), Fields({"crop_size": 28}), None, LARGE_VIT)
    assert again == (config, family)


def test_llava_form_of_a_model_that_was_changed() -> None:
    """What the source says of the model no longer holds; what it says of other things does."""
    source = llava_json(eos_token_id=2, pad_token_id=0, use_cache=False, freeze_mm_mlp_adapter=True)
    config, family = read_llava(source, Fields({"crop_size": 28}), None, LARGE_VIT)
    resized = replace(config, text=replace(config.text, vocab_size=48))
    written = write_llava(resized, family, source.values)
    assert {name: written[name] for name in ("vocab_size", "eos_token_id", "pad_token_id")} == {
        "vocab_size": 48,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    assert written["freeze_mm_mlp_adapter"] is True
    assert read_llava(Fields(written), Fields({"crop_size": 28}), None, LARGE_VIT) == (resized, family)


@pytest.mark.parametrize(
    "changes", [{"mm_projector_type": "linear"}, {"mm_vision_select_feature": "cls_patch"}]
)
def test_llava_models_of_another_make(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        read_llava(llava_json(**changes), NOTHING, None, LARGE_VIT)


def test_models_do_not_change_their_make() -> None:
    chat_1_0 = chat_config("llama", projector=ProjectorConfig(shuffle=None, norm=False))
    with pytest.raises(ConfigError, match="layout='llava'"):
        write_chat(chat_1_0, of("llama"), {})
    with pytest.raises(ConfigError, match=r"InternVL-Chat 1\.0"):
        write_llava(chat_config("llama"), of("llama"), {})


def test_reading_and_writing_change_nothing() -> None:
    fields = dict(official("phi3").values)
    before = copy.deepcopy(fields)
    config, family = read_chat(Fields(fields), NOTHING, None)
    write_chat(replace(config, select_layer=-2), family, fields)
    assert fields == before


def written_forms(config: ChatConfig, base: Mapping[str, Any]) -> list[tuple[dict[str, Any], ChatConfig]]:
    """The official and the transformers form, and what is read from them."""
    plain = write_chat(config, of("qwen2"), base)
    modern = write_hf_chat(config, of("qwen2"), {}, 39)
    return [
        (plain, read_chat(Fields(plain), NOTHING, None)[0]),
        (modern["internvl_chat"], read_hf_chat(Fields(modern), NOTHING, None)[0]),
    ]


def test_a_variant_of_a_template_has_the_published_name_beside_ours() -> None:
    """The published code knows "Hermes-2" only, with the system message of today."""
    config = chat_config("qwen2", template="Hermes-2@2024-05")
    for written, again in written_forms(config, {}):
        assert (written["template"], written["internvl_template"]) == ("Hermes-2", "Hermes-2@2024-05")
        assert again == config
    one_zero = chat_config(
        "llama", LARGE_VIT, template="plain@x", projector=ProjectorConfig(shuffle=None, norm=False)
    )
    written = write_llava(one_zero, of("llama"), {})
    assert written["template"] == "plain"
    assert read_llava(Fields(written), NOTHING, None, LARGE_VIT)[0].template == "plain@x"


def test_how_the_source_was_spoken_to_does_not_survive() -> None:
    base = write_chat(chat_config("qwen2", template="Hermes-2@2024-05", system_message="X"), of("qwen2"), {})
    config = chat_config("qwen2", template="Hermes-2")
    for written, again in written_forms(config, base):
        assert "internvl_template" not in written
        assert again == config


def test_a_template_changed_by_hand_counts() -> None:
    written = write_chat(chat_config("qwen2", template="Hermes-2@2024-05"), of("qwen2"), {})
    config, _ = read_chat(Fields({**written, "template": "phi3-chat"}), NOTHING, None)
    assert config.template == "phi3-chat"
