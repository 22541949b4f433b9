"""The decoder's step in one kernel call equals its layers one by one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters, merge_adapters
from internvl.adapt.quantize import quantize
from internvl.config import RopeConfig, TextConfig
from internvl.generation.prefill import prefill
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models import fused_step as fused_step_module
from internvl.models.attention import KVCache
from internvl.models.decoder import Decoder
from internvl.models.fused_step import fused_step
from internvl.ops.native import library
from internvl.ops.packed import SCHEMES, Scheme

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: there is no fused step")

CONFIG = TextConfig(
    vocab_size=50,
    width=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=72,
    max_positions=128,
)
VARIANTS = {
    "plain": CONFIG,
    "biases": replace(CONFIG, qkv_bias=True, out_bias=True),
    "head norms": replace(CONFIG, qk_norm=True, num_heads=4, num_kv_heads=4),
    "dynamic rope": replace(
        CONFIG, rope=RopeConfig(theta=1e4, scaling="dynamic", factor=2.0), max_positions=16
    ),
    "one key head, wide": replace(CONFIG, num_kv_heads=1, num_heads=3, head_dim=24, mlp_width=300),
}
LENGTHS = (17, 3, 9)


def decoder(config: TextConfig) -> Decoder:
    torch.manual_seed(0)
    llm = Decoder(config).eval()
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
    return llm


def filled(llm: Decoder) -> KVCache:
    """A cache of five rows, the first of which hold prompts of different lengths."""
    cache = KVCache(llm.config, 5, 24, dtype=torch.float32, device=torch.device("cpu"))
    prompts = [Prompt(torch.randn(length, llm.config.width), Sampling()) for length in LENGTHS]
    prefill(llm, cache, prompts)
    return cache


@torch.inference_mode()
def both(llm: Decoder, rows: list[int], steps: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Hidden states of some steps in one call each, and layer by layer."""
    one_call, by_layer = filled(llm), filled(llm)
    for store in (one_call, by_layer):  # the same prompts in both
        for mine, first in zip((*store.keys, *store.values), (*by_layer.keys, *by_layer.values), strict=True):
            mine.copy_(first)
    found, expected = [], []
    for _ in range(steps):
        x_BD = torch.randn(len(rows), llm.config.width)
        state_BD = fused_step(llm, one_call, rows, x_BD)
        assert state_BD is not None
        found.append(state_BD)
        attend = by_layer.extend([1] * len(rows), rows)
        expected.append(llm(x_BD, attend.pos_T, attend))
    assert one_call.lengths == by_layer.lengths
    for mine, theirs in zip(one_call.keys, by_layer.keys, strict=True):
        torch.testing.assert_close(mine[:2, :, :3], theirs[:2, :, :3], rtol=1e-4, atol=1e-4)
    return found, expected


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rows", [[0], [1], [2, 0], [0, 1, 2]])
def test_plain_weights(name: str, rows: list[int]) -> None:
    found, expected = both(decoder(VARIANTS[name]), rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_weights(scheme: Scheme) -> None:
    llm = decoder(replace(CONFIG, qkv_bias=True))
    quantize(llm, [(r".*", scheme)])
    found, expected = both(llm, [0, 1, 2])
    # A value near the middle between two steps of eight bits may go either way, by its last place.
    tolerance = 1e-4 if scheme in ("float32", "bfloat16") else 0.03
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_serves_only_what_it_knows() -> None:
    llm = decoder(CONFIG)
    cache, x_BD = filled(llm), torch.randn(1, CONFIG.width)
    with torch.enable_grad():
        assert fused_step(llm, cache, [0], x_BD) is None
    assert fused_step(llm, cache, [0], x_BD.bfloat16()) is None
    add_adapters(llm, [(r"layers\.1\.mlp\.down", LoRA(rank=2))])
    assert fused_step(llm, cache, [0], x_BD) is None
    assert cache.lengths[0] == LENGTHS[0]


def move(llm: Decoder) -> None:
    """Every tensor to another place, as `.to` does."""
    for parameter in llm.layers.parameters():
        parameter.data = parameter.data * 0.9


def replace_weight(llm: Decoder) -> None:
    llm.layers[1].mlp.down.weight = torch.nn.Parameter(torch.randn_like(llm.layers[1].mlp.down.weight))


def replace_block(llm: Decoder) -> None:
    llm.layers[2] = decoder(replace(CONFIG, qkv_bias=True)).layers[2]


def merge(llm: Decoder) -> None:
    torch.manual_seed(3)
    add_adapters(llm, [(r"layers\.1\.mlp\.down", LoRA(rank=2))])
    torch.nn.init.normal_(llm.layers[1].mlp.down.lora_up)
    merge_adapters(llm)


def pack(llm: Decoder) -> None:
    quantize(llm, [(r"layers\.0\..*", "bfloat16")])


def load(llm: Decoder) -> None:
    llm.load_state_dict({name: value * 1.1 for name, value in llm.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [move, replace_weight, replace_block, merge, pack, load])
def test_weights_that_change_between_steps(change: Callable[[Decoder], None]) -> None:
    llm = decoder(CONFIG)
    before, _ = both(llm, [0], steps=1)
    change(llm)
    found, expected = both(llm, [0], steps=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], before[0], rtol=1e-2)


@torch.inference_mode()
def test_a_view_is_kept_with_its_cache_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, x_BD = decoder(CONFIG), torch.randn(1, CONFIG.width)
    cache = filled(llm)
    fused_step(llm, cache, [0], x_BD)
    copied = deepcopy(cache)
    assert copied.view is None
    monkeypatch.setattr(fused_step_module, "_look", None)  # would be called to look again
    assert fused_step(llm, cache, [1], x_BD) is not None
    monkeypatch.undo()
    found = fused_step(llm, copied, [2], x_BD)
    assert torch.equal(found, fused_step(llm, cache, [2], x_BD))
    for copy, original in zip(copied.keys, cache.keys, strict=True):
        assert torch.equal(copy[2, :, : LENGTHS[2] + 1], original[2, :, : LENGTHS[2] + 1])


@torch.inference_mode()
def test_weights_that_a_cache_goes_by_stay_alive() -> None:
    """Those of its first step: what it holds was made with them."""
    llm = decoder(CONFIG)
    cache, other, x_BD = filled(llm), filled(llm), torch.randn(1, CONFIG.width)
    for mine, theirs in zip((*cache.keys, *cache.values), (*other.keys, *other.values), strict=True):
        mine.copy_(theirs)
    fused_step(llm, cache, [0], x_BD)
    fused_step(llm, other, [0], x_BD)
    expected = fused_step(llm, cache, [0], x_BD)
    for block in llm.layers:
        block.mlp.down = torch.nn.Identity()
    del block
    assert torch.equal(fused_step(llm, other, [0], x_BD), expected)


@torch.inference_mode()
def test_another_decoder_over_the_same_cache_is_looked_at() -> None:
    first, second = decoder(CONFIG), decoder(CONFIG)
    replace_block(second)
    cache, x_BD = filled(first), torch.randn(1, CONFIG.width)
    mine = fused_step(first, cache, [0], x_BD)
    cache.lengths[0] -= 1
    assert not torch.allclose(fused_step(second, cache, [0], x_BD), mine)
