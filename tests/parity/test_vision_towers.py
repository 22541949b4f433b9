"""InternViT against transformers' InternVL vision tower, and LayerScale against its DINOv2."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, InternVLVisionConfig, InternVLVisionModel

from internvl.config import VisionConfig
from internvl.models.vit import VisionTower

OURS = VisionConfig(image_size=56, width=48, num_layers=3, num_heads=4, mlp_width=80, layer_scale_init=0.7)
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": [56, 56],
    "patch_size": [14, 14],
    "attn_implementation": "eager",
}
RENAMES = (
    ("cls_token", "class_token"),
    ("patch_embeddings.projection", "patch"),
    ("position_embeddings", "position"),
    ("embeddings.", "embed."),
    ("encoder.layer.", "layers."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.projection_layer", "attn.out"),
    ("attention.q_norm", "attn.q_norm"),
    ("attention.k_norm", "attn.k_norm"),
    ("attention.o_proj", "attn.out"),
    ("layer_scale1.lambda1", "ls1"),
    ("layer_scale2.lambda1", "ls2"),
    ("lambda_1", "ls1"),
    ("lambda_2", "ls2"),
)


def fuse(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under our names, q, k and v joined by hand."""
    ours = {}
    for name, tensor in theirs.items():
        if "attention.q_proj" in name:
            parts = [theirs[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            ours[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
        elif not any(part in name for part in ("k_proj", "v_proj", "mask_token")):
            ours[name] = tensor
    for old, new in RENAMES:
        ours = {name.replace(old, new): tensor for name, tensor in ours.items()}
    return ours


def randomise(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("kind", ["300M", "6B"])
@pytest.mark.parametrize("size", [(56, 56), (84, 42)])
def test_equals_the_internvl_tower(kind: str, size: tuple[int, int]) -> None:
    is_large = kind == "6B"
    theirs = InternVLVisionModel(
        InternVLVisionConfig(
            **SIZES,
            intermediate_size=80,
            attention_bias=not is_large,
            use_qk_norm=is_large,
            norm_type="rms_norm" if is_large else "layer_norm",
        )
    ).eval()
    randomise(theirs)
    config = replace(OURS, qkv_bias=not is_large, qk_norm=is_large, norm="rms" if is_large else "layer")
    ours = VisionTower(config).eval()
    state = fuse(theirs.state_dict())
    ours.load_state_dict(state)
    tiles = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = theirs(tiles, output_hidden_states=True)
        states = ours.hidden_states(tiles)
    for ours_state, reference in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours_state, reference, atol=5e-5, rtol=1e-4)


def test_layer_scale_equals_dinov2() -> None:
    theirs = Dinov2Model(Dinov2Config(**{**SIZES, "image_size": 56, "patch_size": 14}, mlp_ratio=2)).eval()
    randomise(theirs)
    state = fuse(theirs.state_dict())
    ours = VisionTower(replace(OURS, mlp_width=96)).eval()
    ours.load_state_dict(
        {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith("layernorm") and "mask" not in name
        }
    )
    tiles = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        expected = theirs(tiles, output_hidden_states=True).hidden_states
        states = ours.hidden_states(tiles)
    for ours_state, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(ours_state, reference, atol=5e-5, rtol=1e-4)
