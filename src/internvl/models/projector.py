"""From vision width to text width: pixel unshuffle, then a two-layer MLP.

Unshuffle puts a 2x2 square of patches into one vision token of four times the width. Order "v2"
goes row by row; "v1" (Chat 1.1 and 1.2) comes out column by column. Shape letters: N tiles, P patches,
C vision width, D text width, Y and X grid rows and columns.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from internvl.config import ProjectorConfig
from internvl.errors import InputError
from internvl.models.layers import Linear


def unshuffle(patches_NPC: Tensor, config: ProjectorConfig) -> Tensor:
    """(N, P, C) of a square grid to (N, P/cells, cells*C)."""
    if config.shuffle is None:
        return patches_NPC
    num_tiles, num_patches, width = patches_NPC.shape
    side, step = round(num_patches**0.5), config.factor
    if side**2 != num_patches or side % step:
        raise InputError(
            f"{num_patches} patches do not form a square grid that divides into {step}x{step} cells"
        )
    cells = patches_NPC.view(num_tiles, side // step, step, side // step, step, width)  # N, Y, dy, X, dx, C
    order = (0, 1, 3, 2, 4, 5) if config.shuffle == "v2" else (0, 3, 1, 2, 4, 5)
    return cells.permute(order).reshape(num_tiles, num_patches // config.cells, config.cells * width)


class Projector(nn.Module):
    """LayerNorm (where the model has one), linear, GELU, linear."""

    def __init__(self, config: ProjectorConfig, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.cells * vision_width
        self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        self.fc1 = Linear(width, text_width)
        self.fc2 = Linear(text_width, text_width)

    def forward(self, patches_NPC: Tensor) -> Tensor:
        """Patch features without the class token (N, P, C) to vision tokens (N, P/cells, D)."""
        out: Tensor = self.fc2(gelu(self.fc1(self.norm(unshuffle(patches_NPC, self.config)))))
        return out
