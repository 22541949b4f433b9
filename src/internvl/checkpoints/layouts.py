"""Whose checkpoint calls a weight what: tables of rules, and the language-model families in them.

A layout says how the whole model is named; a family says how its language model is packed.
Data only. Sources: the released code of InternVL (`modeling_internvl_chat.py`, `modeling_internlm2.py`,
`modeling_phi3.py`), LLaVA, and transformers' `modeling_internvl.py` with its converter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from internvl.checkpoints.contrastive_rules import COMMON_SPACE, QUERIES
from internvl.checkpoints.rules import Rule, copy, drop, fused, linear, regrouped, under
from internvl.checkpoints.vision_rules import HF_VIT, INTERN_VIT, TIMM_VIT
from internvl.errors import UnknownNameError

Kind = Literal["chat", "vision", "text", "contrastive"]
OURS: Mapping[Kind, str] = {"chat": "llm.", "text": "", "contrastive": "qllama."}
"""Where the language model is in our models."""


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
    common_space: tuple[Rule, ...] = ()
    body_prefix: str | None = None
    head_prefix: str = ""

    def rules(self, family: Family | None) -> tuple[Rule, ...]:
        """All rules of a checkpoint whose language model is of `family` (None: it has none)."""
        fixed = self.vision + self.projector + self.common_space
        if self.body_prefix is None or family is None:
            return fixed
        ours = OURS[self.kind]
        body = under(family.body, self.body_prefix, ours)
        return fixed + body + under(family.head, self.head_prefix, ours)


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
# The tower alone; its pooler and, in the 14B file, the text model are left where they are.
_NOT_OF_THE_TOWER = drop("clip_projector.{any}", "transformer.{any}", "text_projection", "logit_scale")
TIMM = Layout(name="timm", kind="vision", anchor="pos_embed", vision=TIMM_VIT + _NOT_OF_THE_TOWER)
TEXT = Layout(name="text", kind="text", anchor="model.norm.weight", body_prefix="model.")
CONTRASTIVE = Layout(
    name="contrastive",
    kind="contrastive",
    anchor="qllama.model.norm.weight",
    vision=under(INTERN_VIT, "vision_model.", "vit."),
    common_space=COMMON_SPACE + QUERIES,
    body_prefix="qllama.model.",
    head_prefix="qllama.",
)
# The `.pth` of InternVL-C: the tower's own names, and a language model without prefix and head.
TIMM_CONTRASTIVE = Layout(
    name="timm-contrastive",
    kind="contrastive",
    anchor="transformer.norm.weight",
    vision=under(TIMM_VIT, "", "vit."),
    common_space=COMMON_SPACE,
    body_prefix="transformer.",
)

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        CONTRASTIVE,
        OFFICIAL,
        HF,
        HF_UNPREFIXED,
        LLAVA,
        VISION,
        HF_VISION,
        TIMM_CONTRASTIVE,
        TIMM,
        TEXT,
    )
}
"""In the order in which their anchors are looked for."""

PUBLISHED_VISION_CODE = "OpenGVLab/InternViT-300M-448px"
PUBLISHED_CONTRASTIVE_CODE = "OpenGVLab/InternVL-14B-224px"


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
