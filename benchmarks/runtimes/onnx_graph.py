"""Tower and projector as an ONNX graph of any number of tiles, for the runtimes that read graphs.

Shape letters: N tiles, P patches, C vision width.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import gelu

import internvl
from internvl.api.chat import ChatModel
from internvl.models.vlm import VLM
from internvl.ops import linear as linear_module
from internvl.ops import tile_attention as tile_attention_module


class Vision(torch.nn.Module):
    """Written for a fixed size: a graph cannot hold the numbers that the model computes from shapes."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm
        self.side = vlm.config.tiling.tile_size // vlm.config.vision.patch_size

    def forward(self, tiles_N3HW: Tensor) -> Tensor:
        embed, half, width = self.vlm.vit.embed, self.side // 2, self.vlm.config.vision.width
        patches_NPC = embed.patch(tiles_N3HW).flatten(2).transpose(1, 2)
        class_N1C = embed.class_token.expand(patches_NPC.shape[0], -1, -1)
        x_NPC = torch.cat((class_N1C, patches_NPC), dim=1) + embed.position  # of one size, nothing to resize
        for block in self.vlm.vit.layers:
            x_NPC = block(x_NPC)
        projector = self.vlm.projector
        cells = x_NPC[:, 1:].reshape(-1, half, 2, half, 2, width).permute(0, 1, 3, 2, 4, 5)
        cells = cells.reshape(-1, half * half, 4 * width)
        out: Tensor = projector.fc2(gelu(projector.fc1(projector.norm(cells))))
        return out


def export(path: Path, graph: Path) -> None:
    """Attention and products go in as PyTorch's operators, which a graph can hold."""
    model = internvl.load(path)
    assert isinstance(model, ChatModel)
    tile_size = model.config.tiling.tile_size
    with (
        patch.object(tile_attention_module, "library", lambda: None),
        patch.object(linear_module, "onednn_is_faster", lambda: False),
    ):
        torch.onnx.export(
            Vision(model.vlm).eval(), (torch.zeros(1, 3, tile_size, tile_size),), str(graph),
            input_names=["tiles"], output_names=["tokens"], opset_version=18, dynamo=False,
            dynamic_axes={"tiles": {0: "n"}, "tokens": {0: "n"}},
        )  # fmt: skip
