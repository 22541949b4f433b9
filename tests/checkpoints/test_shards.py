"""Weights on disk: readable by the safetensors library, split by size, there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from internvl.checkpoints import shards
from internvl.checkpoints.lazy import Held, Lazy
from internvl.checkpoints.read import read_tensors
from internvl.checkpoints.shards import ALIGNMENT, fresh_directory, write_json, write_weights
from internvl.errors import CheckpointError, WeightsError

STATE = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).to(torch.bfloat16),
    "c": torch.tensor(2.0, dtype=torch.float64),
    "d": torch.empty(0, 4),
    "é": torch.arange(3),
}


def lazies() -> dict[str, Lazy]:
    return {name: Held(value, name) for name, value in STATE.items()}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    write_weights(lazies(), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == STATE.keys()
    assert all(found[name].dtype == value.dtype for name, value in STATE.items())
    assert all(torch.equal(found[name], value) for name, value in STATE.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_begin_on_multiples_of_their_width(tmp_path: Path) -> None:
    write_weights(lazies(), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % ALIGNMENT == 0
    for name, value in STATE.items():
        assert header[name]["data_offsets"][0] % value.element_size() == 0


def test_what_fills_whole_lines_begins_on_one(tmp_path: Path) -> None:
    sizes = {"a": 3, "b": 64, "c": 5, "d": 16}
    state = {name: torch.ones(size) for name, size in sizes.items()}
    state["b"] = state["b"].to(torch.int8)
    write_weights({name: Held(value, name) for name, value in state.items()}, tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [header[name]["data_offsets"][0] for name in "dbac"] == [0, 64, 128, 140]


@pytest.mark.parametrize("limit", [1, 30, 61, 80])
def test_shards_keep_to_the_limit(tmp_path: Path, limit: int) -> None:
    write_weights(lazies(), tmp_path, limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert {path.name for path in files} == set(index["weight_map"].values())
    for path in files:
        state = load_file(path)
        assert len(state) == 1 or sum(value.nbytes for value in state.values()) <= limit
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in STATE.values())
    assert read_tensors(tmp_path).keys() == STATE.keys()


def test_a_tensor_larger_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvl.checkpoints.lazy.CHUNK_BYTES", 8)
    write_weights(lazies(), tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], STATE["a"])


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nothing to write: 0 tensors"):
        write_weights({}, tmp_path)
    with pytest.raises(WeightsError, match="shards of 0 bytes"):
        write_weights(lazies(), tmp_path, 0)


def test_a_dtype_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"z is torch\.complex64"):
        write_weights({"z": Held(torch.zeros(2, dtype=torch.complex64))}, tmp_path)


def test_half_of_a_surrogate_pair_is_written_as_json_has_it(tmp_path: Path) -> None:
    values = {"half": "这 \ud800", "source": os.fsdecode(b"\xff")}
    write_json(values, tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "这 \\ud800" in text
    assert json.loads(text) == values


def left_behind(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with fresh_directory(target) as directory:
        (directory / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert left_behind(target.parent) == ["model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with fresh_directory(tmp_path / "model") as directory:
            (directory / "x").write_text("1")
            raise error

    with pytest.raises(error):
        write()
    assert left_behind(tmp_path) == []


def test_a_full_disk(tmp_path: Path) -> None:
    def write() -> None:
        with fresh_directory(tmp_path / "model"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    with pytest.raises(CheckpointError, match=r"cannot write model\.safetensors: No space left"):
        write()
    assert left_behind(tmp_path) == []


def test_files_are_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("1")
    with (
        pytest.raises(CheckpointError, match=r"is not empty; .* overwrite=True"),
        fresh_directory(tmp_path / "model"),
    ):
        pass
    assert (tmp_path / "model" / "precious").read_text() == "1"


def old_checkpoint(directory: Path, *others: str) -> list[str]:
    """A directory with the files that published ones have; their names."""
    names = [".gitattributes", "LICENSE", "README.md", "config.json", "model.safetensors", "tokenizer.model"]
    directory.mkdir()
    for name in (*names, *others):
        (directory / name).write_text("1")
    return names


def test_overwriting_replaces_the_whole_directory(tmp_path: Path) -> None:
    old_checkpoint(tmp_path / "model")
    with fresh_directory(tmp_path / "model", overwrite=True) as directory:
        (directory / "new").write_text("2")
    assert left_behind(tmp_path / "model") == ["new"]
    assert left_behind(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["thesis.tex", "photo.jpg", "notes", ".env"])
def test_what_is_no_checkpoint_is_not_overwritten(tmp_path: Path, name: str) -> None:
    old_checkpoint(tmp_path / "model", name)
    with (
        pytest.raises(CheckpointError, match=rf"{name} would be lost, .* move what you want to keep"),
        fresh_directory(tmp_path / "model", overwrite=True),
    ):
        pass
    assert name in left_behind(tmp_path / "model")
    assert left_behind(tmp_path) == ["model"]


def test_directories_inside_and_directories_of_another_kind_are_not_overwritten(tmp_path: Path) -> None:
    old_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "runs").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "diary.md").write_text("1")
    for name, message in (("model", "runs/ would be lost"), ("texts", "it has no config.json")):
        with (
            pytest.raises(CheckpointError, match=message),
            fresh_directory(tmp_path / name, overwrite=True),
        ):
            pass
    assert (tmp_path / "texts" / "diary.md").read_text() == "1"


def test_a_failed_overwrite_leaves_the_old_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = old_checkpoint(tmp_path / "model")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        return rename(self, target)

    monkeypatch.setattr(shards.Path, "rename", refuse)
    with (
        pytest.raises(CheckpointError, match="Permission denied"),
        fresh_directory(tmp_path / "model", overwrite=True) as directory,
    ):
        (directory / "new").write_text("2")
    assert left_behind(tmp_path / "model") == files


def test_what_a_kill_in_the_middle_of_a_replacement_left_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "model[1]"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    move = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return move(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt), fresh_directory(directory, overwrite=True):
            pass
    assert not directory.exists()
    with pytest.raises(CheckpointError, match="is not empty"), fresh_directory(directory):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model[1]"]
    assert (directory / "config.json").read_text() == "{}"


def test_an_empty_directory_will_do_but_a_file_will_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with fresh_directory(tmp_path / "empty") as directory:
        (directory / "x").write_text("1")
    assert left_behind(tmp_path / "empty") == ["x"]
    (tmp_path / "file").write_text("1")
    with (
        pytest.raises(CheckpointError, match="is a file, not a directory"),
        fresh_directory(tmp_path / "file"),
    ):
        pass
