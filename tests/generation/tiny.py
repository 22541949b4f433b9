"""A decoder too small to wait for, prompts for it, and a decoder of ids that any test can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from internvl.config import TextConfig
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.decoder import Decoder

CONFIG = TextConfig(
    vocab_size=26,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=24,
    max_positions=96,
)


def make_decoder(config: TextConfig = CONFIG, std: float = 0.5) -> Decoder:
    """Random weights, always the same ones."""
    torch.manual_seed(0)
    llm = Decoder(config).eval()
    for parameter in llm.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return llm


@torch.inference_mode()
def make_prompt(llm: Decoder, ids: Sequence[int], **settings: Any) -> Prompt:
    return Prompt(llm.embed(torch.tensor(ids)), Sampling(**settings))


def letters(ids: Sequence[int]) -> str:
    """Id 0 is "a", id 25 is "z"."""
    return "".join(chr(ord("a") + index) for index in ids)
