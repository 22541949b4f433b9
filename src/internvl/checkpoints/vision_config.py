"""The vision tower's part of config.json, in the official and the transformers form, both ways.

Knows fields and their defaults; knows no weights, except that `infer_vision` reads a tower's
dimensions off the shapes of its tensors where no config.json came with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from internvl.checkpoints.fields import MAX_LAYERS, Fields
from internvl.config import Activation, NormKind, VisionConfig
from internvl.errors import ConfigError, WeightsError

T = TypeVar("T")

NORMS: Mapping[str, NormKind] = {"rms_norm": "rms", "layer_norm": "layer"}
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
HF_QK_NORM_EPS = 1e-6
"""Of the q and k norms in transformers' code, whatever `layer_norm_eps` says; the official code heeds it."""


def read_vision(fields: Fields) -> VisionConfig:
    """The official form. Fields left out are those of the 6B tower at 224 px, as in the released code.

    Raises:
        ConfigError: a field that cannot be built.
    """
    _check_channels(fields)
    return VisionConfig(
        image_size=fields.count("image_size", 224),
        patch_size=fields.count("patch_size", 14),
        width=fields.count("hidden_size", 3200),
        num_layers=fields.count("num_hidden_layers", 48, limit=MAX_LAYERS),
        num_heads=fields.count("num_attention_heads", 25),
        mlp_width=fields.count("intermediate_size", 12_800),
        norm=_chosen(fields, "norm_type", NORMS, "rms_norm"),
        norm_eps=fields.number("layer_norm_eps", 1e-6),
        qkv_bias=fields.flag("qkv_bias", default=False),
        qk_norm=fields.flag("qk_normalization", default=True),
        activation=_chosen(fields, "hidden_act", ACTIVATIONS, "gelu"),
        drop_path=fields.number("drop_path_rate", 0.0),
        layer_scale_init=fields.number("initializer_factor", 0.1),
    )


def read_hf_vision(fields: Fields) -> VisionConfig:
    """The transformers form (`internvl_vision`).

    Raises:
        ConfigError: a field that cannot be built.
    """
    _check_channels(fields)
    if not fields.flag("use_absolute_position_embeddings", default=True):
        raise fields.wrong("use_absolute_position_embeddings", "true")
    if not fields.flag("use_mean_pooling", default=True):
        raise fields.wrong("use_mean_pooling", "true: InternViT has no final norm")
    norm_eps, qk_norm = fields.number("layer_norm_eps", 1e-6), fields.flag("use_qk_norm", default=False)
    if qk_norm and norm_eps != HF_QK_NORM_EPS:
        raise fields.wrong("layer_norm_eps", f"{HF_QK_NORM_EPS:g}, the eps of this form's q and k norms")
    return VisionConfig(
        image_size=fields.count("image_size", 448),
        patch_size=fields.count("patch_size", 14),
        width=fields.count("hidden_size", 1024),
        num_layers=fields.count("num_hidden_layers", 24, limit=MAX_LAYERS),
        num_heads=fields.count("num_attention_heads", 16),
        mlp_width=fields.count("intermediate_size", 4096),
        norm=_chosen(fields, "norm_type", NORMS, "layer_norm"),
        norm_eps=norm_eps,
        qkv_bias=fields.flag("attention_bias", default=False),
        qk_norm=qk_norm,
        activation=_chosen(fields, "hidden_act", ACTIVATIONS, "gelu"),
        layer_scale_init=fields.number("layer_scale_init_value", 0.1),
    )


def write_vision(config: VisionConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """The official form; `base`, the object the tower came from (or {}), is kept when it says the same."""
    if base and _same(config, Fields(base)):
        return dict(base)
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "norm_type": _name_of(config.norm, NORMS),
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "qk_normalization": config.qk_norm,
        "hidden_act": _name_of(config.activation, ACTIVATIONS),
        "drop_path_rate": config.drop_path,
        "initializer_factor": config.layer_scale_init,
        "initializer_range": 0.02,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "use_flash_attn": True,
    }


def write_hf_vision(config: VisionConfig) -> dict[str, Any]:
    """The transformers form.

    Raises:
        ConfigError: q and k norms whose eps this form does not have.
    """
    if config.qk_norm and config.norm_eps != HF_QK_NORM_EPS:
        raise ConfigError(
            f"transformers' code norms q and k with eps {HF_QK_NORM_EPS:g}, this tower with "
            f"{config.norm_eps:g}: save it with layout='official'"
        )
    return {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        "num_channels": 3,
        "image_size": [config.image_size] * 2,
        "patch_size": [config.patch_size] * 2,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "norm_type": _name_of(config.norm, NORMS),
        "layer_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "use_qk_norm": config.qk_norm,
        "hidden_act": _name_of(config.activation, ACTIVATIONS),
        "layer_scale_init_value": config.layer_scale_init,
        "initializer_range": 0.02,
        "hidden_dropout_prob": 0.0,
        "attention_dropout": 0.0,
        "projection_dropout": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
    }


def infer_vision(shapes: Mapping[str, tuple[int, ...]]) -> VisionConfig:
    """A tower's configuration from the shapes of its tensors, under our names without prefix.

    Heads are 128 wide where q and k are normed (the 6B tower), else 64.

    Raises:
        WeightsError: tensors that a tower must have are not there.
    """
    needed = ("embed.position", "embed.patch.weight", "layers.0.mlp.fc1.weight")
    lacking = [name for name in needed if name not in shapes]
    if lacking:
        raise WeightsError(f"these are not the weights of a vision tower: no {', '.join(lacking)}")
    width, patch_size = shapes["embed.patch.weight"][0], shapes["embed.patch.weight"][-1]
    grid = round((shapes["embed.position"][1] - 1) ** 0.5)
    qk_norm = "layers.0.attn.q_norm.weight" in shapes
    return VisionConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        num_layers=sum(name.endswith(".ls1") for name in shapes),
        num_heads=max(1, width // (128 if qk_norm else 64)),
        mlp_width=shapes["layers.0.mlp.fc1.weight"][0],
        norm="layer" if "layers.0.norm1.bias" in shapes else "rms",
        qkv_bias="layers.0.attn.qkv.bias" in shapes,
        qk_norm=qk_norm,
    )


def _check_channels(fields: Fields) -> None:
    if fields.count("num_channels", 3) != 3:
        raise fields.wrong("num_channels", "3")
    width, num_heads = fields.count("hidden_size", 1), fields.count("num_attention_heads", 1)
    if fields.has("hidden_size") and width % num_heads:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size = {width}")


def _chosen(fields: Fields, name: str, table: Mapping[str, T], default: str) -> T:
    chosen = fields.text(name, default)
    if chosen not in table:
        raise fields.wrong(name, " or ".join(table))
    return table[chosen]


def _name_of(value: object, table: Mapping[str, object]) -> str:
    return next(name for name, entry in table.items() if entry == value)


def _same(config: VisionConfig, base: Fields) -> bool:
    try:
        return read_vision(base) == config
    except ConfigError:
        return False
