"""`internvl merge`: from adapters to a checkpoint that chats."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl.adapt.lora import LoRA, adapters, add_adapters
from internvl.checkpoints.adapters import save_adapters
from internvl.checkpoints.load import load_model
from internvl.cli.main import DONE, FAILED, WRONG_USE
from tests.cli.conftest import Run


@pytest.fixture
def adapter(model: str, tmp_path: Path) -> str:
    loaded = load_model(model)
    add_adapters(loaded, [(r"llm\.layers\..*", LoRA(rank=2))])
    for module in adapters(loaded).values():
        module.lora_up.data.normal_(std=0.1)
    save_adapters(loaded, tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_merged_chats(run: Run, model: str, adapter: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    merged = run("merge", model, adapter, out, "--json")
    assert merged.status == DONE
    assert merged.json["path"] == out
    assert merged.json["error"] < 1e-3 < merged.json["effect"]
    assert "llm.layers.0.attn.qkv" in merged.json["modules"]
    assert run("chat", "Hi", "--model", out, "--max-new-tokens", "2").status == DONE
    again = run("merge", model, adapter, out)
    assert again.status == FAILED
    again = run("merge", model, adapter, out, "--overwrite")
    assert again.out == f"{out}\n"
    assert "merged and verified" in again.err


def test_wrong_use(run: Run, model: str, adapter: str, tmp_path: Path) -> None:
    assert run("merge", model, str(tmp_path / "nothing"), str(tmp_path / "out")).status == FAILED
    assert run("merge", model, adapter, str(tmp_path / "out"), "--shard-gb", "0").status == WRONG_USE
    assert run("merge", model, adapter).status == WRONG_USE
    assert not (tmp_path / "out").exists()
