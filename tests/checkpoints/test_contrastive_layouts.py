"""The names of InternVL-C and -G: both layouts there and back, also as adapters name them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internvl.adapt.lora import LoRA, add_adapters, merge_adapters
from internvl.checkpoints.adapters import load_adapters, save_adapters
from internvl.checkpoints.convert import convert as rewrite
from internvl.checkpoints.edit import Resize
from internvl.checkpoints.layouts import CONTRASTIVE, LAYOUTS, TIMM_CONTRASTIVE, Layout, family_called
from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.load import build, load_model, load_vision
from internvl.checkpoints.merge import merge_checkpoint
from internvl.checkpoints.read import read_tensors
from internvl.checkpoints.resolve import open_checkpoint
from internvl.checkpoints.rules import Heads, convert, strictly
from internvl.checkpoints.write import save_model
from internvl.config import ContrastiveConfig
from internvl.errors import ConfigError, UnknownNameError, WeightsError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vit import resize_positions
from tests.checkpoints.tiny import State, equal, text_json, write_json
from tests.checkpoints.tiny_contrastive import (
    C_ALONE,
    PAIR,
    TEXT,
    official_state,
    original,
    write_original,
    write_pair,
)

GROUPED = replace(PAIR, text=replace(TEXT, num_kv_heads=2))


def renamed(state: State, layout: Layout, config: ContrastiveConfig, *, back: bool = False) -> State:
    held: dict[str, Lazy] = {name: Held(value, name) for name, value in state.items()}
    heads = Heads(config.text.num_heads, config.text.num_kv_heads)
    found = strictly(convert(held, layout.rules(family_called("llama")), heads, back=back))
    return {name: fetch(value) for name, value in found.items()}


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def stored(path: Path) -> State:
    return {name: fetch(value) for name, value in read_tensors(path).items()}


def load_pair(path: Path) -> DualEncoder:
    model = load_model(path)
    assert isinstance(model, DualEncoder)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [PAIR, GROUPED, C_ALONE], ids=["G", "grouped", "C"])
def test_official_names_there_and_back(config: ContrastiveConfig, dtype: torch.dtype) -> None:
    state = official_state(config, dtype)
    ours = renamed(state, CONTRASTIVE, config)
    assert shapes(ours) == shapes(build(config).state_dict())
    assert equal(renamed(ours, CONTRASTIVE, config, back=True), state)


def test_names_of_the_pth_file_there_and_back() -> None:
    state = official_state(C_ALONE)
    ours = renamed(original(state), TIMM_CONTRASTIVE, C_ALONE)
    assert equal(ours, renamed(state, CONTRASTIVE, C_ALONE))
    assert equal(renamed(ours, TIMM_CONTRASTIVE, C_ALONE, back=True), original(state))


def test_every_anchor_is_found_first_by_its_own_layout() -> None:
    """A layout is found in `LAYOUTS` by the first anchor among the keys."""
    for config, layout in ((PAIR, CONTRASTIVE), (C_ALONE, CONTRASTIVE)):
        keys = official_state(config).keys()
        assert next(one for one in LAYOUTS.values() if one.anchor in keys) is layout
    keys = original(official_state(C_ALONE)).keys()
    assert next(one for one in LAYOUTS.values() if one.anchor in keys) is TIMM_CONTRASTIVE


@pytest.mark.parametrize("config", [PAIR, C_ALONE], ids=["G", "C"])
def test_a_checkpoint_goes_through_a_model_and_back(config: ContrastiveConfig, tmp_path: Path) -> None:
    state = write_pair(tmp_path / "in", config)
    model = load_pair(tmp_path / "in")
    assert model.config == config
    assert not model.training
    save_model(model, model.config, tmp_path / "out", extra_files_from=tmp_path / "in", max_shard_bytes=9e4)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert equal(stored(tmp_path / "out"), state)
    assert load_pair(tmp_path / "out").config == config


def test_saving_without_a_source_says_what_others_need(tmp_path: Path) -> None:
    model = DualEncoder(PAIR)
    save_model(model, PAIR, tmp_path / "out", tokenizer_files={"tokenizer.model": b"pieces"})
    assert load_pair(tmp_path / "out").config == PAIR
    read = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert read["tokenizer.model"] == b"pieces"
    config, pixels = (json.loads(read[name]) for name in ("config.json", "preprocessor_config.json"))
    assert config["auto_map"]["AutoModel"].endswith("--modeling_internvl.InternVLModel")
    assert (config["torch_dtype"], pixels["size"]) == ("float32", 56)
    assert "generation_config.json" in read


def test_what_is_missing_or_left_over_is_named(tmp_path: Path) -> None:
    state = official_state()
    del state["qllama.model.layers.3.cross_attn.v_proj.weight"]
    state["clip_projector3.weight"] = torch.ones(1)
    write_pair(tmp_path, state=state)
    with pytest.raises(
        WeightsError,
        match=r"1 missing: qllama\.model\.layers\.3\.cross_attn\.v_proj\.weight\n"
        r"  1 unexpected: clip_projector3\.weight",
    ):
        load_model(tmp_path)


def test_another_frequency_than_that_of_the_weights(tmp_path: Path) -> None:
    write_pair(tmp_path, cross_attention_frequency=2)
    with pytest.raises(WeightsError, match=r"missing: qllama\.model\.layers\.2\.cross_attn\.norm1\.weight"):
        load_model(tmp_path)


def test_there_is_no_other_layout_to_save_in(tmp_path: Path) -> None:
    model = build(PAIR)
    with pytest.raises(UnknownNameError, match="this model in layout 'hf'; there are official"):
        save_model(model, PAIR, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("beside", ["nothing", "its language model", "everything"])
def test_the_pth_file_with_and_without_a_configuration(beside: str, wrapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "internvl_c_13b_224px.pth"
    state = write_original(path, wrapped=wrapped)
    config, vision = C_ALONE, C_ALONE.vision
    if beside == "everything":
        write_pair(tmp_path, C_ALONE)
        (tmp_path / "model.safetensors").unlink()
    else:  # what no shape says is as in the published model
        config, vision = replace(config, pool_heads=16), replace(vision, num_heads=1, layer_scale_init=0.1)
    if beside == "its language model":
        write_json(text_json(TEXT, "llama"), tmp_path / "config.json")
    if beside == "nothing":
        text = replace(TEXT, num_heads=1, num_kv_heads=1, head_dim=24, max_positions=2048)
        config = replace(config, text=text)
    for place in (path, tmp_path):
        opened = open_checkpoint(place)
        assert opened.description.config == replace(config, vision=vision)
        ours = {name: fetch(value) for name, value in opened.tensors.items()}
        assert equal(ours, renamed(state, CONTRASTIVE, C_ALONE))
        assert opened.unexpected == ()


def test_the_tower_of_a_pair(tmp_path: Path) -> None:
    state = write_pair(tmp_path / "official")
    tower = load_vision(tmp_path / "official")
    assert tower.config == PAIR.vision
    (tmp_path / "original").mkdir()
    write_original(tmp_path / "original" / "c.pth")
    assert load_vision(tmp_path / "original" / "c.pth").config.width == PAIR.vision.width
    rewrite(tmp_path / "official", tmp_path / "tower", "official", part="vit")
    names = {name.removeprefix("vision_model.") for name in state if name.startswith("vision_model.")}
    assert stored(tmp_path / "tower").keys() == names
    with pytest.raises(ConfigError, match="a contrastive model has no llm that works alone"):
        rewrite(tmp_path / "official", tmp_path / "llm", "official", part="llm")


def test_the_pth_file_in_the_official_layout(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    state = write_original(tmp_path / "in" / "c.pth")
    write_json({"tokenizer_class": "LlamaTokenizer"}, tmp_path / "in" / "tokenizer_config.json")
    rewrite(tmp_path / "in" / "c.pth", tmp_path / "out", "official")
    assert equal(stored(tmp_path / "out"), state)
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    config = open_checkpoint(tmp_path / "out").description.config
    assert isinstance(config, ContrastiveConfig)
    assert not config.is_generative


def test_other_sizes_on_the_way(tmp_path: Path) -> None:
    state = write_pair(tmp_path / "in")
    rewrite(tmp_path / "in", tmp_path / "out", "official", sizes=Resize(image_size=84, vocabulary=50))
    model = load_pair(tmp_path / "out")
    assert (model.config.image_size, model.config.vision.image_size, model.config.text.vocab_size) == (
        84,
        84,
        50,
    )
    table = state["vision_model.embeddings.position_embedding"]
    assert torch.equal(model.vit.embed.position, resize_positions(table, 6, 6))
    assert torch.equal(model.generator.embed.weight[:40], state["qllama.model.embed_tokens.weight"])
    changed = {"vision_model.embeddings.position_embedding", "qllama.lm_head.weight"}
    kept = state.keys() - changed - {"qllama.model.embed_tokens.weight"}
    written = stored(tmp_path / "out")
    assert all(torch.equal(written[name], state[name]) for name in kept)


def test_a_fine_tuned_table_beside_the_old_size(tmp_path: Path) -> None:
    """What the released training code leaves behind: 364 px forced, 224 px in the tower's own fields."""
    state = official_state(replace(PAIR, vision=replace(PAIR.vision, image_size=84)))
    write_pair(tmp_path, state=state, force_image_size=84)
    model = load_pair(tmp_path)
    assert model.vit(torch.zeros(1, 3, 84, 84)).shape == (1, 37, 16)
    assert load_vision(tmp_path).config.image_size == model.config.image_size == 84


