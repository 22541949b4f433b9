"""The decoder against transformers' own classes, tiny and random, for every family of the zoo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from internvl.config import RopeConfig, TextConfig
from internvl.models.attention import Packed
from internvl.models.decoder import Decoder

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OURS = TextConfig(
    vocab_size=61,
    width=48,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=72,
    norm_eps=1e-5,
    max_positions=64,
)
SHORT, LONG = (1.1, 1.3, 1.7, 2.3), (2.0, 3.0, 5.0, 7.0)
LONGROPE = {
    "short_factor": list(SHORT),
    "long_factor": list(LONG),
    "original_max_position_embeddings": 16,
    "factor": 4.0,
}


def rope(kind: str, theta: float, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


FAMILIES: dict[str, tuple[type[Any], PretrainedConfig, TextConfig]] = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, **rope("default", 5e5)),
        replace(OURS, rope=RopeConfig(theta=5e5)),
    ),
    "llama without groups": (
        LlamaForCausalLM,
        LlamaConfig(**{**SIZES, "num_key_value_heads": 6}, **rope("default", 1e4)),
        replace(OURS, num_kv_heads=6),
    ),
    "llama linear": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, **rope("linear", 1e4, factor=4.0)),
        replace(OURS, rope=RopeConfig(scaling="linear", factor=4.0)),
    ),
    "llama dynamic": (
        LlamaForCausalLM,
        LlamaConfig(**{**SIZES, "max_position_embeddings": 24}, **rope("dynamic", 1e4, factor=2.0)),
        replace(OURS, rope=RopeConfig(scaling="dynamic", factor=2.0), max_positions=24),
    ),
    "llama bias": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, **rope("default", 1e4), attention_bias=True),
        replace(OURS, qkv_bias=True, out_bias=True),
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, **rope("default", 1e6)),
        replace(OURS, rope=RopeConfig(theta=1e6), qkv_bias=True),
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, **rope("default", 1e6), head_dim=12),
        replace(OURS, rope=RopeConfig(theta=1e6), qk_norm=True, head_dim=12),
    ),
    "phi3": (
        Phi3ForCausalLM,
        Phi3Config(**SIZES, **rope("default", 1e4)),
        OURS,
    ),
    "phi3 longrope": (
        Phi3ForCausalLM,
        Phi3Config(
            **SIZES,
            original_max_position_embeddings=16,
            **rope("longrope", 1e4, **LONGROPE),
        ),
        replace(
            OURS,
            rope=RopeConfig(
                scaling="longrope",
                factor=4.0,
                original_max_positions=16,
                short_factors=SHORT,
                long_factors=LONG,
            ),
        ),
    ),
}


def fuse(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a transformers decoder under our names, q, k, v and gate, up joined by hand."""
    renames = (
        ("model.embed_tokens", "embed"),
        ("model.norm", "norm"),
        ("lm_head", "head"),
        ("model.layers", "layers"),
        ("input_layernorm", "norm1"),
        ("post_attention_layernorm", "norm2"),
        ("self_attn.o_proj", "attn.out"),
        ("self_attn.qkv_proj", "attn.qkv"),
        ("self_attn.q_norm", "attn.q_norm"),
        ("self_attn.k_norm", "attn.k_norm"),
        ("mlp.gate_up_proj", "mlp.gate_up"),
        ("mlp.down_proj", "mlp.down"),
    )
    ours: dict[str, Tensor] = {}
    for key in theirs:
        for first, *rest, joined in (
            ("q_proj", "k_proj", "v_proj", "self_attn.qkv_proj"),
            ("gate_proj", "up_proj", "mlp.gate_up_proj"),
        ):
            prefix = joined.split(".")[0]
            if f"{prefix}.{first}" in key:
                parts = [theirs[key.replace(first, name)] for name in (first, *rest)]
                ours[key.replace(f"{prefix}.{first}", joined)] = torch.cat(parts)
        if not any(name in key for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")) or (
            "gate_up" in key or "qkv_proj" in key
        ):
            ours[key] = theirs[key]
    for old, new in renames:
        ours = {key.replace(old, new): value for key, value in ours.items()}
    return ours


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 15, 40])
def test_hidden_states_and_logits(family: str, length: int) -> None:
    theirs_class, theirs_config, our_config = FAMILIES[family]
    theirs_config._attn_implementation = "eager"
    theirs = theirs_class(theirs_config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = Decoder(our_config).eval()
    ours.load_state_dict(fuse(theirs.state_dict()))
    ids = torch.randint(0, 61, (length,))
    with torch.inference_mode():
        expected = theirs(ids[None], output_hidden_states=True)
        states = list(ours.hidden_states(ours.embed(ids), torch.arange(length), Packed([length])))
        for state, reference in zip(states, expected.hidden_states, strict=True):
            torch.testing.assert_close(state, reference[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.logits(states[-1]), expected.logits[0], atol=5e-5, rtol=1e-4)
