"""Loading: golden checkpoints strictly, dtypes, devices, damage, memory, composition."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.checkpoints.load import build, compose, load_model, load_vision, resolve_device, resolve_dtype
from internvl.config import ProjectorConfig
from internvl.errors import ConfigError, DeviceError, WeightsError
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import (
    FAMILIES,
    LARGE_VIT,
    SMALL_VIT,
    chat_config,
    chat_json,
    official_shapes,
    random_state,
    text_config,
    text_json,
    text_shapes,
    vision_json,
    vit_shapes,
    write_json,
    write_official,
)


@pytest.mark.parametrize("name", ["internvl2_5_qwen2", "internvl1_5_internlm2"])
def test_golden_chat_models(golden_dir: Any, name: str) -> None:
    model = load_model(golden_dir / name)
    assert isinstance(model, VLM)
    expected = load_file(golden_dir / name / "expected.safetensors")
    with torch.inference_mode():
        tokens = model.encode_tiles(expected["pixel_values_1"])
    torch.testing.assert_close(tokens, expected["extract_feature"], atol=1e-4, rtol=1e-4)


def test_golden_tower(golden_dir: Any) -> None:
    tower = load_model(golden_dir / "internvit_300m")
    assert isinstance(tower, VisionTower)
    expected = load_file(golden_dir / "internvit_300m" / "expected.safetensors")
    with torch.inference_mode():
        state = tower(expected["rect.pixel_values"])
    torch.testing.assert_close(state, expected["rect.last_hidden_state"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads(tmp_path: Path, family: str) -> None:
    state = write_official(tmp_path, chat_config(family), family)
    model = load_model(tmp_path)
    assert model.config == chat_config(family)
    assert not model.training
    assert torch.equal(model.projector.fc2.bias, state["mlp1.3.bias"])  # type: ignore[union-attr]
    assert all(value.device.type == "cpu" for value in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.float64])
def test_dtypes(tmp_path: Path, dtype: Any) -> None:
    state = write_official(tmp_path, chat_config("qwen2"), "qwen2")
    model = load_model(tmp_path, dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {resolve_dtype(dtype)}
    expected = state["language_model.lm_head.weight"].to(resolve_dtype(dtype))
    assert torch.equal(model.llm.head.weight, expected)  # type: ignore[union-attr]


def test_the_dtype_of_the_file(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    write_official(tmp_path, config, "qwen2")
    write_json({**chat_json(config, "qwen2"), "torch_dtype": "bfloat16"}, tmp_path / "config.json")
    assert next(load_model(tmp_path, dtype="auto").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "half precision", torch.int32])
def test_dtypes_that_cannot_hold_weights(tmp_path: Path, dtype: Any) -> None:
    write_official(tmp_path, chat_config("qwen2"), "qwen2")
    with pytest.raises(DeviceError, match="cannot hold the weights; choose one of float32, bfloat16"):
        load_model(tmp_path, dtype=dtype)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu:zero"])
def test_devices_that_are_not_here(tmp_path: Path, device: str) -> None:
    write_official(tmp_path, chat_config("qwen2"), "qwen2")
    with pytest.raises(DeviceError, match=f"device '{device}' is not available here"):
        load_model(tmp_path, device=device)


def test_devices_that_are_here() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    config = chat_config("internlm2")
    state = write_official(tmp_path, config, "internlm2")
    state["language_model.model.layers.1.attention.wqkv.weight"][3, 2] = bad
    write_official(tmp_path, config, "internlm2", state)
    with pytest.raises(
        WeightsError, match=r"layers\.1\.attention\.wqkv\.weight holds NaN or infinite values"
    ):
        load_model(tmp_path)
    assert isinstance(load_model(tmp_path, check_finite=False), VLM)


def test_weights_that_overflow_the_dtype(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    state = write_official(tmp_path, config, "qwen2")
    state["mlp1.1.bias"][0] = 1e6
    write_official(tmp_path, config, "qwen2", state)
    with pytest.raises(WeightsError, match=r"mlp1\.1\.bias holds .* as torch\.float16"):
        load_model(tmp_path, dtype="float16")


def test_a_template_from_the_caller(tmp_path: Path) -> None:
    config = chat_config("qwen2")
    write_official(tmp_path, config, "qwen2")
    write_json({**chat_json(config, "qwen2"), "template": None}, tmp_path / "config.json")
    with pytest.raises(ConfigError, match="pass template="):
        load_model(tmp_path)
    assert load_model(tmp_path, template="Hermes-2").config.template == "Hermes-2"  # type: ignore[union-attr]


def test_a_language_model_alone_is_no_model_to_load(tmp_path: Path) -> None:
    language_model(tmp_path, "qwen2")
    with pytest.raises(ConfigError, match=r"language model alone: join it"):
        load_model(tmp_path)


def test_bin_shards(tmp_path: Path) -> None:
    config = chat_config("internlm2", LARGE_VIT)
    state = write_official(tmp_path, config, "internlm2")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, keys in parts.items():
        torch.save({key: state[key] for key in keys}, tmp_path / file)
    places = {key: file for file, keys in parts.items() for key in keys}
    write_json({"weight_map": places}, tmp_path / "pytorch_model.bin.index.json")
    model = load_model(tmp_path)
    assert torch.equal(model.llm.head.weight, state["language_model.output.weight"])  # type: ignore[union-attr]


def tower(directory: Path) -> dict[str, torch.Tensor]:
    directory.mkdir(exist_ok=True)
    state = random_state(vit_shapes(LARGE_VIT))
    write_json(vision_json(LARGE_VIT), directory / "config.json")
    save_file(state, directory / "model.safetensors")
    return state


def language_model(directory: Path, family: str, **changes: Any) -> dict[str, torch.Tensor]:
    directory.mkdir(exist_ok=True)
    text = text_config(family)
    state = random_state(text_shapes(text, family))
    write_json({**text_json(text, family), **changes}, directory / "config.json")
    save_file(state, directory / "model.safetensors")
    return state


def test_llava_models_take_their_tower_from_elsewhere(tmp_path: Path) -> None:
    vit = tower(tmp_path / "vit")
    chat = language_model(
        tmp_path / "chat", "llama", mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2
    )
    projector = {
        "model.mm_projector.0.weight": torch.ones(24, 16),
        "model.mm_projector.0.bias": torch.ones(24),
    }
    projector |= {
        "model.mm_projector.2.weight": torch.ones(24, 24),
        "model.mm_projector.2.bias": torch.ones(24),
    }
    save_file({**chat, **projector}, tmp_path / "chat" / "model.safetensors")
    model = load_model(tmp_path / "chat", vision_path=tmp_path / "vit")
    assert torch.equal(model.vit.layers[1].ls2, vit["encoder.layers.1.ls2"])  # type: ignore[union-attr]
    assert torch.equal(model.llm.embed.weight, chat["model.embed_tokens.weight"])  # type: ignore[union-attr]
    assert model.config.projector.shuffle is None  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="pass vision_path"):
        load_model(tmp_path / "chat")


def test_llava_models_may_carry_their_tower(tmp_path: Path) -> None:
    chat = language_model(tmp_path, "llama", mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2)
    vit = random_state(vit_shapes(LARGE_VIT))
    projector = {
        "model.mm_projector.0.weight": torch.ones(24, 16),
        "model.mm_projector.0.bias": torch.ones(24),
    }
    projector |= {
        "model.mm_projector.2.weight": torch.ones(24, 24),
        "model.mm_projector.2.bias": torch.ones(24),
    }
    inner = {f"model.vision_tower.vision_tower.{key}": value for key, value in vit.items()}
    save_file({**chat, **projector, **inner}, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert model.config.vision.qk_norm  # type: ignore[union-attr]
    assert torch.equal(model.vit.layers[0].attn.q_norm.weight, vit["encoder.layers.0.attn.q_norm.weight"])  # type: ignore[union-attr]


def test_composed_of_parts(tmp_path: Path) -> None:
    vit, text = tower(tmp_path / "vit"), language_model(tmp_path / "llm", "internlm2")
    model = compose(tmp_path / "vit", tmp_path / "llm", template="internlm2-chat")
    assert (model.config.vision, model.config.text) == (LARGE_VIT, text_config("internlm2"))
    assert torch.equal(model.vit.layers[0].ls1, vit["encoder.layers.0.ls1"])
    assert torch.equal(model.llm.head.weight, text["output.weight"])
    assert model.encode_tiles(torch.randn(1, 3, 56, 56)).isfinite().all()


@pytest.mark.parametrize("prefix", ["", "mlp1.", "pth:"])
def test_composed_with_a_projector(tmp_path: Path, prefix: str) -> None:
    tower(tmp_path / "vit")
    language_model(tmp_path / "llm", "qwen2")
    shapes = {"0.weight": (64,), "0.bias": (64,), "1.weight": (24, 64), "1.bias": (24,)}
    state = random_state({**shapes, "3.weight": (24, 24), "3.bias": (24,)})
    if prefix == "pth:":
        path = tmp_path / "mlp_projector.pth"
        torch.save(state, path)
    else:
        path = tmp_path / "mlp.safetensors"
        save_file({prefix + key: value for key, value in state.items()}, path)
    model = compose(tmp_path / "vit", tmp_path / "llm", path, template="internvl2_5", dtype="bfloat16")
    assert torch.equal(model.projector.fc1.weight, state["1.weight"].bfloat16())


def test_composed_with_a_projector_of_another_size(tmp_path: Path) -> None:
    tower(tmp_path / "vit")
    language_model(tmp_path / "llm", "qwen2")
    torch.save({"0.weight": torch.ones(3), "0.bias": torch.ones(3)}, tmp_path / "mlp.pth")
    with pytest.raises(WeightsError, match=r"projector in .*mlp\.pth has .* need"):
        compose(tmp_path / "vit", tmp_path / "llm", tmp_path / "mlp.pth", template="internvl2_5")


def test_a_llava_projector_in_a_composition(tmp_path: Path) -> None:
    tower(tmp_path / "vit")
    language_model(tmp_path / "llm", "llama")
    state = random_state({"0.weight": (24, 16), "0.bias": (24,), "2.weight": (24, 24), "2.bias": (24,)})
    torch.save(
        {f"model.mm_projector.{key}": value for key, value in state.items()}, tmp_path / "mm_projector.bin"
    )
    plain = ProjectorConfig(shuffle=None, norm=False)
    model = compose(
        tmp_path / "vit", tmp_path / "llm", tmp_path / "mm_projector.bin", template="plain", projector=plain
    )
    assert torch.equal(model.projector.fc2.weight, state["2.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_language_models_with_one_matrix_for_both_ends(tmp_path: Path, *, tied: bool) -> None:
    tower(tmp_path / "vit")
    text = language_model(tmp_path / "llm", "qwen2", tie_word_embeddings=tied)
    head = text.pop("lm_head.weight")
    save_file(text, tmp_path / "llm" / "model.safetensors")
    if not tied:
        with pytest.raises(WeightsError, match=r"1 missing: lm_head\.weight"):
            compose(tmp_path / "vit", tmp_path / "llm", template="internvl2_5")
        return
    model = compose(tmp_path / "vit", tmp_path / "llm", template="internvl2_5")
    assert torch.equal(model.llm.head.weight, text["model.embed_tokens.weight"])
    assert not torch.equal(model.llm.head.weight, head)
    assert model.llm.head.weight.data_ptr() != model.llm.embed.weight.data_ptr()


def test_only_the_tower_of_a_chat_model(tmp_path: Path) -> None:
    state = write_official(tmp_path, chat_config("qwen2"), "qwen2")
    vision = load_vision(tmp_path, dtype="bfloat16")
    assert vision.config == SMALL_VIT
    expected = state["vision_model.embeddings.position_embedding"].bfloat16()
    assert torch.equal(vision.embed.position, expected)
    language_model(tmp_path / "llm", "qwen2")
    with pytest.raises(ConfigError, match="describes no vision tower"):
        load_vision(tmp_path / "llm")


def test_building_takes_no_storage() -> None:
    assert all(value.is_meta for value in build(chat_config("qwen2")).parameters())


def test_no_compiler_is_imported(tmp_path: Path) -> None:
    """It takes longer than everything else that happens before the first answer."""
    write_official(tmp_path, chat_config("qwen2"), "qwen2")
    program = (
        "import sys; from internvl.checkpoints.load import load_model; load_model(sys.argv[1]); "
        "print('torch._dynamo' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"


MEASURE = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from internvl.checkpoints.load import load_model

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

load_model(sys.argv[1])
for case in sys.argv[2:]:
    if os.fork():
        os.wait()
        continue
    path, dtype = case.split(":")
    load_model(sys.argv[1])  # a fork maps code pages anew
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before, files = kilobytes("VmRSS"), kilobytes("RssFile")
    model = load_model(path, dtype=dtype)
    code = max(0, kilobytes("RssFile") - files)  # pages of libraries that ran for the first time
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    print((kilobytes("VmHWM") - before - code) * 1024 / size, flush=True)
    os._exit(0)
"""
"""The kernel's own peak: ru_maxrss would begin with that of the process that started this one."""