def test_adapters_trained_inside_are_merged(tmp_path: Path) -> None:
    state = official_state()
    factors = {}
    for name in ("vision_model.encoder.layers.1.attn.qkv", "qllama.model.layers.2.self_attn.v_proj"):
        top, rest = name.split(".", 1)
        weight = state.pop(f"{name}.weight")
        wrapped = f"{top}.base_model.model.{rest}"
        down, up = torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2)
        state[f"{wrapped}.base_layer.weight"] = weight
        state[f"{wrapped}.lora_A.default.weight"], state[f"{wrapped}.lora_B.default.weight"] = down, up
        factors[name] = weight + 2 * up @ down
    write_pair(tmp_path, state=state, use_backbone_lora=2, use_qllama_lora=2)
    model = load_pair(tmp_path)
    qkv = model.vit.get_parameter("layers.1.attn.qkv.weight")
    assert torch.allclose(qkv, factors["vision_model.encoder.layers.1.attn.qkv"], atol=1e-5)
    value = model.generator.get_parameter("layers.2.attn.qkv.weight")[-24:]
    assert torch.allclose(value, factors["qllama.model.layers.2.self_attn.v_proj"], atol=1e-5)


def test_adapters_go_out_come_back_and_are_merged(tmp_path: Path) -> None:
    write_pair(tmp_path / "base")
    model = load_pair(tmp_path / "base")
    names = add_adapters(
        model, [(r"vit\..*|qllama\.layers\..*", LoRA(rank=2))], torch.Generator().manual_seed(1)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("lora_up"):
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapters(model, tmp_path / "adapters")
    other = load_pair(tmp_path / "base")
    assert set(load_adapters(other, tmp_path / "adapters").modules) == set(names)
    report = merge_checkpoint(tmp_path / "base", tmp_path / "adapters", tmp_path / "merged")
    assert report.effect > 100 * report.error
    merge_adapters(model)
    tiles = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        merged = load_pair(tmp_path / "merged")
        ours, theirs = (one.pool_images(one.vit(tiles), generative=True) for one in (model, merged))
    assert torch.allclose(ours, theirs, atol=1e-5)
