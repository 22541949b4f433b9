"""Language-model configurations of every family, old and new spellings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from internvl.checkpoints.fields import Fields
from internvl.checkpoints.layouts import FAMILIES as ALL_FAMILIES
from internvl.checkpoints.text_config import guess_family, read_text, write_text
from internvl.config import RopeConfig
from internvl.errors import ConfigError
from tests.checkpoints.tiny import FAMILIES, of, text_config, text_json


def changed(family: str, **changes: Any) -> Fields:
    return Fields({**text_json(text_config(family), family), **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_published_forms(family: str) -> None:
    assert read_text(changed(family)) == (text_config(family), of(family))


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_written_forms_read_back(family: str, *, modern: bool) -> None:
    config = text_config(family)
    written = write_text(config, of(family), {}, modern=modern)
    assert read_text(Fields(written)) == (config, of(family))
    assert written["tie_word_embeddings"] is False


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_that_says_the_same_is_kept_word_for_word(family: str) -> None:
    base = {**text_json(text_config(family), family), "use_cache": False, "their_own": [1]}
    assert write_text(text_config(family), of(family), base, modern=False) == base


def test_a_head_that_was_tied_is_written_as_one_of_its_own() -> None:
    base = {**text_json(text_config("qwen2"), "qwen2"), "tie_word_embeddings": True, "their_own": [1]}
    written = write_text(text_config("qwen2"), of("qwen2"), base, modern=False)
    assert written == {**base, "tie_word_embeddings": False}


def test_a_base_that_says_otherwise_gives_only_its_ids() -> None:
    base = {**text_json(text_config("qwen2"), "qwen2"), "their_own": [1]}
    written = write_text(replace(text_config("qwen2"), vocab_size=50), of("qwen2"), base, modern=False)
    assert (written["vocab_size"], written["bos_token_id"], written["eos_token_id"]) == (50, 1, 2)
    assert "their_own" not in written


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            RopeConfig(theta=1e6, scaling="dynamic", factor=2.0),
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 4}},
            RopeConfig(theta=1e6, scaling="linear", factor=4.0),
        ),
        ({"rope_scaling": {"rope_type": "default"}}, RopeConfig(theta=1e6)),
        ({"rope_scaling": None}, RopeConfig(theta=1e6)),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            RopeConfig(theta=5e5),
        ),
        (
            {
                "rope_theta": None,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
            },
            RopeConfig(theta=1e4, scaling="dynamic", factor=3.0),
        ),
    ],
)
def test_rotary_scaling_in_every_spelling(fields: dict[str, Any], expected: RopeConfig) -> None:
    assert read_text(changed("qwen2", **fields))[0].rope == expected


def test_longrope_of_transformers_5() -> None:
    rope = text_config("phi3").rope
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0, 1.1],
        "long_factor": [2.0, 3.0],
        "original_max_position_embeddings": 64,
    }
    fields = changed("phi3", rope_scaling=None, rope_theta=None, rope_parameters=parameters)
    assert read_text(fields)[0].rope == rope


@pytest.mark.parametrize("name", ["yarn", "llama3", "ntk"])
def test_other_scalings_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"rope_scaling: rotary scaling '{name}' is not supported"):
        read_text(changed("llama", rope_scaling={"type": name, "factor": 2.0}))


def test_longrope_needs_a_factor_for_every_pair() -> None:
    scaling = {"type": "su", "short_factor": [1.0], "long_factor": [1.0, 1.0]}
    with pytest.raises(ConfigError, match=r"short_factor is .* expected 2 numbers"):
        read_text(changed("phi3", rope_scaling=scaling))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sliding_window": 100}, 256),
        ({"sliding_window": 100, "use_sliding_window": True}, 100),
        ({"sliding_window": 100, "use_sliding_window": False}, 256),
        ({"sliding_window": 5000}, 256),
        ({"sliding_window": None}, 256),
    ],
)
def test_a_sliding_window_caps_the_context(fields: dict[str, Any], expected: int) -> None:
    assert read_text(changed("qwen2", **fields))[0].max_positions == expected


def test_a_window_without_a_switch_counts_and_leaves_longrope_alone() -> None:
    whole, windowed = (read_text(changed("phi3", sliding_window=size))[0] for size in (None, 100))
    assert (whole.max_positions, windowed.max_positions) == (256, 100)
    assert windowed.rope == whole.rope


@pytest.mark.parametrize("is_modern", [False, True])
def test_a_windowed_longrope_keeps_its_factor(is_modern: bool) -> None:
    """Phi-3 as published: 131072 positions, 4096 of them trained first, a window of 2047."""
    lengths = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096}
    fields = changed("phi3", **lengths, sliding_window=2047)
    config, family = read_text(fields)
    assert (config.max_positions, config.rope.factor) == (2047, 32)
    # Another vocabulary, so that the file is written anew.
    larger = replace(config, vocab_size=50)
    written = write_text(larger, family, fields.values, modern=is_modern)
    assert {name: written[name] for name in lengths} == lengths
    assert written["sliding_window"] == 2047
    assert read_text(Fields(written)) == (larger, family)


@pytest.mark.parametrize("changes", [{"factor": 1.0}, {"factor": 4.001}, {"original_max_positions": 63}])
def test_a_longrope_that_is_not_what_its_lengths_say(changes: dict[str, Any]) -> None:
    config = text_config("phi3")
    config = replace(config, rope=replace(config.rope, **changes))
    with pytest.raises(ConfigError, match="longrope with factor"):
        write_text(config, of("phi3"), {}, modern=False)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        (
            "llama",
            {"architectures": ["GPT2LMHeadModel"]},
            "'GPT2LMHeadModel' is not supported; there are Llama",
        ),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'; expected silu"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"vocab_size": "many"}, "vocab_size is 'many'"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected .* 1 to 1000"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads is 4; expected a divisor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ("llama", {"hidden_size": 25}, "hidden_size is 25"),
    ],
)
def test_what_cannot_be_built_is_named(family: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_text(changed(family, **fields))


def test_internlm2_has_biases_unless_it_says_otherwise() -> None:
    fields = {key: value for key, value in changed("internlm2").values.items() if key != "bias"}
    config, _ = read_text(Fields(fields))
    assert config.qkv_bias
    assert config.out_bias


def test_the_first_id_of_the_family_unless_the_file_says_otherwise() -> None:
    fields = {key: value for key, value in changed("llama").values.items() if key != "bos_token_id"}
    assert read_text(Fields(fields))[0].bos_id == 1
    assert read_text(changed("llama", bos_token_id=None))[0].bos_id is None
    assert read_text(changed("llama", bos_token_id=7))[0].bos_id == 7


def test_reading_changes_nothing() -> None:
    fields = text_json(text_config("phi3"), "phi3")
    before = repr(fields)
    read_text(Fields(fields))
    write_text(text_config("phi3"), of("phi3"), fields, modern=True)
    assert repr(fields) == before


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_the_family_implied_by_a_configuration(family: str) -> None:
    assert guess_family(text_config(family)) == of(family)


@pytest.mark.parametrize(
    ("source", "target"), [("qwen2", "phi3"), ("qwen3", "llama"), ("phi3", "llama"), ("qwen2", "llama")]
)
def test_a_family_that_cannot_hold_the_model(source: str, target: str) -> None:
    with pytest.raises(ConfigError, match=target):
        write_text(text_config(source), of(target), {}, modern=False)


def test_architectures_are_distinct() -> None:
    assert len({family.architecture for family in ALL_FAMILIES}) == len(ALL_FAMILIES)