CASES = {
    "as stored": (torch.float32, "model.safetensors", "float32"),
    "narrower": (torch.float32, "model.safetensors", "bfloat16"),
    "wider": (torch.bfloat16, "model.safetensors", "float32"),
    "torch file": (torch.float32, "pytorch_model.bin", "float32"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_while_loading(tmp_path: Path) -> None:
    """At most 1.15 times the weights in the dtype asked for, mapped pages included."""
    write_official(tmp_path / "small", chat_config("internlm2"), "internlm2")
    sizes = {"vocab_size": 32_000, "width": 1024, "num_layers": 4, "head_dim": 128, "mlp_width": 2816}
    config = chat_config("qwen2")
    config = replace(config, text=replace(config.text, **sizes))
    values = chat_json(config, "qwen2")
    values["llm_config"]["head_dim"] = 128
    arguments = [str(tmp_path / "small")]
    for name, (stored, file, dtype) in CASES.items():
        (tmp_path / name).mkdir()
        write_json(values, tmp_path / name / "config.json")
        shapes = official_shapes(config, "qwen2")
        state = {key: torch.ones(shape, dtype=stored) for key, shape in shapes.items()}
        (torch.save if file.endswith("bin") else save_file)(state, tmp_path / name / file)
        arguments.append(f"{tmp_path / name}:{dtype}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    ratios = dict(zip(CASES, map(float, done.stdout.split()), strict=True))
    assert all(0.9 < ratio <= 1.15 for ratio in ratios.values()), ratios
