"""Whose checkpoint calls a weight what: tables of rules, and the language-model families in them.

A layout says how the whole model is named; a family says how its language model is packed.
Data only. Sources: the released code of InternVL (`modeling_internvl_chat.py`, `modeling_internlm2.py`,
`modeling_phi3.py`), LLaVA, and transformers' `modeling_internvl.py` with its converter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from internvl.checkpoints.rules import Rule, copy, drop, fused, linear, regrouped, under
from internvl.errors import UnknownNameError

Kind = Literal["chat", "vision", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A language model as transformers names it, and what its config.json leaves unsaid."""

    name: str
    architecture: str
    model_type: str
    body: tuple[Rule, ...]
    head: tuple[Rule, ...]
    qkv_bias: bool | str = False
    """True, False, or the config field that decides."""
    out_bias: bool | str = False
    bias_default: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    bos_id: int | None = None
    published_code: str = "OpenGVLab/InternVL2_5-8B"
    """A repository on the hub whose code builds chat models of this family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names of a whole checkpoint. `anchor` is a key that this layout has and its neighbours lack."""

    name: str
    kind: Kind
    anchor: str
    vision: tuple[Rule, ...] = ()
    projector: tuple[Rule, ...] = ()
    body_prefix: str | None = None
    head_prefix: str = ""

    def rules(self, family: Family | None) -> tuple[Rule, ...]:
        """All rules of a checkpoint whose language model is of `family` (None: it has none)."""
        fixed = self.vision + self.projector
        if self.body_prefix is None or family is None:
            return fixed
        ours = "llm." if self.kind == "chat" else ""
        body = under(family.body, self.body_prefix, ours)
        return fixed + body + under(family.head, self.head_prefix, ours)


# --- vision towers ---------------------------------------------------------------------------

