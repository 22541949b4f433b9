"""Adapters against PEFT on transformers' own model: the same answers, gradients and files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from internvl.adapt.lora import LoRA, adapters, add_adapters, merge_adapters
from internvl.checkpoints.adapters import load_adapters, save_adapters
from internvl.checkpoints.load import build, load_model
from internvl.checkpoints.write import save_model
from internvl.models.attention import Packed
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import chat_config

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Setting `save_embedding_layers`:UserWarning"
)

IMAGE_TOKEN = 39
EVERYWHERE = r"(llm|vit)\.layers\..*|projector\.fc."
KINDS = {
    "lora": LoRA(rank=3),
    "rslora": LoRA(rank=2, alpha=3, rank_stabilized=True),
    "dora": LoRA(rank=2, magnitude=True),
}


@pytest.fixture
def base(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[VLM, Any]:
    """A random model of the family asked for, ours and transformers'."""
    config = chat_config(getattr(request, "param", "qwen2"))
    model = build(config).to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        value.data.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.2)
    save_model(model, config, tmp_path / "base", "hf", image_token_id=IMAGE_TOKEN)
    theirs = InternVLForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    assert isinstance(model, VLM)
    return model, theirs


def inputs(model: VLM) -> tuple[Tensor, Tensor]:
    ids = torch.arange(16) % IMAGE_TOKEN
    ids[2 : 2 + model.config.tokens_per_tile] = IMAGE_TOKEN
    return ids, torch.linspace(-1, 1, 3 * 56 * 56).view(1, 3, 56, 56)


def our_logits(model: VLM) -> Tensor:
    ids_T, tiles = inputs(model)
    slots_S = (ids_T == IMAGE_TOKEN).nonzero().squeeze(1)
    x_TD = model.embed(ids_T, slots_S, model.encode_tiles(tiles).flatten(0, 1))
    return model.llm.logits(model.llm(x_TD, torch.arange(len(ids_T)), Packed([len(ids_T)])))


def their_logits(model: VLM, theirs: Any) -> Tensor:
    ids_T, tiles = inputs(model)
    return theirs(input_ids=ids_T[None], pixel_values=tiles).logits[0]


