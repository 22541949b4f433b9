"""config.json of InternVL-C and -G (`InternVLModel`) and `ContrastiveConfig`, both ways.

Knows fields and their defaults; knows no weights, except that `infer_contrastive` reads the dimensions of
the original `.pth` off the shapes of its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from internvl.checkpoints.fields import Fields
from internvl.checkpoints.layouts import Family
from internvl.checkpoints.normalization import read_normalization
from internvl.checkpoints.text_config import read_text, refuse_quantized, write_text
from internvl.checkpoints.vision_config import infer_vision, read_vision, write_vision
from internvl.config import ContrastiveConfig, TextConfig
from internvl.errors import ConfigError, WeightsError

POOL_HEADS, NUM_QUERIES, CROSS_EVERY = 16, 96, 2
"""Of the released code, where a file says nothing."""

HEAD_DIM, MAX_POSITIONS, BOS_ID = 128, 2048, 1
"""Of its language model, which the original `.pth` does not describe."""

MAX_QUERIES = 1 << 16


def read_contrastive(fields: Fields, preprocessor: Fields) -> tuple[ContrastiveConfig, Family]:
    """The official form.

    `force_image_size` is the size that the position table was resized to, whatever `vision_config` says.
    `num_query_token` 0 is this package's own: InternVL-C alone.

    Raises:
        ConfigError: a field that is missing, mistyped or cannot be built.
    """
    refuse_quantized(fields)
    vision, inner = read_vision(fields.inner("vision_config")), fields.inner("qllama_config")
    text, family = read_text(Fields({"model_type": "llama", **inner.values}, inner.place))
    size = fields.count("force_image_size", vision.image_size)
    every = fields if fields.has("cross_attention_frequency") else inner
    config = ContrastiveConfig(
        vision=replace(vision, image_size=size),
        text=text,
        embed_dim=fields.count("clip_embed_dim", 768),
        pool_heads=fields.count("attn_pool_num_heads", POOL_HEADS),
        num_queries=_num_queries(fields if fields.has("num_query_token") else inner),
        cross_every=every.count("cross_attention_frequency", CROSS_EVERY),
        image_size=size,
        normalization=read_normalization(preprocessor),
    )
    pooled = (vision.width, text.width) if config.is_generative else (vision.width,)
    for width in pooled:
        if width % config.pool_heads:
            raise fields.wrong("attn_pool_num_heads", f"a divisor of the width {width} that is pooled")
    return config, family


def write_contrastive(config: ContrastiveConfig, family: Family, base: Mapping[str, Any]) -> dict[str, Any]:
    """The official form. `base` is the official object the model came from, or {}.

    Raises:
        ConfigError: the family cannot express the language model, or pictures are seen at another size than
            that of the position table, for which this form has no field.
    """
    if config.image_size != config.vision.image_size:
        raise ConfigError(
            f"pictures of {config.image_size} px on a position table for {config.vision.image_size} px "
            "cannot be written: resize the table first (adapt.resize.resize_images)"
        )
    queries = {
        "num_query_token": config.num_queries,
        "cross_attention_frequency": config.cross_every,
    }
    text = base.get("qllama_config", {})
    return {
        "label_smoothing": 0.0,
        "initializer_range": 0.02,
        **base,
        "architectures": ["InternVLModel"],
        "model_type": "internvl",
        "vision_config": write_vision(config.vision, base.get("vision_config", {})),
        "qllama_config": {**write_text(config.text, family, text, modern=False), **queries},
        "hidden_size": config.text.width,
        "clip_embed_dim": config.embed_dim,
        "attn_pool_num_heads": config.pool_heads,
        **queries,
        "force_image_size": None,
        "use_backbone_lora": 0,
        "use_qllama_lora": 0,
        "tie_word_embeddings": False,
    }


def infer_contrastive(
    shapes: Mapping[str, tuple[int, ...]], text: TextConfig | None = None
) -> ContrastiveConfig:
    """InternVL-C's configuration from the shapes of its tensors, under our names.

    `text` describes the language model, where that is known; else its heads are 128 wide, and the rest is as
    in the published model.

    Raises:
        WeightsError: tensors that it must have are not there.
    """
    needed = ("qllama.embed.weight", "qllama.layers.0.mlp.gate_up.weight", "text_projection")
    lacking = [name for name in needed if name not in shapes]
    if lacking:
        raise WeightsError(f"these are not the weights of InternVL-C: no {', '.join(lacking)}")
    prefix = "vit."
    vision = infer_vision(
        {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    )
    return ContrastiveConfig(
        vision=vision,
        text=text or _infer_text(shapes),
        embed_dim=shapes["text_projection"][1],
        pool_heads=POOL_HEADS,
        num_queries=0,
        image_size=vision.image_size,
    )


def _infer_text(shapes: Mapping[str, tuple[int, ...]]) -> TextConfig:
    """Without grouped heads, as LLaMA 7B."""
    vocab_size, width = shapes["qllama.embed.weight"]
    num_heads = max(1, width // HEAD_DIM)
    return TextConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=sum(name.endswith("mlp.down.weight") for name in shapes if name.startswith("qllama.")),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        mlp_width=shapes["qllama.layers.0.mlp.gate_up.weight"][0] // 2,
        max_positions=MAX_POSITIONS,
        bos_id=BOS_ID,
    )


def _num_queries(fields: Fields) -> int:
    number = fields.whole("num_query_token", NUM_QUERIES)
    if not 0 <= number <= MAX_QUERIES:
        raise fields.wrong("num_query_token", f"a whole number from 0 to {MAX_QUERIES}")
    return number
