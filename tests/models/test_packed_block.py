"""A tower with packed weights in one call a block equals its modules one by one, which serve all the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.adapt.quantize import quantize
from internvl.config import VisionConfig
from internvl.models import vit
from internvl.models.packed_block import packed_block
from internvl.ops.native import library
from internvl.ops.packed import Scheme

pytestmark = pytest.mark.skipif(
    library() is None, reason="no kernels were built: there is no call for a block"
)

CONFIG = VisionConfig(image_size=42, width=64, num_layers=3, num_heads=2, mlp_width=120)
VARIANTS = {
    "plain": CONFIG,
    "root-mean-square norms, no bias of q k v": replace(CONFIG, norm="rms", qkv_bias=False),
    "quick activation": replace(CONFIG, activation="quick_gelu"),
}


def tower(config: VisionConfig, scheme: Scheme | None = "float32") -> vit.VisionTower:
    torch.manual_seed(0)
    model = vit.VisionTower(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
    if scheme is not None:
        quantize(model, [(r".*", scheme)])
    return model


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("scheme", ["float32", "bfloat16"])
@torch.inference_mode()
def test_equals_the_modules(config: VisionConfig, scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tiles_N3HW = tower(config, scheme), torch.randn(2, 3, 42, 56)
    found_NPC = model(tiles_N3HW)
    monkeypatch.setattr(vit, "packed_block", lambda *_: None)
    torch.testing.assert_close(found_NPC, model(tiles_N3HW), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@torch.inference_mode()
def test_rounds_as_the_modules(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block, since the next would make more of what rounded to the other side."""
    model, x_NPC = tower(replace(CONFIG, num_layers=1), scheme), torch.randn(2, 13, 64)
    found_NPC = model.layers[0](x_NPC)
    monkeypatch.setattr(vit, "packed_block", lambda *_: None)
    assert (found_NPC - model.layers[0](x_NPC)).abs().median() < 1e-5


def test_the_kernel_serves_where_it_can() -> None:
    x_NPC = torch.randn(1, 5, 64)
    block = tower(CONFIG).layers[0]
    with torch.inference_mode():
        assert packed_block(block, x_NPC) is not None
        assert packed_block(tower(CONFIG, None).layers[0], x_NPC) is None
        assert packed_block(tower(replace(CONFIG, qk_norm=True)).layers[0], x_NPC) is None
        assert packed_block(tower(replace(CONFIG, num_heads=8)).layers[0], x_NPC) is None
        assert packed_block(block.train(), x_NPC) is None
    assert packed_block(block.eval(), x_NPC) is None
