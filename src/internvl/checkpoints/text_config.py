"""The language model's part of config.json, read and written for every family.

Knows the fields of transformers' configurations, old and new, and what the InternVL code makes of
them. Knows nothing of towers or templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvl.checkpoints.fields import MAX_LAYERS, Fields
from internvl.checkpoints.layouts import FAMILIES, Family
from internvl.config import RopeConfig, RopeScaling, TextConfig
from internvl.errors import ConfigError

SCALINGS: Mapping[str, RopeScaling | None] = {
    "default": None,
    "linear": "linear",
    "dynamic": "dynamic",
    "longrope": "longrope",
    "su": "longrope",
}
"""Names of rotary scalings; "su" is what Phi-3 called longrope at first."""

CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout")
"""Fields that do not change the model as built here but belong to it in other hands."""


def read_text(fields: Fields) -> tuple[TextConfig, Family]:
    """A language model's config.json object to ours, and its family.

    A sliding window narrower than the context is met by capping `max_positions` to the window:
    within it, windowed and full attention are the same.

    Raises:
        ConfigError: an architecture, rotary scaling, activation or quantisation that is not
            supported; a missing or mistyped field.
    """
    family = read_family(fields)
    refuse_quantized(fields)
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.wrong("hidden_act", "silu")
    if fields.flag("mlp_bias", default=False):
        raise fields.wrong("mlp_bias", "false: no released model has it")
    width, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if not fields.has("head_dim") and width % num_heads:
        raise fields.wrong("hidden_size", f"a multiple of num_attention_heads = {num_heads}")
    head_dim = fields.count("head_dim", width // num_heads)
    max_positions = fields.count("max_position_embeddings", 32_768)
    rope = _read_rope(fields, max_positions, head_dim)
    window = _window(fields, family, max_positions)
    return TextConfig(
        vocab_size=fields.count("vocab_size"),
        width=width,
        num_layers=fields.count("num_hidden_layers", limit=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=_kv_heads(fields, num_heads),
        head_dim=head_dim,
        mlp_width=fields.count("intermediate_size"),
        norm_eps=fields.number("rms_norm_eps", family.norm_eps),
        rope=rope,
        qkv_bias=_bias(fields, family, family.qkv_bias),
        out_bias=_bias(fields, family, family.out_bias),
        qk_norm=family.qk_norm,
        max_positions=window,
        bos_id=_bos_id(fields, family),
    ), family


def read_family(fields: Fields) -> Family:
    """The family by `architectures`, else by `model_type`.

    Raises:
        ConfigError: listing the supported architectures.
    """
    architecture, model_type = fields.first("architectures"), fields.text("model_type", "")
    for family in FAMILIES:
        body = family.architecture.replace("ForCausalLM", "Model")
        if architecture in (family.architecture, body) or (
            not architecture and model_type == family.model_type
        ):
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    named = architecture or model_type or "none"
    raise ConfigError(
        f"{fields.place}: language model architecture {named!r} is not supported; there are {known}"
    )


def refuse_quantized(fields: Fields) -> None:
    if fields.has("quantization_config"):
        method = fields.inner("quantization_config").text("quant_method", "unnamed")
        raise ConfigError(
            f"{fields.place}: the weights are quantised ({method}); "
            "load the original checkpoint and quantise it here"
        )


def write_text(
    config: TextConfig, family: Family, base: Mapping[str, Any], *, modern: bool
) -> dict[str, Any]:
    """Our language model as a config.json object.

    `base` is the object the model came from (or {}): kept as it is when it says the same, but for a head
    that was tied, else only its token ids and the like are carried over. `modern` writes rotary scaling as
    transformers >= 4.45 names it.

    Raises:
        ConfigError: the family cannot express this model.
    """
    if base and _same(config, family, Fields(base)):
        # A tied head is written beside its embedding, and may have been trained apart from it.
        untied = {"tie_word_embeddings": False} if base.get("tie_word_embeddings") else {}
        return {**base, **untied}
    # Ids are written even where unknown: transformers' defaults may lie beyond a small vocabulary.
    _check_expressible(config, family)
    return {
        **dict.fromkeys(("eos_token_id", "pad_token_id")),
        **{name: base[name] for name in CARRIED if name in base},
        "bos_token_id": config.bos_id,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": False,
        "use_cache": True,
        **_write_bias(config, family),
        **_write_rope(config, family, modern=modern),
    }


def guess_family(config: TextConfig) -> Family:
    """The family whose code computes this model, when nobody recorded where it came from."""
    name = "llama"
    if config.qk_norm:
        name = "qwen3"
    elif config.rope.scaling == "longrope":
        name = "phi3"
    elif config.qkv_bias and not config.out_bias:
        name = "qwen2"
    return next(family for family in FAMILIES if family.name == name)


def _read_rope(fields: Fields, max_positions: int, head_dim: int) -> RopeConfig:
    rope = fields.inner("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    name = rope.text("rope_type", rope.text("type", "default"))
    if name not in SCALINGS:
        raise ConfigError(
            f"{rope.place}: rotary scaling {name!r} is not supported; there are {', '.join(SCALINGS)}"
        )
    for place in (rope, fields):
        if place.number("partial_rotary_factor", 1.0) != 1.0:
            raise place.wrong("partial_rotary_factor", "1.0")
    scaling = SCALINGS[name]
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if scaling != "longrope":
        factor = rope.number("factor") if scaling else 1.0
        return RopeConfig(theta=theta, scaling=scaling, factor=factor)
    original = rope.count(
        "original_max_position_embeddings", fields.count("original_max_position_embeddings", max_positions)
    )
    for key in ("short_factor", "long_factor"):
        if len(rope.numbers(key)) != head_dim // 2:
            raise rope.wrong(key, f"{head_dim // 2} numbers, half the head width")
    return RopeConfig(
        theta=theta,
        scaling=scaling,
        factor=rope.number("factor", max_positions / original),
        original_max_positions=original,
        short_factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
    )


def _window(fields: Fields, family: Family, max_positions: int) -> int:
    """Positions that full attention may use without differing from the sliding window.

    Qwen has a switch for it, off by default; the others have none.
    """
    is_on = fields.flag("use_sliding_window", default=not family.model_type.startswith("qwen"))
    if not fields.has("sliding_window") or not is_on:
        return max_positions
    return min(max_positions, fields.count("sliding_window"))


def _kv_heads(fields: Fields, num_heads: int) -> int:
    num_kv_heads = fields.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {num_heads}")
    return num_kv_heads


def _bos_id(fields: Fields, family: Family) -> int | None:
    """A null says that there is none; a field left out means the default of the family's class."""
    if "bos_token_id" not in fields.values:
        return family.bos_id
    return fields.whole("bos_token_id", 0) if fields.has("bos_token_id") else None


