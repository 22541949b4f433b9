"""One file of weights: what is read, and what each kind of damage says."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from internvl.checkpoints.lazy import fetch
from internvl.checkpoints.weight_files import read_file
from internvl.errors import WeightsError

STATE = {
    "a": torch.randn(7, 5),
    "b": torch.randn(3, 4, 2).to(torch.bfloat16),
    "c": torch.tensor(1.5, dtype=torch.float16),
    "d": torch.arange(6),
    "e": torch.empty(0, 3),
}


def saved(path: Path, *, zipped: bool = True) -> Path:
    if path.suffix == ".safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ".pt"])
def test_values_shapes_and_dtypes(tmp_path: Path, suffix: str) -> None:
    tensors = read_file(saved(tmp_path / f"x{suffix}"))
    assert tensors.keys() == STATE.keys()
    for name, value in STATE.items():
        assert tensors[name].shape == tuple(value.shape)
        assert tensors[name].dtype == value.dtype
        assert torch.equal(fetch(tensors[name]), value)
        assert torch.equal(fetch(tensors[name], torch.float64), value.double())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_run_of_rows(tmp_path: Path, suffix: str) -> None:
    tensors = read_file(saved(tmp_path / f"x{suffix}"))
    for dtype in (torch.float32, torch.float64):
        out = torch.empty(3, 5, dtype=dtype)
        tensors["a"].rows(out, 2)
        assert torch.equal(out, STATE["a"][2:5].to(dtype))


def test_the_old_torch_format(tmp_path: Path) -> None:
    tensors = read_file(saved(tmp_path / "old.bin", zipped=False))
    assert torch.equal(fetch(tensors["a"]), STATE["a"])


@pytest.mark.parametrize("wrap", [("module",), ("state_dict",), ("model",), ("module", "state_dict")])
def test_weights_filed_under_a_key(tmp_path: Path, wrap: tuple[str, ...]) -> None:
    content: object = STATE
    for key in reversed(wrap):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "x.pth")
    assert read_file(tmp_path / "x.pth").keys() == STATE.keys()


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path / "cut.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    size = len(content[:keep])
    with pytest.raises(WeightsError, match=rf"cut\.safetensors is truncated.*{size} bytes.*fetch it again"):
        read_file(path)


def test_truncated_torch_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "cut.bin")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"cut\.bin \(\d+ bytes\) is truncated or not a torch file"):
        read_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_is_told_or_harmless(tmp_path: Path, *, zipped: bool) -> None:
    """A damaged pickle is another program: it pops empty stacks, calls with wrong arguments, asks for what is
    not there."""
    torch.save(
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        tmp_path / "x.bin",
        _use_new_zipfile_serialization=zipped,
    )
    content, path, chance = (tmp_path / "x.bin").read_bytes(), tmp_path / "x.bin", random.Random(0)
    told = []
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 4))):
            damaged[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(
            damaged[: chance.choice((len(content), len(content), chance.randrange(len(content))))]
        )
        try:
            for tensor in read_file(path).values():
                fetch(tensor)
        except WeightsError as error:
            told.append(str(error))
    assert 0 < len(told) < 1500
    assert all(str(path) in message for message in told)


@pytest.mark.parametrize("content", [b"", b"just some text", b"PK\x03\x04 not really a zip file"])
def test_not_a_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.bin .*not a torch file|x\.bin .*no torch file"):
        read_file(tmp_path / "x.bin")


class Attack:
    """What a hostile checkpoint would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Attack()}, "evil.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.bin holds more than tensors.*pickles can run code"):
        read_file(tmp_path / "evil.bin")
    assert not (tmp_path / "attacked").exists()


def test_the_advice_to_switch_safety_off_is_not_repeated(tmp_path: Path) -> None:
    torch.save({"a": Attack()}, tmp_path / "evil.bin")
    with pytest.raises(WeightsError) as caught:
        read_file(tmp_path / "evil.bin")
    assert "weights_only" not in str(caught.value)
    assert re.search(r"mkdir", str(caught.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not tensors by name"),
        ({}, "holds no tensors by name: it is empty"),
        ({"a": 3}, "holds no tensors by name: .*'a'"),
    ],
)
def test_torch_files_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=message):
        read_file(tmp_path / "x.pt")


def header_file(path: Path, header: object, payload: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return path


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"[" * 20000,
        [1, 2],
        {"a": 3},
        {"a": {"dtype": "F32"}},
        {"a": entry(offsets="xy")},
        {"a": entry(shape=(-1,))},
        {"a": entry(shape=(2,))},
        {"a": entry(), "b": entry()},
        {"a": entry(offsets=(4, 0))},
        {"a": entry(dtype="F7")},
    ],
)
def test_hostile_headers(tmp_path: Path, header: object) -> None:
    path = header_file(tmp_path / "x.safetensors", header, b"\0" * 4)
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        read_file(path)


def test_a_header_length_beyond_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match="header alone is said to take"):
        read_file(tmp_path / "x.safetensors")


def test_unsupported_dtypes_are_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"w in .*x\.safetensors is stored as F8_E4M3"):
        read_file(tmp_path / "x.safetensors")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors")
    tensor = read_file(path)["a"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="it changed on disk"):
        fetch(tensor)


def test_pickle_protocol_of_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": Attack()}, protocol=2))
    with pytest.raises(WeightsError, match=r"x\.bin"):
        read_file(tmp_path / "x.bin")
