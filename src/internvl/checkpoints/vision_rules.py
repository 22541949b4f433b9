"""What the weights of a vision tower are called: the official, transformers and original forms.

Data only. Sources: the released code of InternVL (`modeling_intern_vit.py` and its conversion to `.pth`),
transformers' `modeling_internvl.py`.
"""

from __future__ import annotations

from internvl.checkpoints.rules import Rule, copy, drop, fused, linear

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
)
"""Of the `.pth` files."""
