"""Round trip of every layout and family; our names are those of the models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from internvl.checkpoints.layouts import (
    FAMILIES as ALL_FAMILIES,
)
from internvl.checkpoints.layouts import (
    HF,
    HF_UNPREFIXED,
    HF_VISION,
    LAYOUTS,
    LLAVA,
    OFFICIAL,
    TEXT,
    TIMM,
    VISION,
    Layout,
    family_called,
)
from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.load import build
from internvl.checkpoints.rules import Heads, convert, strictly
from internvl.config import ChatConfig, ProjectorConfig, VisionConfig
from internvl.errors import UnknownNameError, WeightsError
from internvl.models.decoder import Decoder
from tests.checkpoints.tiny import (
    FAMILIES,
    LARGE_VIT,
    SMALL_VIT,
    State,
    chat_config,
    equal,
    of,
    official_state,
    random_state,
    text_config,
    text_shapes,
    vit_shapes,
)

TOWERS = {"300M": SMALL_VIT, "6B": LARGE_VIT}


def there(state: State, layout: Layout, family: str | None, heads: Heads) -> dict[str, Tensor]:
    held: dict[str, Lazy] = {name: Held(value, name) for name, value in state.items()}
    ours = strictly(convert(held, layout.rules(of(family) if family else None), heads))
    return {name: fetch(value) for name, value in ours.items()}


def back(ours: State, layout: Layout, family: str | None, heads: Heads) -> dict[str, Tensor]:
    held: dict[str, Lazy] = {name: Held(value, name) for name, value in ours.items()}
    theirs = strictly(convert(held, layout.rules(of(family) if family else None), heads, back=True))
    return {name: fetch(value) for name, value in theirs.items()}


def heads_of(config: ChatConfig) -> Heads:
    return Heads(config.text.num_heads, config.text.num_kv_heads)


def shapes_of(config: ChatConfig | VisionConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in build(config).state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_official_round_trip(family: str, tower: str, dtype: torch.dtype) -> None:
    config = chat_config(family, TOWERS[tower])
    state = official_state(config, family, dtype)
    ours = there(state, OFFICIAL, family, heads_of(config))
    assert {name: tuple(value.shape) for name, value in ours.items()} == shapes_of(config)
    assert equal(back(ours, OFFICIAL, family, heads_of(config)), state)


@pytest.mark.parametrize("layout", [HF, HF_UNPREFIXED], ids=lambda layout: layout.name)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_hf_round_trip(family: str, tower: str, layout: Layout) -> None:
    config = chat_config(family, TOWERS[tower])
    ours = there(official_state(config, family), OFFICIAL, family, heads_of(config))
    theirs = back(ours, layout, family, heads_of(config))
    assert layout.anchor in theirs
    assert equal(there(theirs, layout, family, heads_of(config)), ours)


def test_internlm2_becomes_llama_and_internlm2_again() -> None:
    config = chat_config("internlm2")
    state = official_state(config, "internlm2")
    ours = there(state, OFFICIAL, "internlm2", heads_of(config))
    as_llama = back(ours, OFFICIAL, "llama", heads_of(config))
    assert "language_model.model.layers.1.self_attn.k_proj.weight" in as_llama
    again = there(as_llama, OFFICIAL, "llama", heads_of(config))
    assert equal(back(again, OFFICIAL, "internlm2", heads_of(config)), state)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("layout", [VISION, HF_VISION, TIMM], ids=lambda layout: layout.name)
def test_vision_round_trip(layout: Layout, tower: str) -> None:
    state = random_state(vit_shapes(TOWERS[tower]))
    ours = there(state, VISION, None, Heads(1, 1))
    assert {name: tuple(value.shape) for name, value in ours.items()} == shapes_of(TOWERS[tower])
    theirs = back(ours, layout, None, Heads(1, 1))
    assert layout.anchor in theirs
    assert equal(there(theirs, layout, None, Heads(1, 1)), ours)


def test_timm_names_are_those_of_the_pth_file() -> None:
    ours = there(random_state(vit_shapes(LARGE_VIT)), VISION, None, Heads(1, 1))
    theirs = back(ours, TIMM, None, Heads(1, 1))
    assert {name for name in theirs if not name.startswith("blocks.1")} == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        *(
            f"blocks.0.{name}"
            for name in (
                "norm1.weight",
                "norm2.weight",
                "attn.qkv.weight",
                "attn.proj.weight",
                "attn.proj.bias",
                "attn.q_norm.weight",
                "attn.k_norm.weight",
                "ls1.gamma",
                "ls2.gamma",
                "mlp.fc1.weight",
                "mlp.fc1.bias",
                "mlp.fc2.weight",
                "mlp.fc2.bias",
            )
        ),
    }


def test_the_poolers_of_the_pth_file_are_left_behind() -> None:
    ours = there(random_state(vit_shapes(LARGE_VIT)), VISION, None, Heads(1, 1))
    theirs = back(ours, TIMM, None, Heads(1, 1))
    theirs["clip_projector.cross_attn.q.weight"] = torch.ones(2, 2)
    theirs["logit_scale"] = torch.tensor(1.0)
    assert equal(there(theirs, TIMM, None, Heads(1, 1)), ours)


def test_llava_round_trip() -> None:
    config = chat_config("llama", LARGE_VIT, projector=ProjectorConfig(shuffle=None, norm=False))
    shapes = {f"model.vision_tower.vision_tower.{k}": v for k, v in vit_shapes(LARGE_VIT).items()}
    shapes |= text_shapes(config.text, "llama")
    shapes |= {"model.mm_projector.0.weight": (24, 16), "model.mm_projector.0.bias": (24,)}
    shapes |= {"model.mm_projector.2.weight": (24, 24), "model.mm_projector.2.bias": (24,)}
    state = random_state(shapes)
    ours = there(state, LLAVA, "llama", heads_of(config))
    assert {name: tuple(value.shape) for name, value in ours.items()} == shapes_of(config)
    assert equal(back(ours, LLAVA, "llama", heads_of(config)), state)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "internlm2"])
def test_language_models_on_their_own(family: str) -> None:
    text = text_config(family)
    heads = Heads(text.num_heads, text.num_kv_heads)
    state = random_state(text_shapes(text, family))
    ours = there(state, TEXT, family, heads)
    with torch.device("meta"):
        decoder = Decoder(text)
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in decoder.state_dict().items()
    }
    assert equal(back(ours, TEXT, family, heads), state)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_unknown_keys_are_named_in_every_layout(layout: Layout) -> None:
    state = {"language_model.model.layers.0.self_attn.strange.weight": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"self_attn\.strange\.weight"):
        there(state, layout, "llama", Heads(2, 1))


def test_rotary_buffers_are_read_past() -> None:
    config = chat_config("llama")
    state = official_state(config, "llama")
    inverse = "language_model.model.layers.1.self_attn.rotary_emb.inv_freq"
    buffers = {inverse: torch.ones(2)}
    buffers["vision_model.embeddings.position_ids"] = torch.arange(3)
    ours = there({**state, **buffers}, OFFICIAL, "llama", heads_of(config))
    assert equal(back(ours, OFFICIAL, "llama", heads_of(config)), state)


def test_families_by_name() -> None:
    assert [family_called(family.architecture) for family in ALL_FAMILIES] == list(ALL_FAMILIES)
    with pytest.raises(UnknownNameError, match=r"family 'gpt2'; there are llama, internlm2"):
        family_called("gpt2")
