"""The chat model under the names that optimum-intel looks for, copied beside a checkpoint as remote code.

A file of its own, since it is imported there: knows transformers (below 4.58) and nothing of this package.
Shape letters: N tiles, P positions, C vision width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    is_composition = True

    def __init__(self, vision_config: Any = None, llm_config: Any = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))

    def to_dict(self) -> dict[str, Any]:
        parts = {"vision_config": self.vision_config.to_dict(), "llm_config": self.llm_config.to_dict()}
        return {**super().to_dict(), **parts, "model_type": self.model_type}

    def get_text_config(self, *_: Any, **__: Any) -> PretrainedConfig:
        return self.__dict__.get("llm_config", self)


class Embeddings(nn.Module):
    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        positions = (config.image_size // patch) ** 2 + 1
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, positions, width))

    def forward(self, tiles_N3HW: Tensor) -> Tensor:
        patches_NPC = self.patch_embedding(tiles_N3HW).flatten(2).transpose(1, 2)
        class_N1C = self.class_embedding.expand(patches_NPC.shape[0], -1, -1)
        return torch.cat((class_N1C, patches_NPC), 1) + self.position_embedding


class Attention(nn.Module):
    use_flash_attn = False

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_NPC: Tensor) -> Tensor:
        n, p, c = x_NPC.shape
        heads = self.qkv(x_NPC).view(n, p, 3, self.num_heads, c // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        mixed = scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, p, c))


class Block(nn.Module):
    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.attn = Attention(config)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, config.intermediate_size),
                "fc2": nn.Linear(config.intermediate_size, width),
            }
        )

    def forward(self, x_NPC: Tensor) -> Tensor:
        x_NPC = x_NPC + self.ls1 * self.attn(self.norm1(x_NPC))
        inner = gelu(self.mlp["fc1"](self.norm2(x_NPC)))
        return x_NPC + self.ls2 * self.mlp["fc2"](inner)


class Tower(nn.Module):
    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, tiles_N3HW: Tensor) -> Tensor:
        x_NPC = self.embeddings(tiles_N3HW)
        for block in self.encoder.layers:
            x_NPC = block(x_NPC)
        return x_NPC


class InternVLChatModel(PreTrainedModel, GenerationMixin):
    config_class = InternVLChatConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: InternVLChatConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.llm_config
        wide, self.half = 4 * vision.hidden_size, vision.image_size // vision.patch_size // 2
        self.vision_model = Tower(vision)
        self.language_model = Qwen2ForCausalLM(text)
        layers = (nn.Linear(wide, text.hidden_size), nn.GELU(), nn.Linear(text.hidden_size, text.hidden_size))
        self.mlp1 = nn.Sequential(nn.LayerNorm(wide), *layers)
        self.post_init()

    def _init_weights(self, _: nn.Module) -> None:
        """Every weight comes from the checkpoint."""

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        x_NPC, half = self.vision_model(pixel_values)[:, 1:], self.half
        width = x_NPC.shape[-1]
        cells = x_NPC.view(-1, half, 2, half, 2, width).permute(0, 1, 3, 2, 4, 5)
        return self.mlp1(cells.reshape(-1, half * half, 4 * width))

    def forward(
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None, **inputs: Any
    ) -> Any:
        return self.language_model(input_ids=input_ids, **inputs)
