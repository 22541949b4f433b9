"""What was trained, written apart from its base and put on again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from internvl.adapt.lora import LoRA, add_adapters, merge_adapters
from internvl.checkpoints import deltas
from internvl.checkpoints.deltas import apply_deltas, read_deltas, write_deltas
from internvl.checkpoints.load import build
from internvl.errors import CheckpointError, ConfigError, WeightsError
from internvl.models.vlm import VLM
from tests.training.tiny import chat_model

WHOLE = (r"vit\.layers\.1\..*", r"projector\..*")
LANGUAGE = r"llm\.layers\.\d+\.(attn|mlp)\..*"


def trained(lora: LoRA | None = None) -> tuple[dict[str, Tensor], VLM]:
    """The weights of a base, and the model after a training that moved adapters, projector and a block."""
    torch.manual_seed(0)
    model = chat_model()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    add_adapters(model, [(LANGUAGE, lora or LoRA(rank=2))])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name or name.startswith(("projector.", "vit.layers.1.")):
                value.add_(torch.randn_like(value) * 0.1)
    return base, model


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def shapes_of(model: VLM) -> VLM:
    built = build(model.config)
    assert isinstance(built, VLM)
    return built


@pytest.mark.parametrize("max_bytes", [4e6, 2e3])
def test_base_and_deltas_are_the_merged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: float
) -> None:
    monkeypatch.setattr(deltas, "MAX_FILE_BYTES", max_bytes)
    base, model = trained()
    size = write_deltas(model, WHOLE, tmp_path / "out", torch.float32)
    files = sorted((tmp_path / "out").iterdir())
    assert size == sum(path.stat().st_size for path in files)
    assert {path.name.split("-")[0] for path in files} == {"llm", "projector", "vit"}
    assert (len(files) > 3) == (max_bytes == 2e3)
    assert {path.suffix for path in files} == {".safetensors"}
    found = apply_deltas(base, read_deltas(contents(tmp_path / "out")), shapes_of(model))
    merge_adapters(model)
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert not torch.equal(found["llm.layers.0.attn.qkv.weight"], base["llm.layers.0.attn.qkv.weight"])
    assert torch.equal(found["vit.layers.0.attn.qkv.weight"], base["vit.layers.0.attn.qkv.weight"])


def test_files_and_sums_have_the_dtypes_asked_for(tmp_path: Path) -> None:
    base, model = trained()
    write_deltas(model, WHOLE, tmp_path / "out", torch.bfloat16)
    stored = read_deltas(contents(tmp_path / "out"))
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    half = {name: value.bfloat16() for name, value in base.items()}
    found = apply_deltas(half, stored, shapes_of(model))
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    merge_adapters(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name].float(), value, rtol=2e-2, atol=2e-2)


def test_only_what_was_trained_is_written(tmp_path: Path) -> None:
    _, model = trained()
    write_deltas(model, WHOLE, tmp_path / "out", torch.float32)
    names = set(read_deltas(contents(tmp_path / "out")))
    assert {name for name in names if name.startswith("llm.")} == {
        f"llm.layers.{index}.{module}.lora_{kind}"
        for index in range(2)
        for module in ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
        for kind in ("down", "up")
    }
    assert {name.split(".")[2] for name in names if name.startswith("vit.")} == {"1"}


def test_what_cannot_be_written(tmp_path: Path) -> None:
    _, model = trained()
    with pytest.raises(ConfigError, match="names no parameter"):
        write_deltas(model, (r"vit\.layers\.9\..*",), tmp_path / "out", torch.float32)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "old.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not empty"):
        write_deltas(model, WHOLE, tmp_path / "used", torch.float32)
    _, with_lengths = trained(LoRA(rank=2, magnitude=True))
    with pytest.raises(ConfigError, match="DoRA"):
        write_deltas(with_lengths, WHOLE, tmp_path / "out", torch.float32)
    assert not (tmp_path / "out").exists()


QKV = "llm.layers.0.attn.qkv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vit.layers.7.ls1": torch.zeros(24)}, "vit.layers.7.ls1"),
        ({"vit.layers.1.ls1": torch.zeros(23)}, r"\(23,\), the model has \(24,\)"),
        ({"vit.layers.1.ls1": torch.full((24,), torch.nan)}, "diverged"),
        ({f"{QKV}.lora_up": None}, "without the other"),
        ({f"{QKV}.lora_down": torch.zeros(2, 32)}, "3 products"),
        ({f"{QKV}.lora_up": torch.zeros(63, 2)}, "64 rows"),
        ({"llm.layers.0.norm1.lora_down": torch.zeros(2, 32)}, "no linear module"),
    ],
)
def test_deltas_that_do_not_fit(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    base, model = trained()
    write_deltas(model, WHOLE, tmp_path / "out", torch.float32)
    stored = {**read_deltas(contents(tmp_path / "out")), **change}
    broken = {name: value for name, value in stored.items() if value is not None}
    with pytest.raises(WeightsError, match=message):
        apply_deltas(base, broken, shapes_of(model))


def test_a_base_that_lacks_something() -> None:
    base, model = trained()
    del base["projector.fc1.weight"]
    with pytest.raises(WeightsError, match=r"lack \['projector.fc1.weight'\]"):
        apply_deltas(base, {}, shapes_of(model))


def test_broken_files() -> None:
    one = save({"a": torch.zeros(2)})
    with pytest.raises(WeightsError, match="a is in two files"):
        read_deltas([one, one])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_deltas([one[:-1]])
