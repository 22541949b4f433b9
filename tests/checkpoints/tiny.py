"""Tiny configurations and random weights, named by hand as the published files name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from internvl.checkpoints.layouts import Family, family_called
from internvl.config import (
    ChatConfig,
    ProjectorConfig,
    RopeConfig,
    TextConfig,
    TilingConfig,
    VisionConfig,
)

State = dict[str, Tensor]

FAMILIES = ("llama", "internlm2", "qwen2", "qwen3", "phi3")

SMALL_VIT = VisionConfig(
    image_size=56, width=16, num_layers=2, num_heads=2, mlp_width=24, layer_scale_init=0.3
)
LARGE_VIT = VisionConfig(
    image_size=56,
    width=16,
    num_layers=2,
    num_heads=2,
    mlp_width=24,
    norm="rms",
    qkv_bias=False,
    qk_norm=True,
)
"""Shaped like the 6B tower: RMS norms, normed q and k, no qkv bias."""


def text_config(family: str) -> TextConfig:
    ropes = {
        "internlm2": RopeConfig(theta=1e6, scaling="dynamic", factor=2.0),
        "phi3": RopeConfig(
            scaling="longrope",
            factor=4.0,
            original_max_positions=64,
            short_factors=(1.0, 1.1),
            long_factors=(2.0, 3.0),
        ),
        "llama": RopeConfig(theta=5e5, scaling="linear", factor=2.0),
    }
    return TextConfig(
        vocab_size=40,
        width=24,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=6 if family == "qwen3" else 4,
        mlp_width=20,
        norm_eps=1e-5,
        rope=ropes.get(family, RopeConfig(theta=1e6)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        max_positions=256,
        bos_id=1,
    )


def chat_config(family: str, vision: VisionConfig = SMALL_VIT, **changes: Any) -> ChatConfig:
    values: dict[str, Any] = {
        "vision": vision,
        "projector": ProjectorConfig(),
        "text": text_config(family),
        "tiling": TilingConfig(tile_size=56, max_tiles=6),
        "template": "internvl2_5",
    }
    return ChatConfig(**{**values, **changes})


def of(family: str) -> Family:
    return family_called(family)


def random_state(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(len(shapes))
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def vit_shapes(vit: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Specification of the released towers: names as in `modeling_intern_vit.py`."""
    c, f = vit.width, vit.mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, c),
        "embeddings.patch_embedding.weight": (c, 3, vit.patch_size, vit.patch_size),
        "embeddings.patch_embedding.bias": (c,),
        "embeddings.position_embedding": (1, 1 + vit.grid**2, c),
    }
    for i in range(vit.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "norm1.weight": (c,),
            "norm2.weight": (c,),
            "attn.qkv.weight": (3 * c, c),
            "attn.proj.weight": (c, c),
            "attn.proj.bias": (c,),
            "ls1": (c,),
            "ls2": (c,),
            "mlp.fc1.weight": (f, c),
            "mlp.fc1.bias": (f,),
            "mlp.fc2.weight": (c, f),
            "mlp.fc2.bias": (c,),
        }
        if vit.norm == "layer":
            layer |= {"norm1.bias": (c,), "norm2.bias": (c,)}
        if vit.qkv_bias:
            layer |= {"attn.qkv.bias": (3 * c,)}
        if vit.qk_norm:
            layer |= {"attn.q_norm.weight": (c,), "attn.k_norm.weight": (c,)}
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def projector_shapes(config: ChatConfig) -> dict[str, tuple[int, ...]]:
    wide, d = config.projector.cells * config.vision.width, config.text.width
    return {
        "mlp1.0.weight": (wide,),
        "mlp1.0.bias": (wide,),
        "mlp1.1.weight": (d, wide),
        "mlp1.1.bias": (d,),
        "mlp1.3.weight": (d, d),
        "mlp1.3.bias": (d,),
    }