INTERN_VIT: tuple[Rule, ...] = (
    copy("embeddings.class_embedding", "embed.class_token"),
    copy("embeddings.position_embedding", "embed.position"),
    *linear("embeddings.patch_embedding", "embed.patch"),
    *linear("encoder.layers.{i}.norm1", "layers.{i}.norm1"),
    *linear("encoder.layers.{i}.norm2", "layers.{i}.norm2"),
    *linear("encoder.layers.{i}.attn.qkv", "layers.{i}.attn.qkv"),
    *linear("encoder.layers.{i}.attn.proj", "layers.{i}.attn.out"),
    copy("encoder.layers.{i}.attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    copy("encoder.layers.{i}.attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
    copy("encoder.layers.{i}.ls1", "layers.{i}.ls1"),
    copy("encoder.layers.{i}.ls2", "layers.{i}.ls2"),
    *linear("encoder.layers.{i}.mlp.fc1", "layers.{i}.mlp.fc1"),
    *linear("encoder.layers.{i}.mlp.fc2", "layers.{i}.mlp.fc2"),
    *drop("embeddings.position_ids"),
)

HF_VIT: tuple[Rule, ...] = (
    copy("embeddings.cls_token", "embed.class_token"),
    copy("embeddings.position_embeddings", "embed.position"),
    *linear("embeddings.patch_embeddings.projection", "embed.patch"),
    *linear("encoder.layer.{i}.layernorm_before", "layers.{i}.norm1"),
    *linear("encoder.layer.{i}.layernorm_after", "layers.{i}.norm2"),
    *fused([f"encoder.layer.{{i}}.attention.{part}_proj" for part in "qkv"], "layers.{i}.attn.qkv"),
    *linear("encoder.layer.{i}.attention.projection_layer", "layers.{i}.attn.out"),
    copy("encoder.layer.{i}.attention.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    copy("encoder.layer.{i}.attention.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
    copy("encoder.layer.{i}.lambda_1", "layers.{i}.ls1"),
    copy("encoder.layer.{i}.lambda_2", "layers.{i}.ls2"),
    *linear("encoder.layer.{i}.mlp.fc1", "layers.{i}.mlp.fc1"),
    *linear("encoder.layer.{i}.mlp.fc2", "layers.{i}.mlp.fc2"),
    *drop("embeddings.mask_token"),
)

# The `.pth` files of the 6B tower. Its poolers and, in the 14B file, the text tower belong to
# the contrastive model and are left where they are.
TIMM_VIT: tuple[Rule, ...] = (
    copy("cls_token", "embed.class_token"),
    copy("pos_embed", "embed.position"),
    *linear("patch_embed.proj", "embed.patch"),
    *linear("blocks.{i}.norm1", "layers.{i}.norm1"),
    *linear("blocks.{i}.norm2", "layers.{i}.norm2"),
    *linear("blocks.{i}.attn.qkv", "layers.{i}.attn.qkv"),
    *linear("blocks.{i}.attn.proj", "layers.{i}.attn.out"),
    copy("blocks.{i}.attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    copy("blocks.{i}.attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
    copy("blocks.{i}.ls1.gamma", "layers.{i}.ls1"),
    copy("blocks.{i}.ls2.gamma", "layers.{i}.ls2"),
    *linear("blocks.{i}.mlp.fc1", "layers.{i}.mlp.fc1"),
    *linear("blocks.{i}.mlp.fc2", "layers.{i}.mlp.fc2"),
    *drop("clip_projector.{any}", "transformer.{any}", "text_projection", "logit_scale"),
)

# --- projectors ------------------------------------------------------------------------------

MLP1: tuple[Rule, ...] = (*linear("0", "norm"), *linear("1", "fc1"), *linear("3", "fc2"))
HF_PROJECTOR: tuple[Rule, ...] = (
    *linear("layer_norm", "norm"),
    *linear("linear_1", "fc1"),
    *linear("linear_2", "fc2"),
)
LLAVA_PROJECTOR: tuple[Rule, ...] = (*linear("0", "fc1"), *linear("2", "fc2"))

# --- language models -------------------------------------------------------------------------

_LLAMA_FRAME: tuple[Rule, ...] = (
    *linear("embed_tokens", "embed"),
    *linear("layers.{i}.input_layernorm", "layers.{i}.norm1"),
    *linear("layers.{i}.self_attn.o_proj", "layers.{i}.attn.out"),
    *linear("layers.{i}.post_attention_layernorm", "layers.{i}.norm2"),
    *linear("layers.{i}.mlp.down_proj", "layers.{i}.mlp.down"),
    *linear("norm", "norm"),
    *drop("layers.{i}.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"),
)
LLAMA: tuple[Rule, ...] = (
    *_LLAMA_FRAME,
    *fused([f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv"], "layers.{i}.attn.qkv", "heads"),
    *fused(["layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"], "layers.{i}.mlp.gate_up"),
)
QWEN3: tuple[Rule, ...] = (
    *LLAMA,
    copy("layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    copy("layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
)
PHI3: tuple[Rule, ...] = (
    *_LLAMA_FRAME,
    *linear("layers.{i}.self_attn.qkv_proj", "layers.{i}.attn.qkv"),
    *linear("layers.{i}.mlp.gate_up_proj", "layers.{i}.mlp.gate_up"),
)
INTERNLM2: tuple[Rule, ...] = (
    *linear("tok_embeddings", "embed"),
    *linear("layers.{i}.attention_norm", "layers.{i}.norm1"),
    *regrouped("layers.{i}.attention.wqkv", "layers.{i}.attn.qkv"),
    *linear("layers.{i}.attention.wo", "layers.{i}.attn.out"),
    *linear("layers.{i}.ffn_norm", "layers.{i}.norm2"),
    *fused(["layers.{i}.feed_forward.w1", "layers.{i}.feed_forward.w3"], "layers.{i}.mlp.gate_up"),
    *linear("layers.{i}.feed_forward.w2", "layers.{i}.mlp.down"),
    *linear("norm", "norm"),
    *drop("layers.{i}.attention.rotary_emb.inv_freq"),
)
LM_HEAD: tuple[Rule, ...] = linear("lm_head", "head")
OUTPUT: tuple[Rule, ...] = linear("output", "head")

FAMILIES: Sequence[Family] = (
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        model_type="llama",
        body=LLAMA,
        head=LM_HEAD,
        bos_id=1,
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        published_code="OpenGVLab/InternVL2-40B",
    ),
    Family(
        name="internlm2",
        architecture="InternLM2ForCausalLM",
        model_type="internlm2",
        body=INTERNLM2,
        head=OUTPUT,
        bos_id=1,
        qkv_bias="bias",
        out_bias="bias",
        bias_default=True,
    ),
    Family(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        body=LLAMA,
        head=LM_HEAD,
        qkv_bias=True,
        published_code="OpenGVLab/InternVL2_5-1B",
    ),
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        body=QWEN3,
        head=LM_HEAD,
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        qk_norm=True,
        published_code="OpenGVLab/InternVL3_5-1B",
    ),
    Family(
        name="phi3",
        architecture="Phi3ForCausalLM",
        model_type="phi3",
        body=PHI3,
        head=LM_HEAD,
        bos_id=1,
        norm_eps=1e-5,
        published_code="OpenGVLab/InternVL2-4B",
    ),
    Family(
        name="internlm3",
        architecture="InternLM3ForCausalLM",
        model_type="internlm3",
        body=LLAMA,
        head=LM_HEAD,
        bos_id=1,
        qkv_bias="qkv_bias",
        out_bias="bias",
        published_code="OpenGVLab/InternVL3-9B",
    ),
)
"""Vicuna, Yi and the Hermes models are LLaMA."""

# --- layouts ---------------------------------------------------------------------------------

OFFICIAL = Layout(
    name="official",
    kind="chat",
    anchor="vision_model.embeddings.class_embedding",
    vision=under(INTERN_VIT, "vision_model.", "vit."),
    projector=under(MLP1, "mlp1.", "projector."),
    body_prefix="language_model.model.",
    head_prefix="language_model.",
)
HF = Layout(
    name="hf",
    kind="chat",
    anchor="model.vision_tower.embeddings.cls_token",
    vision=under(HF_VIT, "model.vision_tower.", "vit."),
    projector=under(HF_PROJECTOR, "model.multi_modal_projector.", "projector."),
    body_prefix="model.language_model.",
)
HF_UNPREFIXED = Layout(
    name="hf-unprefixed",
    kind="chat",
    anchor="vision_tower.embeddings.cls_token",
    vision=under(HF_VIT, "vision_tower.", "vit."),
    projector=under(HF_PROJECTOR, "multi_modal_projector.", "projector."),
    body_prefix="language_model.model.",
    head_prefix="language_model.",
)
LLAVA = Layout(
    name="llava",
    kind="chat",
    anchor="model.mm_projector.0.weight",
    vision=under(INTERN_VIT, "model.vision_tower.vision_tower.", "vit."),
    projector=under(LLAVA_PROJECTOR, "model.mm_projector.", "projector."),
    body_prefix="model.",
)
VISION = Layout(
    name="vision", kind="vision", anchor="embeddings.class_embedding", vision=under(INTERN_VIT, "")
)
HF_VISION = Layout(name="hf-vision", kind="vision", anchor="embeddings.cls_token", vision=under(HF_VIT, ""))
TIMM = Layout(name="timm", kind="vision", anchor="pos_embed", vision=under(TIMM_VIT, ""))
TEXT = Layout(name="text", kind="text", anchor="model.norm.weight", body_prefix="model.")

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for layout in (OFFICIAL, HF, HF_UNPREFIXED, LLAVA, VISION, HF_VISION, TIMM, TEXT)
}

PUBLISHED_VISION_CODE = "OpenGVLab/InternViT-300M-448px"


def family_called(name: str) -> Family:
    """The family of a name or a transformers architecture.

    Raises:
        UnknownNameError: listing the families.
    """
    for family in FAMILIES:
        if name in (family.name, family.architecture):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UnknownNameError(f"no language-model family {name!r}; there are {known}")