def randomize(model: nn.Module) -> None:
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.mul_(1.3) if "magnitude" in name else value.data.normal_(std=0.3)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("base", ["qwen2", "llama", "phi3"], indirect=True)
def test_peft_answers_as_we_do_and_has_our_gradients(
    base: tuple[VLM, Any], kind: str, tmp_path: Path
) -> None:
    model, theirs = base
    add_adapters(model, [(EVERYWHERE, KINDS[kind])])
    randomize(model)
    save_adapters(model, tmp_path / "adapter", "hf")
    peft = PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
    ours, expected = our_logits(model), their_logits(model, peft)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
    ours.log_softmax(-1)[:, 3].sum().backward()
    expected.log_softmax(-1)[:, 3].sum().backward()
    gradients = {
        name: value.grad
        for name, value in peft.named_parameters()
        if "lora_" in name and "vision" not in name
    }
    assert len(gradients) > 8
    down = model.llm.layers[1].mlp.down.lora_down.grad
    key = "base_model.model.model.language_model.layers.1.mlp.down_proj.lora_A.default.weight"
    torch.testing.assert_close(down, gradients[key], atol=1e-4, rtol=1e-3)
    if kind == "dora":
        lengths = model.llm.layers[1].mlp.down.lora_magnitude.grad
        expected = gradients[key.replace("lora_A.default", "lora_magnitude_vector.default")]
        torch.testing.assert_close(lengths, expected, atol=1e-4, rtol=1e-3)
    if key.replace("mlp.down_proj", "self_attn.q_proj") in gradients:
        qkv = model.llm.layers[1].attn.qkv
        for part, parts in (
            ("lora_A", qkv.lora_down.grad.chunk(3)),
            ("lora_B", qkv.lora_up.grad.split(qkv.parts)),
        ):
            for letter, found in zip("qkv", parts, strict=True):
                name = key.replace("mlp.down_proj.lora_A", f"self_attn.{letter}_proj.{part}")
                torch.testing.assert_close(found, gradients[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 2, "target_modules": ["q_proj", "v_proj"]},
        {
            "r": 2,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 4},
            "alpha_pattern": {"gate_proj": 5},
        },
        {"r": 3, "target_modules": ["q_proj", "up_proj", "linear_1"], "use_dora": True},
        {
            "r": 3,
            "target_modules": ["o_proj", "lm_head"],
            "use_rslora": True,
            "modules_to_save": ["multi_modal_projector"],
        },
    ],
)
def test_what_peft_writes_loads_here(base: tuple[VLM, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    model, theirs = base
    peft = get_peft_model(theirs, LoraConfig(lora_alpha=6, **settings)).eval()
    randomize(peft)
    for name, value in peft.named_parameters():
        if "modules_to_save" in name:
            value.data.add_(0.1)
    peft.save_pretrained(tmp_path / "adapter")
    expected = their_logits(model, peft)
    before = our_logits(model)
    assert load_adapters(model, tmp_path / "adapter").modules
    torch.testing.assert_close(our_logits(model), expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)
    merge_adapters(model)
    torch.testing.assert_close(our_logits(model), expected, atol=2e-4, rtol=1e-4)


def test_what_was_trained_beside_adapters_loads_in_peft(base: tuple[VLM, Any], tmp_path: Path) -> None:
    """A module is stored whole; a parameter that stands beside modules, such as the positions, alone."""
    model, theirs = base
    add_adapters(model, [(EVERYWHERE, LoRA(rank=2))])
    randomize(model)
    trained = ["vit.embed.position", "projector.norm.weight"]
    for name in trained:
        model.get_parameter(name).data.add_(0.5)
    before = their_logits(model, theirs)
    save_adapters(model, tmp_path / "adapter", "hf", trained=trained)
    peft = PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    expected = our_logits(model)
    torch.testing.assert_close(their_logits(model, peft), expected, atol=2e-4, rtol=1e-4)
    again = load_model(tmp_path / "base")
    assert set(load_adapters(again, tmp_path / "adapter").replaced) == {*trained, "projector.norm.bias"}
    assert isinstance(again, VLM)
    torch.testing.assert_close(our_logits(again), expected)
    for name in trained:
        theirs_then = before - expected  # both count: without them the answers differ by far more
        assert theirs_then.abs().max() > 0.1, name


def test_padding_with_zeros_is_not_trained(base: tuple[VLM, Any], tmp_path: Path) -> None:
    """PEFT adapts query and value alone: the key's factors have no gradient here."""
    model, theirs = base
    get_peft_model(theirs, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).save_pretrained(
        tmp_path / "a"
    )
    load_adapters(model, tmp_path / "a")
    our_logits(model).square().sum().backward()
    qkv = model.llm.layers[0].attn.qkv
    _, key, _ = qkv.lora_down.grad.chunk(3)
    assert not key.any()
    assert not qkv.lora_up.grad.split(qkv.parts)[1].any()
    assert qkv.lora_up.grad.split(qkv.parts)[2].any()


class Nested(nn.Module):
    """Linear layers under the names that a checkpoint has, for PEFT to work on."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for key, value in weights.items():
            *path, leaf = key.removesuffix(".weight").split(".")
            owner: nn.Module = self
            for step in path:
                if not hasattr(owner, step):
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            linear = nn.Linear(value.shape[1], value.shape[0], bias=False)
            linear.weight.data.copy_(value)
            owner.add_module(leaf, linear)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", ["internlm2", "phi3", "qwen2"])
def test_the_official_names(family: str, kind: str, tmp_path: Path) -> None:
    """Merged by PEFT under the published names, the weights are those merged here."""
    from safetensors.torch import load_file

    config = chat_config(family)
    model = build(config).to_empty(device="cpu")
    for value in model.parameters():
        value.data.normal_()
    save_model(model, config, tmp_path / "base", family=family)
    add_adapters(model, [(EVERYWHERE, KINDS[kind])])
    randomize(model)
    assert isinstance(model, VLM)
    save_adapters(model, tmp_path / "adapter", family=family)
    fits = re.compile(r"(vision_model|language_model)\..*layers.*|mlp1\.[13]\.weight")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    linears = {key: value for key, value in stored.items() if fits.fullmatch(key) and value.dim() == 2}
    peft = PeftModel.from_pretrained(Nested(linears), tmp_path / "adapter")
    found = peft.merge_and_unload().state_dict()
    merge_adapters(model)
    save_model(model, config, tmp_path / "merged", family=family)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(found) == set(linears)
    changed = 0
    for key, value in found.items():
        torch.testing.assert_close(value, merged[key], atol=1e-5, rtol=1e-4)
        changed += not torch.equal(merged[key], stored[key])
    assert changed == len(found)
    again = load_model(tmp_path / "base")
    load_adapters(again, tmp_path / "adapter")
    assert len(adapters(again)) == 18
    merge_adapters(again)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-5, rtol=1e-4)
