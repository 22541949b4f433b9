"""Adapters: equal to torch's own layers, and to themselves after a round trip through a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internvl.errors import CheckpointError, ConfigError, WeightsError
from internvl.integrations.diffusion_adapters import (
    Adapter,
    AddedEmbedding,
    LanguageAdapter,
    LanguageAdapterXL,
    StatePool,
    TextProjection,
    load_adapter,
    save_adapter,
)

STATES = (3, 7, 48)


def small(**layers: int) -> LanguageAdapter:
    return LanguageAdapter(48, 32, 5, **layers)


def xl(pool: str = "projection", added: bool = True) -> LanguageAdapterXL:
    return LanguageAdapterXL(
        LanguageAdapter(48, 24, 5),
        LanguageAdapter(48, 16, 5),
        TextProjection(20, 12) if pool == "projection" else StatePool(5, 40, 12),
        AddedEmbedding(18, 12) if added else None,
    )


FORMS: Mapping[str, Callable[[], Adapter]] = {
    "language": small,
    "language, more layers": lambda: small(num_encoder_layers=2, num_decoder_layers=3),
    "projection": lambda: TextProjection(48, 10),
    "xl": xl,
    "xl, pooled": lambda: xl("pool", added=False),
}


def outputs(adapter: Adapter) -> list[Tensor]:
    torch.manual_seed(1)
    states, pooled = torch.randn(STATES), torch.randn(3, 20)
    given = adapter(states, pooled) if isinstance(adapter, LanguageAdapterXL) else adapter(states)
    return list(given) if isinstance(given, tuple) else [given]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_language_adapter_is_torchs_transformer_under_its_names() -> None:
    adapter = small(num_encoder_layers=2)
    reference = nn.Transformer(32, 8, 2, 1, 128, dropout=0.0, batch_first=True, norm_first=True)
    reference.load_state_dict(
        {
            name.removeprefix("transformer."): value
            for name, value in adapter.state_dict().items()
            if name.startswith("transformer.")
        }
    )
    states = torch.randn(STATES)
    expected = reference(adapter.proj(states), adapter.queries.repeat(3, 1, 1))
    torch.testing.assert_close(adapter(states), expected, atol=1e-5, rtol=1e-5)
    assert adapter(states).shape == (3, 5, 32)


def test_state_pool_is_torchs_attention() -> None:
    pool, x_BQA = StatePool(5, 40, 12), torch.randn(3, 5, 40)
    x_QBA = torch.cat((x_BQA.mean(1, keepdim=True), x_BQA), 1) + pool.positional_embedding
    x_QBA = x_QBA.transpose(0, 1)
    projections = (pool.q_proj, pool.k_proj, pool.v_proj)
    expected, _ = F.multi_head_attention_forward(
        *(x_QBA[:1], x_QBA, x_QBA, 40, 8),
        in_proj_weight=None,
        in_proj_bias=torch.cat([layer.bias for layer in projections]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    torch.testing.assert_close(pool(x_BQA), expected[0], atol=1e-5, rtol=1e-5)


def test_xl_puts_two_adapters_side_by_side() -> None:
    adapter, states, pooled = xl(), torch.randn(STATES), torch.randn(3, 20)
    found = adapter(states, pooled)
    assert torch.equal(found.states_BQA[..., :24], adapter.adapter1(states))
    assert torch.equal(found.states_BQA[..., 24:], adapter.adapter2(states))
    assert torch.equal(found.pooled_BA, adapter.pool_caption_projection(pooled))
    by_states = xl("pool")
    found = by_states(states, pooled)
    assert torch.equal(found.pooled_BA, by_states.pool_caption_projection(found.states_BQA))


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form: str, tmp_path: Path) -> None:
    adapter = FORMS[form]().eval()
    save_adapter(adapter, tmp_path / "adapter.safetensors")
    loaded = load_adapter(tmp_path / "adapter.safetensors")
    assert type(loaded) is type(adapter)
    for ours, theirs in zip(outputs(adapter), outputs(loaded), strict=True):
        assert torch.equal(ours, theirs)
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_published_files_are_state_dicts_of_torch(tmp_path: Path) -> None:
    adapter = xl()
    torch.save(adapter.state_dict(), tmp_path / "sdxl_aesthetic.pth")
    loaded = load_adapter(tmp_path / "sdxl_aesthetic.pth", dtype="bfloat16")
    assert next(loaded.parameters()).dtype == torch.bfloat16
    assert loaded.state_dict().keys() == adapter.state_dict().keys()


def test_published_sizes() -> None:
    """Names of the published files, and their numbers of parameters by hand."""
    with torch.device("meta"):
        adapter = LanguageAdapter(4096, 768)
    shapes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    assert shapes["queries"] == (1, 120, 768)
    assert shapes["transformer.encoder.layers.0.self_attn.in_proj_weight"] == (3 * 768, 768)
    assert shapes["transformer.decoder.layers.0.multihead_attn.out_proj.weight"] == (768, 768)
    assert {"transformer.encoder.norm.weight", "transformer.decoder.norm.bias", "proj.2.bias"} <= {*shapes}
    a, mlp = 768, 2 * 4 * 768 * 768 + 5 * 768
    attention, norm = 4 * a * a + 4 * a, 2 * a
    layers = (attention + mlp + 2 * norm) + (2 * attention + mlp + 3 * norm) + 2 * norm
    expected = (4096 * a + a) + (a * a + a) + 120 * a + layers
    assert sum(value.numel() for value in adapter.parameters()) == expected


def test_adapters_are_trained_on_what_the_encoder_gives() -> None:
    adapter = xl()
    states, pooled = adapter(torch.randn(STATES), torch.randn(3, 20))
    (states.square().mean() + pooled.square().mean()).backward()
    missing = [name for name, value in adapter.named_parameters() if value.grad is None]
    assert all(name.startswith("add_embedding.") for name in missing)


def test_files_that_are_no_adapter_are_refused(tmp_path: Path) -> None:
    good = small().state_dict()
    broken = {
        "nothing": ({"weight": torch.zeros(3)}, "adapter1|proj.0.weight"),
        "lost": ({name: value for name, value in good.items() if "norm2" not in name}, "norm2"),
        "other": ({**good, "extra.weight": torch.zeros(2)}, "extra.weight"),
        "flat": ({**good, "queries": torch.zeros(4)}, "queries"),
        "misshapen": ({**good, "proj.2.weight": torch.zeros(2, 2)}, "proj.2.weight"),
        "nan": ({**good, "queries": torch.full((1, 5, 32), float("nan"))}, "NaN"),
    }
    for name, (state, message) in broken.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match=message):
            load_adapter(tmp_path / f"{name}.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        load_adapter(tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match="heads"):
        LanguageAdapter(48, 20)


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(small(), path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_adapter(small(), path)
    assert path.read_bytes() == before
    save_adapter(small(), path, overwrite=True)
    assert path.read_bytes() != before
    with pytest.raises(CheckpointError, match="safetensors"):
        save_adapter(small(), tmp_path / "adapter.bin")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_adapter(small(), tmp_path / "nowhere" / "adapter.safetensors")
