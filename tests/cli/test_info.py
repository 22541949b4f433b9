"""Installation, zoo rows and checkpoints, as tables and as JSON."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from internvl import zoo
from internvl.cli import machine
from internvl.cli.main import DONE, FAILED, WRONG_USE
from tests.cli.conftest import Run


def test_the_installation(run: Run, tmp_path: Path) -> None:
    document = run("info", "--json").json
    assert document["versions"]["torch"] == torch.__version__
    assert document["machine"]["threads"] == torch.get_num_threads() == 1
    assert document["devices"][0] == "cpu"
    assert document["cache"] == str(tmp_path / "cache")
    assert document["offline"] is True
    assert document["models"] == len(zoo.CARDS)
    assert document["extras"] == machine.extras()
    assert {"video", "pdf", "nano"} <= set(document["extras"])
    table = run("info")
    assert table.status == DONE
    assert torch.__version__ in table.out
    assert all(line == line.rstrip() for line in table.out.splitlines())


def test_extras_that_are_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2", "pip; extra == 'a'", "no-such-thing>=1; extra == 'a'", 'pip>=1; extra == "b"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    assert machine.extras() == {"a": False, "b": True}


def test_the_cache_follows_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    assert run("info", "--json").json["cache"] == "/somewhere/hub"


def test_a_row_of_the_zoo(run: Run) -> None:
    document = run("info", "internvl2.5-1b", "--json").json
    assert document["name"] == "InternVL2_5-1B"
    assert document["tokens_per_tile"] == 256
    assert document["config"]["text"]["num_kv_heads"] == 2
    assert document["parameters"] == pytest.approx(0.94e9, rel=0.01)
    assert document["on_disk"] is None
    assert "938," in run("info", "InternVL2_5-1B").out


def test_every_model_is_listed(run: Run) -> None:
    listed = [row["name"] for row in run("info", "--models", "--json").json["models"]]
    assert listed == list(zoo.names())
    table = run("info", "--models").out
    assert all(name in table for name in listed)


def test_a_chat_checkpoint(run: Run, model: str) -> None:
    document = run("info", model, "--json").json
    assert (document["kind"], document["layout"], document["family"]) == ("chat", "official", "qwen2")
    assert document["config"]["text"]["vocab_size"] == 512
    assert document["parameters"] == document["stored_parameters"]
    assert document["stored_bytes"] == {"float32": 4 * document["parameters"]}
    assert document["files"]["model.safetensors"] > document["stored_bytes"]["float32"]
    assert document["unexpected"] == []
    table = run("info", model)
    assert "model.safetensors" in table.out


def test_a_tower(run: Run, tower: str) -> None:
    document = run("info", tower, "--json").json
    assert document["kind"] == "vision"
    assert "tokens_per_tile" not in document


def test_a_contrastive_checkpoint(run: Run, golden_dir: Path) -> None:
    document = run("info", str(golden_dir / "internvl_14b"), "--json").json
    assert (document["kind"], document["layout"], document["family"]) == (
        "contrastive",
        "contrastive",
        "llama",
    )
    assert document["parameters"] == document["stored_parameters"]
    assert document["config"]["num_queries"] == 12
    assert run("info", "InternVL-14B-Flickr30K-FT-364px", "--json").json["config"]["image_size"] == 364


def test_a_checkpoint_without_weights_is_described(run: Run, model: str, tmp_path: Path) -> None:
    copy = tmp_path / "bare"
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    document = run("info", str(copy), "--json").json
    assert "cannot be opened" in document["weights"]
    assert document["config"]["text"]["vocab_size"] == 512


def test_what_is_no_model(run: Run, tmp_path: Path) -> None:
    unknown = run("info", "InternVL2_5-1")
    assert unknown.status == WRONG_USE
    assert "did you mean InternVL2_5-1B" in unknown.err
    bare = run("info", str(tmp_path))
    assert bare.status == FAILED
    assert "config.json" in bare.err
