"""Directories of weights: which files count, and what is wrong with the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from internvl.checkpoints.lazy import fetch
from internvl.checkpoints.read import read_json, read_tensors
from internvl.errors import CheckpointError, WeightsError

ONE, TWO = {"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.full((2, 2), 7.0)}


def sharded(directory: Path, suffix: str = "safetensors") -> Path:
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    for name, state in zip(names, (ONE, TWO), strict=True):
        save_file(state, directory / name) if suffix == "safetensors" else torch.save(state, directory / name)
    index = {"weight_map": {"a": names[0], "b": names[0], "c": names[1]}}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_one_checkpoint(tmp_path: Path, suffix: str) -> None:
    tensors = read_tensors(sharded(tmp_path, suffix))
    assert set(tensors) == {"a", "b", "c"}
    assert torch.equal(fetch(tensors["c"]), TWO["c"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "intern_vit_6b_224px.pth"])
def test_single_files(tmp_path: Path, name: str) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save(ONE, tmp_path / name)
    assert set(read_tensors(tmp_path)) == {"a", "b"}
    assert set(read_tensors(str(tmp_path / name))) == {"a", "b"}


def test_files_of_a_training_run_are_not_weights(tmp_path: Path) -> None:
    torch.save({"lr": 1.0}, tmp_path / "training_args.bin")
    torch.save({"lr": 1.0}, tmp_path / "optimizer.pt")
    torch.save(ONE, tmp_path / "tower.pth")
    assert set(read_tensors(tmp_path)) == {"a", "b"}


def test_no_such_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or directory: .*nowhere"):
        read_tensors(tmp_path / "nowhere")


def test_a_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"holds no weights .*there is no \.safetensors, \.bin or \.pth"):
        read_tensors(tmp_path)


def test_several_files_without_an_index(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / "x.safetensors")
    save_file(TWO, tmp_path / "y.safetensors")
    with pytest.raises(WeightsError, match=r"it has x\.safetensors, y\.safetensors"):
        read_tensors(tmp_path)


def test_shards_without_an_index(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match=r"has shards .*but none of .*index\.json"):
        read_tensors(tmp_path)


def test_a_missing_shard(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"puts 2 tensors in model-00001-of-00002\.safetensors, which is"):
        read_tensors(tmp_path)


def test_a_truncated_shard_is_named_with_its_sizes(tmp_path: Path) -> None:
    shard = sharded(tmp_path) / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-3])
    sizes = rf"model-00002-of-00002\.safetensors is truncated: {len(content) - 3} bytes of {len(content)}"
    with pytest.raises(WeightsError, match=sizes):
        read_tensors(tmp_path)


def test_a_shard_of_another_checkpoint(tmp_path: Path) -> None:
    save_file({"other": torch.ones(1)}, sharded(tmp_path) / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"puts c in model-00002.*that file does not hold it"):
        read_tensors(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    save_file({**TWO, "a": torch.ones(2)}, sharded(tmp_path) / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match="a is in two shards"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "x.py", "sub/x.safetensors"])
def test_an_index_does_not_lead_outside(tmp_path: Path, place: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(WeightsError, match="is not a weight file beside it"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", ['{"weight_map": [1]}', "{}", '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="has no weight_map"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON"), ("[1]", "holds a JSON list"), ("[" * 100000, "is not valid JSON")],
)
def test_broken_json(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "x.json")


def test_json_of_unreasonable_size(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(" " * 100)
    with pytest.raises(CheckpointError, match="has 100 bytes; over 10 it is not read"):
        read_json(tmp_path / "x.json", limit=10)


def test_an_unreadable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is played by hand."""

    def refuse(self: Path) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*Permission denied"):
        read_tensors(tmp_path)
