"""config.json of a chat model and `ChatConfig`, both ways: the official, transformers and LLaVA forms.

Knows fields and their defaults. Whether a template exists is for `processing` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from internvl.checkpoints.fields import Fields
from internvl.checkpoints.layouts import Family, family_called
from internvl.checkpoints.normalization import read_normalization
from internvl.checkpoints.text_config import read_text, refuse_quantized, write_text
from internvl.checkpoints.vision_config import read_hf_vision, read_vision, write_hf_vision, write_vision
from internvl.config import (
    ChatConfig,
    ProjectorConfig,
    ShuffleOrder,
    TilingConfig,
    VisionConfig,
)
from internvl.errors import ConfigError

HF_TEMPLATE = "internvl2_5"
LLAVA_TEMPLATE = "vicuna_v1.1"
RECORD = "internvl_chat"
"""Where a transformers config.json written here keeps what that form has no field for."""

VARIANT = "internvl_template"
"""Our name of a template that has variants; `template` then is the name that the published code knows."""


def read_chat(fields: Fields, preprocessor: Fields, template: str | None) -> tuple[ChatConfig, Family]:
    """The official form (`InternVLChatModel`).

    A `template` given here wins over the file's. A missing `ps_version` means "v1", as in the
    released code.

    Raises:
        ConfigError: a field that is missing, mistyped or cannot be built.
    """
    refuse_quantized(fields)
    vision = read_vision(fields.inner("vision_config"))
    text, family = read_text(fields.inner("llm_config"))
    shuffle = fields.text("ps_version", "v1")
    if shuffle not in ("v1", "v2"):
        raise fields.wrong("ps_version", "v1 or v2")
    if not fields.has("template") and template is None:
        raise ConfigError(
            f"{fields.place} names no template and none was given: pass template=..., e.g. 'internvl2_5'"
        )
    config = ChatConfig(
        vision=vision,
        text=text,
        projector=ProjectorConfig(shuffle=cast(ShuffleOrder, shuffle), factor=_factor(fields)),
        tiling=TilingConfig(
            tile_size=fields.count("force_image_size", vision.image_size),
            **_tiling(fields, is_dynamic=False, max_tiles=6),
            normalization=read_normalization(preprocessor),
        ),
        select_layer=_layer(fields, "select_layer", vision),
        template=template or _template(fields),
        system_message=fields.text("system_message") if fields.has("system_message") else None,
    )
    return config, family


def read_hf_chat(fields: Fields, preprocessor: Fields, template: str | None) -> tuple[ChatConfig, Family]:
    """The transformers form (`InternVLForConditionalGeneration`).

    It has no template and no tiling; they come from the preprocessor's file, from what this
    package recorded when it wrote the file, or are those of InternVL 2.5.

    Raises:
        ConfigError: a field that is missing, mistyped or cannot be built.
    """
    refuse_quantized(fields)
    record = fields.inner(RECORD)
    vision = read_hf_vision(fields.inner("vision_config"))
    text, family = read_text(fields.inner("text_config"))
    if fields.text("vision_feature_select_strategy", "default") != "default":
        raise fields.wrong("vision_feature_select_strategy", "default")
    if fields.text("projector_hidden_act", "gelu") != "gelu":
        raise fields.wrong("projector_hidden_act", "gelu")
    tiling = _tiling(record, is_dynamic=True, max_tiles=12)
    if not record.values:
        tiling["min_tiles"] = preprocessor.count("min_patches", 1)
        tiling["max_tiles"] = preprocessor.count("max_patches", 12)
        tiling["thumbnail"] = True
    size = preprocessor.inner("size") if isinstance(preprocessor.values.get("size"), dict) else Fields({})
    config = ChatConfig(
        vision=vision,
        text=text,
        projector=ProjectorConfig(shuffle="v2", factor=_factor(fields)),
        tiling=TilingConfig(
            tile_size=record.count("force_image_size", size.count("height", vision.image_size)),
            **tiling,
            normalization=read_normalization(preprocessor),
        ),
        select_layer=_layer(fields, "vision_feature_layer", vision),
        template=template or _template(record, HF_TEMPLATE),
        system_message=record.text("system_message") if record.has("system_message") else None,
    )
    return config, family


def read_llava(
    fields: Fields, preprocessor: Fields, template: str | None, vision: VisionConfig
) -> tuple[ChatConfig, Family]:
    """LLaVA's form, in which the chat models of InternVL 1.0 are stored; the tower comes separately.

    Raises:
        ConfigError: a projector or feature choice that those models do not have.
    """
    if fields.text("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu":
        raise fields.wrong("mm_projector_type", "mlp2x_gelu")
    if fields.text("mm_vision_select_feature", "patch") != "patch":
        raise fields.wrong("mm_vision_select_feature", "patch")
    llama = {**fields.values, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    text, family = read_text(Fields(llama, fields.place))
    crop = preprocessor.values.get("crop_size")
    size = (
        Fields(crop).count("height")
        if isinstance(crop, dict)
        else preprocessor.count("crop_size", vision.image_size)
    )
    config = ChatConfig(
        vision=vision,
        text=text,
        projector=ProjectorConfig(shuffle=None, norm=False),
        tiling=TilingConfig(
            tile_size=size,
            dynamic=False,
            max_tiles=1,
            thumbnail=False,
            pad_to_square=fields.text("image_aspect_ratio", "pad") == "pad",
            normalization=read_normalization(preprocessor),
        ),
        select_layer=_layer(fields, "mm_vision_select_layer", vision, default=-4),
        template=template or _template(fields, LLAVA_TEMPLATE),
        system_message=fields.text("system_message") if fields.has("system_message") else None,
    )
    return config, family


def write_chat(config: ChatConfig, family: Family, base: Mapping[str, Any]) -> dict[str, Any]:
    """The official form. `base` is the official object the model came from, or {}.

    Raises:
        ConfigError: the form cannot express this model.
    """
    if config.projector.shuffle is None or not config.projector.norm:
        raise ConfigError(
            "the official layout has no model without pixel unshuffle; save with layout='llava'"
        )
    return {
        **_without_manner(base),
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "vision_config": write_vision(config.vision, base.get("vision_config", {})),
        "llm_config": write_text(config.text, family, base.get("llm_config", {}), modern=False),
        "hidden_size": config.text.width,
        "downsample_ratio": 1 / config.projector.factor,
        "ps_version": config.projector.shuffle,
        "select_layer": config.select_layer,
        **_written_manner(config),
        **_written_tiling(config),
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": False,
    }


def write_hf_chat(
    config: ChatConfig, family: Family, base: Mapping[str, Any], image_token_id: int
) -> dict[str, Any]:
    """The transformers form. InternLM2 becomes LLaMA, which computes the same.

    Raises:
        ConfigError: pixel unshuffle "v1" or none, or a family, that this form does not have.
    """
    if config.projector.shuffle != "v2" or not config.projector.norm:
        raise ConfigError(
            f"the hf layout has only pixel unshuffle 'v2', this model uses {config.projector.shuffle!r}"
        )
    in_hf = family_called("llama") if family.name == "internlm2" else family
    text = base.get("text_config", {})
    return {
        **base,
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "vision_config": write_hf_vision(config.vision),
        "text_config": write_text(config.text, in_hf, text, modern=True),
        "downsample_ratio": 1 / config.projector.factor,
        "image_seq_length": config.tokens_per_tile,
        "image_token_id": image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        RECORD: {
            **_written_manner(config),
            **_written_tiling(config),
            "llm_architecture": family.architecture,
        },
    }


def write_llava(config: ChatConfig, family: Family, base: Mapping[str, Any]) -> dict[str, Any]:
    """LLaVA's form, with the tower's configuration added so that one directory is enough.

    Raises:
        ConfigError: a model of another make.
    """
    if config.projector.shuffle is not None or config.projector.norm or family.name != "llama":
        raise ConfigError("the llava layout is for LLaMA models without pixel unshuffle (InternVL-Chat 1.0)")
    base = _without_manner(base)
    return {
        **base,
        **write_text(config.text, family, base, modern=False),
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vision_config": write_vision(config.vision, {}),
        "mm_hidden_size": config.vision.width,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.select_layer,
        "image_aspect_ratio": "pad" if config.tiling.pad_to_square else "square",
        **_written_manner(config),
    }


def _template(fields: Fields, default: str | None = None) -> str:
    """Our own name of the template, unless somebody has changed the published one beside it."""
    name, variant = fields.text("template", default), fields.text(VARIANT, "")
    return variant if _published(variant) == name else name


def _published(template: str) -> str:
    """The name in the published code, which keeps only the latest of several variants."""
    return template.partition("@")[0]


def _written_manner(config: ChatConfig) -> dict[str, str]:
    """How the model is spoken to."""
    written = {"template": _published(config.template)}
    if written["template"] != config.template:
        written[VARIANT] = config.template
    if config.system_message is not None:
        written["system_message"] = config.system_message
    return written


def _without_manner(base: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in base.items() if name not in (VARIANT, "system_message")}


def _written_tiling(config: ChatConfig) -> dict[str, Any]:
    tiling = config.tiling
    return {
        "force_image_size": tiling.tile_size,
        "dynamic_image_size": tiling.dynamic,
        "use_thumbnail": tiling.thumbnail,
        "min_dynamic_patch": tiling.min_tiles,
        "max_dynamic_patch": tiling.max_tiles,
        "pad2square": tiling.pad_to_square,
    }


def _tiling(fields: Fields, *, is_dynamic: bool, max_tiles: int) -> dict[str, Any]:
    return {
        "dynamic": fields.flag("dynamic_image_size", default=is_dynamic),
        "thumbnail": fields.flag("use_thumbnail", default=False),
        "min_tiles": fields.count("min_dynamic_patch", 1),
        "max_tiles": fields.count("max_dynamic_patch", max_tiles),
        "pad_to_square": fields.flag("pad2square", default=False),
    }


def _factor(fields: Fields) -> int:
    ratio = fields.number("downsample_ratio", 0.5)
    factor = round(1 / ratio) if ratio > 0 else 0
    if factor < 1 or abs(factor * ratio - 1) > 1e-6:
        raise fields.wrong("downsample_ratio", "1, 1/2, 1/3 or 1/4")
    return factor


def _layer(fields: Fields, name: str, vision: VisionConfig, default: int = -1) -> int:
    layer, count = fields.whole(name, default), vision.num_layers + 1
    if not -count <= layer < count:
        raise fields.wrong(name, f"one of the {count} hidden states, {-count} to {count - 1}")
    return layer
