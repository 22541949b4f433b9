"""Loading by name and path, saving in both layouts, and what cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import internvl
from internvl import ChatModel, ContrastiveModel, VisionModel
from internvl.adapt.quantize import PackedLinear
from internvl.api.load import load_outline, load_texts
from internvl.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    InputError,
    TokenizerError,
    UnknownNameError,
    WeightsError,
)
from internvl.processing.colour import RELEASED_POLICY
from internvl.processing.conversation import from_prompt

QUESTION = {"prompt": "Hello, who are you?", "max_new_tokens": 8}


@pytest.fixture
def copy(golden_dir: Path, tmp_path: Path) -> Path:
    """A golden checkpoint that a test may damage."""
    target = tmp_path / "copy"
    shutil.copytree(golden_dir / "internvl2_5_qwen2", target, ignore=shutil.ignore_patterns("*expected*"))
    return target


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")


@pytest.mark.parametrize("layout", ["official", "hf"])
def test_saved_models_answer_alike(model: ChatModel, tmp_path: Path, layout: str) -> None:
    internvl.save(model, tmp_path / "out", layout)
    again = internvl.load(tmp_path / "out")
    assert isinstance(again, ChatModel)
    assert again.chat_batch([QUESTION])[0].ids == model.chat_batch([QUESTION])[0].ids
    with pytest.raises(CheckpointError, match="out"):
        internvl.save(model, tmp_path / "out", layout)
    internvl.save(model, tmp_path / "out", layout, overwrite=True)


def test_an_outline_prepares_and_has_no_weights(
    golden_dir: Path, model: ChatModel, photo: Image.Image
) -> None:
    outline = load_outline(golden_dir / "internvl2_5_qwen2")
    assert outline is not None
    assert outline.config == model.config
    assert outline.device.type == "meta"
    assert outline.explain("What?", photo) == model.explain("What?", photo)
    assert load_outline(golden_dir / "internvit_300m") is None


def test_saved_towers_give_the_same_features(golden_dir: Path, tmp_path: Path) -> None:
    model = internvl.load(golden_dir / "internvit_300m")
    assert isinstance(model, VisionModel)
    internvl.save(model, tmp_path / "tower")
    again = internvl.load(tmp_path / "tower")
    assert isinstance(again, VisionModel)
    tiles = torch.randn(1, 3, 70, 70)
    assert torch.equal(again.vision_states(tiles)[-1], model.vision_states(tiles)[-1])


def test_saved_pairs_embed_alike(golden_dir: Path, tmp_path: Path) -> None:
    model = internvl.load(golden_dir / "internvl_14b")
    assert isinstance(model, ContrastiveModel)
    internvl.save(model, tmp_path / "out")
    again = internvl.load(tmp_path / "out")
    assert isinstance(again, ContrastiveModel)
    assert again.config == model.config
    tiles, texts = torch.randn(2, 3, 84, 84), ["a red panda", "一张熊猫的照片"]
    assert torch.equal(again.embed_images(tiles, "G"), model.embed_images(tiles, "G"))
    assert torch.equal(again.embed_texts(texts), model.embed_texts(texts))
    before, after = (
        load_file(folder / "model.safetensors") for folder in (golden_dir / "internvl_14b", tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UnknownNameError, match="layout 'hf'; there are official"):
        internvl.save(model, tmp_path / "hf", "hf")


def test_the_text_side_of_a_pair(golden_dir: Path) -> None:
    model = internvl.load(golden_dir / "internvl_14b")
    assert isinstance(model, ContrastiveModel)
    texts = ["a red panda", "一张熊猫的照片"]
    assert torch.equal(load_texts(golden_dir / "internvl_14b").embed_texts(texts), model.embed_texts(texts))
    with pytest.raises(ConfigError, match="is a chat model"):
        load_texts(golden_dir / "internvl2_5_qwen2")


def test_a_tokenizer_that_lies_elsewhere(golden_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden_dir / "internvl_14b" / name, folder)
    with pytest.raises(TokenizerError, match="model"):
        internvl.load(folder)
    model = internvl.load(folder, tokenizer=golden_dir / "internvl_14b")
    assert isinstance(model, ContrastiveModel)
    internvl.save(model, tmp_path / "out")
    again = internvl.load(tmp_path / "out")
    assert isinstance(again, ContrastiveModel)
    assert torch.equal(again.embed_texts("a car"), model.embed_texts("a car"))


def test_dtypes(copy: Path) -> None:
    model = internvl.load(copy, dtype="bfloat16")
    assert isinstance(model, ChatModel)
    assert {parameter.dtype for parameter in model.vlm.parameters()} == {torch.bfloat16}
    assert model.chat_batch([QUESTION])[0].usage.new_tokens > 0


def test_template_and_system_message_can_be_chosen(copy: Path) -> None:
    edit(copy, system_message="Be brief.")
    first = internvl.load(copy)
    assert isinstance(first, ChatModel)
    assert "Be brief." in first.explain("Hi").text
    other = internvl.load(copy, template="Hermes-2@2024-05")
    assert isinstance(other, ChatModel)
    assert other.config.template == "Hermes-2@2024-05"


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="InternVL2_5-1B"):
        internvl.load("InternVL2_5-1BB")


@pytest.mark.parametrize("scheme", ["float32", "bfloat16", "int8", "int4", {r"llm\..*": "int8"}])
def test_packed(copy: Path, scheme: str | dict[str, str]) -> None:
    model = internvl.load(copy, quantize=scheme)
    assert isinstance(model, ChatModel)
    assert isinstance(model.vlm.llm.head, PackedLinear)
    assert isinstance(model.vlm.vit.layers[0].mlp.fc1, PackedLinear) == isinstance(scheme, str)
    reply = model.chat("What is this?", images=[Image.new("RGB", (60, 40), "red")], max_new_tokens=3)
    assert reply.usage.new_tokens > 0
    with pytest.raises(CheckpointError, match="packed for the kernels"):
        internvl.save(model, copy / "out")


def test_what_cannot_be_packed(copy: Path) -> None:
    with pytest.raises(InputError, match="no scheme 'int3'"):
        internvl.load(copy, quantize="int3")
    with pytest.raises(InputError, match="compute in float32, not on cpu in bfloat16"):
        internvl.load(copy, quantize="int8", dtype="bfloat16")


@pytest.mark.parametrize(("values", "message"), [({"device": "cuda:7"}, "cuda"), ({"dtype": "int3"}, "int3")])
def test_devices_and_dtypes_that_are_not_there(copy: Path, values: dict[str, str], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        internvl.load(copy, **values)  # type: ignore[arg-type]


def test_truncated_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        internvl.load(copy)


def test_weights_that_are_not_finite(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["mlp1.1.weight"][3, 4] = float("nan")
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=r"mlp1\.1\.weight|projector\.fc1\.weight"):
        internvl.load(copy)


def test_missing_unexpected_and_misshapen_weights(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["mlp1.1.bias"]
    tensors["mlp1.9.bias"] = torch.zeros(3)
    tensors["mlp1.3.bias"] = torch.zeros(5)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        internvl.load(copy)
    assert all(name in str(caught.value) for name in ("mlp1.1.bias", "mlp1.9.bias", "mlp1.3.bias"))


def test_a_vocabulary_smaller_than_the_ids(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[f"language_model.{name}"] = tensors[f"language_model.{name}"][:500].clone()
    save_file(tensors, copy / "model.safetensors")
    edit(copy, llm_config={**config["llm_config"], "vocab_size": 500})
    with pytest.raises(TokenizerError, match="500"):
        internvl.load(copy)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"template": "no-such"}, (ConfigError, UnknownNameError), "no-such"),
        ({"template": None}, ConfigError, "template"),
        ({"ps_version": "v3"}, ConfigError, "v3"),
        ({"llm_config": {"architectures": ["OtherForCausalLM"]}}, ConfigError, "OtherForCausalLM"),
        ({"force_image_size": 90}, ConfigError, "90"),
    ],
)
def test_configurations_that_cannot_be_built(
    copy: Path, values: dict[str, object], error: type[Exception], message: str
) -> None:
    edit(copy, **values)
    with pytest.raises(error, match=message):
        internvl.load(copy)


def test_directories_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        internvl.load(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError):
        internvl.load(tmp_path)


def test_saving_needs_no_source_any_more(copy: Path, tmp_path: Path) -> None:
    model = internvl.load(copy)
    assert isinstance(model, ChatModel)
    expected = model.chat_batch([QUESTION])[0].ids
    shutil.rmtree(copy)
    internvl.save(model, tmp_path / "out")
    again = internvl.load(tmp_path / "out")
    assert isinstance(again, ChatModel)
    assert again.chat_batch([QUESTION])[0].ids == expected


def test_the_tokenizer_is_looked_at_before_the_weights(copy: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / name).unlink()
    path = copy / "model.safetensors"
    tensors = load_file(path)
    tensors["mlp1.1.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(TokenizerError):
        internvl.load(copy)


def test_a_tower_keeps_its_normalisation(golden_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tower"
    shutil.copytree(golden_dir / "internvit_300m", folder)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}), encoding="utf-8")
    model = internvl.load(folder)
    assert isinstance(model, VisionModel)
    assert model.normalization == "siglip"
    internvl.save(model, tmp_path / "again")
    again = internvl.load(tmp_path / "again")
    assert isinstance(again, VisionModel)
    assert again.normalization == "siglip"


def test_released_treatment_of_transparency_can_be_had(copy: Path) -> None:
    image = Image.new("RGBA", (84, 84), (255, 0, 0, 0))
    plain, released = (internvl.load(copy, policy=policy) for policy in (None, RELEASED_POLICY))
    keys = [
        model.processor(from_prompt("", [image])).image_keys  # type: ignore[union-attr, operator]
        for model in (plain, released)
    ]
    assert keys[0] != keys[1]
