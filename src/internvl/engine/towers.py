"""Which model sees whose pictures: adapters that leave the vision tower alone share what it has made.

Knows models and their parameters; no requests. Shape letters: N tiles.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from internvl.models.vlm import VLM


def find_towers(models: Mapping[str, VLM]) -> dict[str, str]:
    """For each model's name, the name of the model whose vision tokens it uses: the base model ("") where
    tower and projector are the same tensors, else its own."""
    base = _vision_tensors(models[""])
    return {name: "" if _vision_tensors(model) == base else name for name, model in models.items()}


def encode_with(vlm: VLM, batch: int | None, tiles_N3HW: Tensor) -> Tensor:
    """Vision tokens (N, tokens, D) on the model's device, `batch` tiles at a time."""
    return vlm.encode_tiles(tiles_N3HW.to(vlm.llm.embed.weight.device), batch)


def _vision_tensors(vlm: VLM) -> dict[str, int]:
    """Name and identity of every tensor that vision tokens depend on."""
    state = {**vlm.vit.state_dict(prefix="vit."), **vlm.projector.state_dict(prefix="projector.")}
    return {name: tensor.data_ptr() for name, tensor in state.items()}