def _bias(fields: Fields, family: Family, rule: bool | str) -> bool:
    return rule if isinstance(rule, bool) else fields.flag(rule, family.bias_default)


def _same(config: TextConfig, family: Family, base: Fields) -> bool:
    try:
        return read_text(base) == (config, family)
    except ConfigError:
        return False


def _check_expressible(config: TextConfig, family: Family) -> None:
    rules = ((config.qkv_bias, family.qkv_bias), (config.out_bias, family.out_bias))
    wrong_bias = any(isinstance(rule, bool) and has != rule for has, rule in rules)
    shared = family.qkv_bias == family.out_bias and config.qkv_bias != config.out_bias
    if wrong_bias or shared or config.qk_norm != family.qk_norm:
        raise ConfigError(
            f"a {family.name} model cannot have qkv_bias={config.qkv_bias}, out_bias={config.out_bias}, "
            f"qk_norm={config.qk_norm}; save it as another family"
        )
    if config.rope.scaling == "longrope" and family.name != "phi3":
        raise ConfigError(f"longrope scaling is written only for phi3, not for {family.name}")


def _write_bias(config: TextConfig, family: Family) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for rule, value in ((family.qkv_bias, config.qkv_bias), (family.out_bias, config.out_bias)):
        if isinstance(rule, str):
            written[rule] = value
    if family.name in ("qwen2", "qwen3"):
        written |= {
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": config.num_layers,
        }
    if config.head_dim * config.num_heads != config.width or family.name in ("qwen3", "internlm3"):
        written["head_dim"] = config.head_dim
    return written


def _write_rope(config: TextConfig, family: Family, *, modern: bool) -> dict[str, Any]:
    rope = config.rope
    written: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if rope.scaling is None:
        return written
    # The code published beside the Phi-3 checkpoints knows longrope only as "su".
    kind = "su" if rope.scaling == "longrope" and not modern else rope.scaling
    scaling: dict[str, Any] = {"rope_type" if modern else "type": kind}
    if rope.scaling != "longrope":
        return written | {"rope_scaling": scaling | {"factor": rope.factor}}
    scaling |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
    return written | {"rope_scaling": scaling, **_write_longrope_lengths(config)}


def _write_longrope_lengths(config: TextConfig) -> dict[str, int]:
    """The factor has no field: it is the whole context over the original one.

    A context used in part is written as a sliding window, as the published files have it.
    """
    rope = config.rope
    original = rope.original_max_positions or config.max_positions
    whole = round(rope.factor * original)
    if whole / original != rope.factor or whole < config.max_positions:
        raise ConfigError(
            f"longrope with factor {rope.factor:g} over {original} positions cannot be written for a context "
            f"of {config.max_positions}: the factor is the whole context over the original one"
        )
    lengths = {"original_max_position_embeddings": original, "max_position_embeddings": whole}
    return lengths if whole == config.max_positions else {**lengths, "sliding_window": config.max_positions}
