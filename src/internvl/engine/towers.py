"""Which model sees whose pictures: adapters that leave the vision tower alone share what it has made.

Knows models and their parameters; no requests. Shape letters: N tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor

from internvl.models.vlm import VLM

VISION = ("vit.", "projector.")
"""Where the names of all that makes vision tokens begin."""


def find_towers(models: Mapping[str, VLM]) -> dict[str, str]:
    """For each model's name, the name of the model whose vision tokens it uses: the base model ("") where
    tower and projector are the same tensors, else its own."""
    base = _vision_tensors(models[""])
    return {name: "" if _vision_tensors(model) == base else name for name, model in models.items()}


def encode_with(vlm: VLM, batch: int | None, tiles_N3HW: Tensor) -> Tensor:
    """Vision tokens (N, tokens, D) on the model's device, `batch` tiles at a time."""
    return vlm.encode_tiles(tiles_N3HW.to(vlm.llm.embed.weight.device), batch)


def fingerprint(vlm: VLM) -> bytes:
    """A digest of everything but the tile that a vision token depends on: configuration, weights, and the
    settings of adapters."""
    config = vlm.config
    digest = blake2b(digest_size=32)
    digest.update(f"{config.vision} {config.projector} {config.select_layer} {config.tiling}".encode())
    for name, module in vlm.named_modules():
        if name.startswith(VISION):
            digest.update(f"{name} {getattr(module, 'lora', '')};".encode())
    for name, tensor in _vision_state(vlm).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _vision_tensors(vlm: VLM) -> dict[str, int]:
    """Name and identity of every tensor that vision tokens depend on."""
    return {name: tensor.data_ptr() for name, tensor in _vision_state(vlm).items()}


def _vision_state(vlm: VLM) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in vlm.state_dict().items() if name.startswith(VISION)}
