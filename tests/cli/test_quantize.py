"""A model packed on disk: what is told, what is refused, and that it answers as the packed one in memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

import internvl
from internvl.adapt.activation_aware import Inputs, balance
from internvl.api.chat import ChatModel
from internvl.checkpoints.load import Model
from internvl.cli.main import DONE, FAILED, WRONG_USE
from internvl.cli.quantize import parse_rules
from internvl.errors import InputError
from tests.cli.conftest import Run


def test_quantize_load_answer(run: Run, model: str, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    document = run("quantize", model, str(out), "--pictures", photo, "--json").json
    assert document["packed"] == "17 layers int8, 2 bfloat16"
    assert document["measured"]["vision_cosine"] > 0.999
    assert document["measured"]["pictures"] == 1
    mapped, packed = internvl.load(out), internvl.load(model, quantize="int8")
    assert isinstance(mapped, ChatModel)
    assert isinstance(packed, ChatModel)
    answers = [one.chat("What is this?", images=[photo], max_new_tokens=8).ids for one in (mapped, packed)]
    assert answers[0] == answers[1]


def test_what_is_told(run: Run, model: str, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    words = (
        "quantize",
        model,
        str(out),
        "--scheme",
        "bfloat16",
        "--rule",
        r"llm\..*=int8",
        "--pictures",
        photo,
    )
    finished = run(*words)
    assert finished.status == DONE
    assert finished.out == f"{out}\n"
    assert "vision tokens have a cosine of 1.00000" in finished.err
    found = run("info", str(out), "--json").json
    assert found["layout"] == "packed"
    assert "int8" in found["packed"]
    assert found["measured"]["agreement"] <= 1
    explained = run("explain", photo, "What?", "--model", str(out), "--json").json
    assert explained["memory"]["weight_bytes"] == pytest.approx(
        (out / "model.safetensors").stat().st_size, rel=0.05
    )
    assert run(*words).status == FAILED  # the directory is not empty
    assert run(*words, "--overwrite").status == DONE


def test_a_loss_is_refused_unless_allowed(
    run: Run, model: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights of this size stay above the real bound in any format.
    monkeypatch.setattr("internvl.api.packing.LEAST_COSINE", 0.9999999)
    words = ("quantize", model, str(tmp_path / "out"), "--rule", "vit.*=int4", "--pictures", photo)
    refused = run(*words)
    assert refused.status == WRONG_USE
    assert "below 0.9999999" in refused.err
    assert not (tmp_path / "out").exists()
    assert run(*words, "--allow-loss").status == DONE
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["measured"]["vision_cosine"] < 0.9999999


def test_activation_aware_scaling(
    run: Run, model: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers in four bits are scaled for rows that were seen; what is written can be asked."""
    scaled: dict[str, int] = {}

    def spy(network: Model, inputs: Mapping[str, Inputs], names: Collection[str]) -> list[str]:
        scaled.update({name: inputs[name].rows for name in names})
        return balance(network, inputs, names)

    monkeypatch.setattr("internvl.api.packing.balance", spy)
    out = str(tmp_path / "packed")
    words = ("quantize", model, out, "--scheme", "int4", "--pictures", photo, "--activation-aware")
    assert run(*words).status == DONE
    assert {"llm.layers.0.attn.qkv", "llm.layers.1.mlp.down"} <= scaled.keys()
    assert not any(name.startswith("vit") for name in scaled)
    assert min(scaled.values()) > 4
    assert run("chat", out, photo, "What?", "--max-new-tokens", "4").status == DONE


def test_activation_aware_scaling_needs_four_bits(run: Run, model: str, photo: str, tmp_path: Path) -> None:
    refused = run("quantize", model, str(tmp_path / "x"), "--pictures", photo, "--activation-aware")
    assert refused.status == WRONG_USE
    assert "int4 layers of a language model: there are none" in refused.err


def test_what_else_a_packed_checkpoint_refuses(run: Run, model: str, photo: str, tmp_path: Path) -> None:
    out = str(tmp_path / "packed")
    assert run("quantize", model, out, "--pictures", photo).status == DONE
    converted = run("convert", out, str(tmp_path / "converted"), "--layout", "hf")
    assert converted.status == FAILED
    assert "take the checkpoint it was made from" in converted.err
    again = run("quantize", out, str(tmp_path / "again"), "--pictures", photo)
    assert "pack only once" in again.err
    assert "leave quantize out" in run("chat", out, photo, "What?", "--quantize", "int8").err


def test_the_tower_alone(run: Run, tower: str, photo: str, tmp_path: Path) -> None:
    out = str(tmp_path / "packed")
    assert run("quantize", tower, out, "--scheme", "bfloat16", "--pictures", photo).status == DONE
    assert run("features", photo, "--model", out, "--json").status == DONE


def test_rules() -> None:
    assert parse_rules([r"llm\..*=int4", "a=b=int8"]) == {r"llm\..*": "int4", "a=b": "int8"}
    for wrong in ("int8", "=int8"):
        with pytest.raises(InputError, match="PATTERN=SCHEME"):
            parse_rules([wrong])
