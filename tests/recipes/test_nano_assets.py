"""What is shipped of a training, from a checkpoint and adapters."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters, merge_adapters
from internvl.checkpoints.adapters import save_adapters
from internvl.checkpoints.deltas import apply_deltas, read_deltas
from internvl.checkpoints.load import build, load_model
from internvl.checkpoints.nano import read_files
from internvl.checkpoints.write import save_model
from internvl.errors import CheckpointError
from internvl.models.vlm import VLM
from internvl.recipes import nano_assets
from tests.training.tiny import chat_model


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VLM:
    """A model with adapters that was saved as base and adapter."""
    monkeypatch.setattr(nano_assets, "TUNED_BLOCKS", r"vit\.layers\.1\..*")
    torch.manual_seed(0)
    model = chat_model()
    save_model(model, model.config, tmp_path / "base", tokenizer_files={"tokenizer.json": b"{}"})
    add_adapters(model, [(r"llm\.layers\.\d+\.(attn|mlp)\..*", LoRA(rank=2))])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name or name.startswith("projector."):
                value.add_(torch.randn_like(value) * 0.1)
    trained = [name for name, _ in model.named_parameters() if name.startswith("projector.")]
    save_adapters(model, tmp_path / "adapter", trained=trained)
    return model


def test_the_files_make_the_trained_model(result: VLM, tmp_path: Path) -> None:
    digest = nano_assets.write(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    files = read_files(tmp_path / "out")
    assert digest == hashlib.sha256(b"".join(files)).hexdigest()
    base = {
        name: value
        for name, value in load_model(tmp_path / "base").state_dict().items()
        if not name.startswith("projector.")
    }
    found = apply_deltas(base, read_deltas(files), build(result.config))
    merge_adapters(result)
    for name, value in result.state_dict().items():
        torch.testing.assert_close(found[name].float(), value, rtol=1e-2, atol=1e-2)
    assert not torch.equal(found["llm.layers.1.mlp.down.weight"], base["llm.layers.1.mlp.down.weight"])


@pytest.mark.usefixtures("result")
def test_too_much_to_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano_assets, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1,000"):
        nano_assets.write(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