def internlm2_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    d, f = text.width, text.mlp_width
    q, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight": (text.vocab_size, d),
        "model.norm.weight": (d,),
        "output.weight": (text.vocab_size, d),
    }
    for i in range(text.num_layers):
        layer = {
            "attention_norm.weight": (d,),
            "ffn_norm.weight": (d,),
            "attention.wqkv.weight": (q + 2 * kv, d),
            "attention.wo.weight": (d, q),
            "feed_forward.w1.weight": (f, d),
            "feed_forward.w2.weight": (d, f),
            "feed_forward.w3.weight": (f, d),
        }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def llama_shapes(text: TextConfig, family: str) -> dict[str, tuple[int, ...]]:
    d, f = text.width, text.mlp_width
    q, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (text.vocab_size, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (text.vocab_size, d),
    }
    for i in range(text.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (d,),
            "post_attention_layernorm.weight": (d,),
            "self_attn.o_proj.weight": (d, q),
            "mlp.down_proj.weight": (d, f),
        }
        if family == "phi3":
            layer |= {"self_attn.qkv_proj.weight": (q + 2 * kv, d), "mlp.gate_up_proj.weight": (2 * f, d)}
        else:
            rows = {"q": q, "k": kv, "v": kv}
            layer |= {f"self_attn.{part}_proj.weight": (size, d) for part, size in rows.items()}
            layer |= {"mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d)}
            if text.qkv_bias:
                layer |= {f"self_attn.{part}_proj.bias": (size,) for part, size in rows.items()}
        if text.qk_norm:
            layer |= {f"self_attn.{part}_norm.weight": (text.head_dim,) for part in "qk"}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def text_shapes(text: TextConfig, family: str) -> dict[str, tuple[int, ...]]:
    return internlm2_shapes(text) if family == "internlm2" else llama_shapes(text, family)


def official_shapes(config: ChatConfig, family: str) -> dict[str, tuple[int, ...]]:
    """A chat checkpoint in the official layout."""
    shapes = {f"vision_model.{name}": shape for name, shape in vit_shapes(config.vision).items()}
    shapes |= projector_shapes(config)
    return shapes | {
        f"language_model.{name}": shape for name, shape in text_shapes(config.text, family).items()
    }


def official_state(config: ChatConfig, family: str, dtype: torch.dtype = torch.float32) -> State:
    """Random weights of a chat checkpoint in the official layout."""
    return random_state(official_shapes(config, family), dtype)


def text_json(text: TextConfig, family: str) -> dict[str, Any]:
    """llm_config as the published files have it."""
    values: dict[str, Any] = {
        "architectures": [of(family).architecture],
        "model_type": of(family).model_type,
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope.theta,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "internlm2":
        values["bias"] = False
    if family == "qwen3":
        values["head_dim"] = text.head_dim
    if family == "phi3":
        values["original_max_position_embeddings"] = text.rope.original_max_positions
        values["rope_scaling"] = {
            "type": "su",
            "short_factor": list(text.rope.short_factors),
            "long_factor": list(text.rope.long_factors),
        }
    elif text.rope.scaling:
        values["rope_scaling"] = {"type": text.rope.scaling, "factor": text.rope.factor}
    return values


def vision_json(vit: VisionConfig) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "hidden_size": vit.width,
        "num_hidden_layers": vit.num_layers,
        "num_attention_heads": vit.num_heads,
        "intermediate_size": vit.mlp_width,
        "norm_type": "rms_norm" if vit.norm == "rms" else "layer_norm",
        "qkv_bias": vit.qkv_bias,
        "qk_normalization": vit.qk_norm,
        "initializer_factor": vit.layer_scale_init,
        "hidden_act": "gelu",
    }


def chat_json(config: ChatConfig, family: str) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "vision_config": vision_json(config.vision),
        "llm_config": text_json(config.text, family),
        "downsample_ratio": 0.5,
        "ps_version": config.projector.shuffle,
        "select_layer": config.select_layer,
        "template": config.template,
        "force_image_size": config.tiling.tile_size,
        "dynamic_image_size": config.tiling.dynamic,
        "use_thumbnail": config.tiling.thumbnail,
        "min_dynamic_patch": config.tiling.min_tiles,
        "max_dynamic_patch": config.tiling.max_tiles,
        "torch_dtype": "float32",
    }


def write_json(values: object, path: Path) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def write_official(directory: Path, config: ChatConfig, family: str, state: State | None = None) -> State:
    """An official checkpoint directory with one file of weights."""
    directory.mkdir(parents=True, exist_ok=True)
    state = official_state(config, family) if state is None else state
    write_json(chat_json(config, family), directory / "config.json")
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return state


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """The same names, dtypes and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )
