"""The composed model: vision tower, projector, decoder, and the slots that join them.

A slot is a text position that a vision token fills. Knows no text and no tiling.
Shape letters: N tiles, P patches, C vision width, T packed tokens, S slots, D text width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from internvl.config import ChatConfig
from internvl.errors import ConfigError, PromptError
from internvl.models.decoder import Decoder
from internvl.models.projector import Projector
from internvl.models.vit import VisionTower

POSITIONS_AT_ONCE = 1100
"""Of one pass of the tower on a CPU: a tile of 448 px, four of 224. More fall out of its caches."""
ACCELERATED_TILES_AT_ONCE = 16


def tiles_at_once(config: ChatConfig, device: torch.device) -> int:
    """Tiles of one pass of the tower, which bound the memory of its activations."""
    if device.type != "cpu":
        return ACCELERATED_TILES_AT_ONCE
    patches = (config.tiling.tile_size // config.vision.patch_size) ** 2
    return max(1, POSITIONS_AT_ONCE // (1 + patches))


class VLM(nn.Module):
    """Vision tower `vit`, `projector` and language model `llm`."""

    def __init__(self, config: ChatConfig) -> None:
        super().__init__()
        side, step = config.tiling.tile_size / config.vision.patch_size, config.projector.factor
        if side % 1 or (config.projector.shuffle and side % step):
            raise ConfigError(
                f"{config.tiling.tile_size} px tiles give {side:g} patches a side: not a multiple of {step}"
            )
        self.config = config
        self.vit = VisionTower(config.vision)
        self.projector = Projector(config.projector, config.vision.width, config.text.width)
        self.llm = Decoder(config.text)

    def encode_tiles(self, tiles_N3HW: Tensor, batch: int | None = None) -> Tensor:
        """Vision tokens (N, tokens, D); `batch` tiles at a time (None: as suits the device)."""
        size = batch or tiles_at_once(self.config, tiles_N3HW.device)
        return torch.cat([self._encode(part) for part in torch.split(tiles_N3HW, size)])

    def _encode(self, tiles_N3HW: Tensor) -> Tensor:
        features_NPC = self.vit(tiles_N3HW, self.config.select_layer)
        out: Tensor = self.projector(features_NPC[:, 1:])
        return out

    def embed(self, ids_T: Tensor, slots_S: Tensor, vision_SD: Tensor) -> Tensor:
        """Decoder input (T, D): token embeddings with vision tokens put in their slots, in order."""
        x_TD: Tensor = self.llm.embed(ids_T)
        if len(slots_S) != len(vision_SD):
            raise PromptError(
                f"the prompt has {len(slots_S)} slots for vision tokens but the pictures give "
                f"{len(vision_SD)}: every tile needs {self.config.tokens_per_tile}"
            )
        return x_TD.index_copy(0, slots_S, vision_SD.to(x_TD.dtype)) if len(slots_S) else x_TD
