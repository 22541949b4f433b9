"""What the weights of InternVL-C and -G are called, apart from their tower and their language model.

Data only. Source: the released code of InternVL (`modeling_internvl.py`, `modeling_qllama.py`,
`internvl_c.py`).
"""

from __future__ import annotations

from internvl.checkpoints.rules import Rule, copy, fused, linear, under

_POOL: tuple[Rule, ...] = (
    *linear("norm1_q", "norm_q"),
    *linear("norm1_k", "norm_k"),
    *linear("norm1_v", "norm_v"),
    *(copy(f"cross_attn.{part}.weight", f"{part}.weight") for part in "qkv"),
    *(copy(f"cross_attn.{part}_bias", f"{part}.bias") for part in "qkv"),
    *linear("cross_attn.proj", "out"),
)
_CROSS_ATTENTION: tuple[Rule, ...] = (
    *linear("norm1", "norm_q"),
    *linear("norm2", "norm_kv"),
    *linear("q_proj", "q"),
    *fused(["k_proj", "v_proj"], "kv"),
    *linear("o_proj", "out"),
)

COMMON_SPACE: tuple[Rule, ...] = (
    *under(_POOL, "clip_projector.", "image_pool."),
    copy("text_projection", "text_projection"),
    copy("logit_scale", "logit_scale"),
)
"""Both encoders' way into the space in which pictures and texts meet."""

QUERIES: tuple[Rule, ...] = (
    copy("query_tokens", "qllama.queries"),
    *under(_CROSS_ATTENTION, "qllama.model.layers.{i}.cross_attn.", "qllama.layers.{i}.cross."),
    *under(_POOL, "clip_projector2.", "query_pool."),
    *linear("itm_head", "itm_head"),
)
"""What InternVL-G adds."""
