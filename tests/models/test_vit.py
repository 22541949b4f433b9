"""InternViT: shapes, hidden states, positions, stochastic depth, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.config import VisionConfig
from internvl.errors import ConfigError, InputError
from internvl.models.layers import DropPath
from internvl.models.vit import VisionTower, resize_positions


def test_hidden_states_start_with_the_embeddings(vision_config: VisionConfig) -> None:
    tower = VisionTower(vision_config).eval()
    tiles = torch.randn(2, 3, 56, 56)
    states = tower.hidden_states(tiles)
    assert [tuple(state.shape) for state in states] == [(2, 17, 24)] * 4
    torch.testing.assert_close(states[0], tower.embed(tiles))
    for layer in range(-4, 4):
        torch.testing.assert_close(tower(tiles, layer), states[layer])


def test_earlier_layers_do_not_run_the_later_blocks(vision_config: VisionConfig) -> None:
    tower = VisionTower(vision_config)
    ran: list[int] = []
    for index, block in enumerate(tower.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    tower(torch.randn(1, 3, 56, 56), layer=-3)
    assert ran == [0]


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 84), (98, 42)])
def test_any_multiple_of_the_patch_size(vision_config: VisionConfig, height: int, width: int) -> None:
    out = VisionTower(vision_config)(torch.randn(1, 3, height, width))
    assert out.shape == (1, 1 + (height // 14) * (width // 14), 24)
    assert out.isfinite().all()


def test_resizing_positions_keeps_the_class_entry_and_inverts_at_the_same_size() -> None:
    table = torch.randn(1, 17, 24)
    assert resize_positions(table, 4, 4) is table
    assert torch.equal(resize_positions(table, 3, 7)[:, 0], table[:, 0])
    constant = torch.ones(1, 17, 24)
    torch.testing.assert_close(resize_positions(constant, 9, 5), torch.ones(1, 46, 24))


def test_query_key_norm_spans_all_heads(vision_config: VisionConfig) -> None:
    tower = VisionTower(replace(vision_config, qk_norm=True, norm="rms", qkv_bias=False))
    assert tower.layers[0].attn.q_norm.weight.shape == (24,)
    assert tower.layers[0].attn.qkv.bias is None
    before = tower(torch.ones(1, 3, 56, 56))
    with torch.no_grad():
        tower.layers[0].attn.qkv.weight[:48] *= 7  # q and k are normalised, so their scale cannot matter
    torch.testing.assert_close(tower(torch.ones(1, 3, 56, 56)), before, atol=1e-4, rtol=1e-4)


def test_drop_path_rates_rise_linearly_and_act_in_training_only(vision_config: VisionConfig) -> None:
    tower = VisionTower(replace(vision_config, drop_path=0.4))
    assert [block.drop_path.rate for block in tower.layers] == pytest.approx([0.0, 0.2, 0.4])
    drop = DropPath(0.5)
    x = torch.ones(1000, 2, 3)
    assert torch.equal(drop.eval()(x), x)
    torch.manual_seed(0)
    out = drop.train()(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out[:, 0, 0], out[:, 1, 2])
    assert out.mean().item() == pytest.approx(1.0, abs=0.1)


def test_builds_on_the_meta_device(vision_config: VisionConfig) -> None:
    with torch.device("meta"):
        tower = VisionTower(replace(vision_config, drop_path=0.1))
    assert all(parameter.is_meta for parameter in tower.parameters())


@pytest.mark.parametrize("shape", [(3, 56, 56), (1, 1, 56, 56), (1, 3, 57, 56), (1, 3, 0, 56)])
def test_refuses_other_shapes(vision_config: VisionConfig, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="tiles"):
        VisionTower(vision_config)(torch.zeros(shape))


def test_refuses_layers_that_do_not_exist(vision_config: VisionConfig) -> None:
    with pytest.raises(InputError, match="hidden state 4 does not exist: the tower has 4"):
        VisionTower(vision_config)(torch.zeros(1, 3, 56, 56), layer=4)


def test_refuses_heads_that_do_not_divide(vision_config: VisionConfig) -> None:
    with pytest.raises(ConfigError, match="25"):
        VisionTower(replace(vision_config, width=25))
