"""A tiny InternVL-C and -G with random weights, named by hand as the published files name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from internvl.config import ContrastiveConfig, TextConfig
from tests.checkpoints.tiny import (
    LARGE_VIT,
    State,
    random_state,
    text_json,
    text_shapes,
    vision_json,
    vit_shapes,
    write_json,
)

TEXT = TextConfig(
    vocab_size=40,
    width=24,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=6,
    mlp_width=20,
    max_positions=64,
    bos_id=1,
)
PAIR = ContrastiveConfig(
    vision=LARGE_VIT,
    text=TEXT,
    embed_dim=12,
    pool_heads=8,
    num_queries=5,
    cross_every=3,
    image_size=56,
)
C_ALONE = replace(PAIR, num_queries=0, cross_every=2)

Shapes = dict[str, tuple[int, ...]]


def pool_shapes(width: int, out: int) -> Shapes:
    shapes: Shapes = {f"norm1_{part}.{end}": (width,) for part in "qkv" for end in ("weight", "bias")}
    shapes |= {f"cross_attn.{part}.weight": (width, width) for part in "qkv"}
    shapes |= {f"cross_attn.{part}_bias": (width,) for part in "qkv"}
    return {**shapes, "cross_attn.proj.weight": (out, width), "cross_attn.proj.bias": (out,)}


def under(shapes: Shapes, prefix: str) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def official_shapes(config: ContrastiveConfig = PAIR) -> Shapes:
    """Specification of the released model: names as in `modeling_internvl.py` and `modeling_qllama.py`."""
    d, c, inner = config.text.width, config.vision.width, config.text.num_heads * config.text.head_dim
    shapes = under(vit_shapes(config.vision), "vision_model.")
    shapes |= under(text_shapes(config.text, "llama"), "qllama.")
    shapes |= under(pool_shapes(c, config.embed_dim), "clip_projector.")
    shapes |= {"text_projection": (d, config.embed_dim), "logit_scale": ()}
    if not config.is_generative:
        del shapes["qllama.lm_head.weight"]
        return shapes
    for layer in range(0, config.text.num_layers, config.cross_every):
        cross: Shapes = {"norm1.weight": (d,), "norm2.weight": (c,)}
        cross |= {"q_proj.weight": (inner, d), "o_proj.weight": (d, inner)}
        cross |= {"k_proj.weight": (inner, c), "v_proj.weight": (inner, c)}
        shapes |= under(cross, f"qllama.model.layers.{layer}.cross_attn.")
    shapes |= under(pool_shapes(d, config.embed_dim), "clip_projector2.")
    return {
        **shapes,
        "query_tokens": (1, config.num_queries, d),
        "itm_head.weight": (2, d),
        "itm_head.bias": (2,),
    }


def original(state: State) -> State:
    """Weights of InternVL-C under the names of its `.pth`."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("vision_model."):
            name = name.removeprefix("vision_model.").replace("encoder.layers.", "blocks.")
            name = name.replace("embeddings.class_embedding", "cls_token")
            name = name.replace("embeddings.position_embedding", "pos_embed")
            name = name.replace("embeddings.patch_embedding", "patch_embed.proj")
            name = f"{name}.gamma" if name.endswith((".ls1", ".ls2")) else name
        renamed[name.replace("qllama.model.", "transformer.")] = value
    return renamed


def config_json(config: ContrastiveConfig = PAIR, **changes: Any) -> dict[str, Any]:
    """As the published files have it: the frequency of cross attention is inside `qllama_config` alone."""
    text = {
        **text_json(config.text, "llama"),
        "num_query_token": config.num_queries,
        "cross_attention_frequency": config.cross_every,
    }
    return {
        "architectures": ["InternVLModel"],
        "model_type": "internvl",
        "vision_config": vision_json(config.vision),
        "qllama_config": text,
        "hidden_size": config.text.width,
        "clip_embed_dim": config.embed_dim,
        "attn_pool_num_heads": config.pool_heads,
        "num_query_token": config.num_queries,
        "label_smoothing": 0.1,
        "use_backbone_lora": 0,
        "use_qllama_lora": 0,
        "force_image_size": None,
        "torch_dtype": "float32",
        **changes,
    }


def official_state(config: ContrastiveConfig = PAIR, dtype: torch.dtype = torch.float32) -> State:
    return random_state(official_shapes(config), dtype)


def write_pair(
    directory: Path, config: ContrastiveConfig = PAIR, state: State | None = None, **changes: Any
) -> State:
    """An official checkpoint directory with one file of weights."""
    directory.mkdir(parents=True, exist_ok=True)
    state = official_state(config) if state is None else state
    write_json(config_json(config, **changes), directory / "config.json")
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return state


def write_original(path: Path, *, wrapped: bool = False) -> State:
    """The `.pth` of InternVL-C; its weights are returned under the official names."""
    state = official_state(C_ALONE)
    named = original(state)
    torch.save({"module": named} if wrapped else named, path)
    return state
