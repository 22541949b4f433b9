"""From what is shipped back to a base with adapters, and to the same files again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from internvl.adapt.lora import LoRA, add_adapters, merge_adapters
from internvl.checkpoints import nano
from internvl.checkpoints.adapters import load_adapters
from internvl.checkpoints.deltas import apply_deltas, read_deltas, write_deltas
from internvl.checkpoints.load import Model, build, load_model
from internvl.checkpoints.nano import read_files
from internvl.checkpoints.write import save_model
from internvl.config import ChatConfig, ContrastiveConfig
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import VLM
from internvl.processing.tokenizer import load_tokenizer
from internvl.recipes import nano_assets, nano_c, nano_c_assets, nano_restart
from internvl.training.build_pairs import BuiltPairs, build_pairs
from internvl.training.optim import freeze
from internvl.training.results import check_result, write_result
from tests.conftest import GoldenFixtures
from tests.training.dual import dual_encoder
from tests.training.tiny import chat_model

ADAPTED = r"(qllama|llm)\.layers\.\d+\.(attn|mlp)\..*"
NEW = {
    "nano": (r"vit\.layers\.1\..*", r"projector\..*"),
    "nano-c": (nano_c.QUERIES, r"image_pool\..*", "text_projection"),
}
"""What the two models have beside adapters that no published part has, tiny."""

Name = Literal["nano", "nano-c"]
BOTH: tuple[Name, ...] = ("nano", "nano-c")


class Shipped:
    """A tiny model in place of nano or nano-c: a public start and deltas."""

    def __init__(self, name: Name, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model: VLM | DualEncoder = chat_model() if name == "nano" else dual_encoder()
        torch.manual_seed(0)
        for value in self.model.parameters():
            value.data = torch.randn_like(value).mul_(0.2).bfloat16().float()
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}
        add_adapters(self.model, [(ADAPTED, LoRA(rank=2))])
        for key, value in self.model.named_parameters():
            if ".lora_" in key or key.startswith(("projector.", "image_pool.", "qllama.queries")):
                value.data.add_(torch.randn_like(value) * 0.1)
        write_deltas(self.model, NEW[name], folder / "shipped", torch.bfloat16)
        self.files = read_files(folder / "shipped")
        monkeypatch.setattr(nano_restart, "trained_files", lambda _: self.files)
        monkeypatch.setattr(nano_restart, "fetch_wheel", lambda *_: folder)
        monkeypatch.setattr(nano_restart, "extract", lambda *_: folder)
        monkeypatch.setattr(nano_restart, "config", lambda _: self.model.config)
        monkeypatch.setattr(nano_restart, "write_parts", self.write_parts)

    def assembled(self) -> dict[str, Tensor]:
        return apply_deltas(self.start, read_deltas(self.files), build(self.model.config))

    def write_parts(
        self,
        tower: Path,
        language: Path,
        trained: Mapping[str, Tensor],
        directory: Path,
        config: ChatConfig | ContrastiveConfig,
    ) -> None:
        assert tower == language
        model = build(config)
        state = apply_deltas(self.start, trained, model)
        model.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
        save_model(model, config, directory, tokenizer_files={"tokenizer.json": b"{}"})


def merged(base: Path, adapter: Path) -> Model:
    model = load_model(base)
    load_adapters(model, adapter)
    merge_adapters(model)
    return model


@pytest.mark.parametrize("name", BOTH)
def test_base_and_adapter_are_what_is_shipped(
    name: Name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = Shipped(name, tmp_path, monkeypatch)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    nano_restart.restart(name, base, adapter)
    expected = shipped.assembled()
    assert_close(merged(base, adapter).state_dict(), expected, 1e-5)
    factors = read_deltas(shipped.files)
    for key, value in load_model(base).state_dict().items():
        is_adapted = f"{key.removesuffix('.weight')}.lora_up" in factors
        assert torch.equal(value, shipped.start[key] if is_adapted else expected[key]), key
        assert torch.equal(value, expected[key]) != is_adapted, key
    assert not load_adapters(load_model(base), adapter).replaced


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].float(), value.float(), rtol=tolerance, atol=tolerance, msg=key)


def test_nano_is_shipped_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Shipped("nano", tmp_path, monkeypatch)
    monkeypatch.setattr(nano_assets, "TUNED_BLOCKS", NEW["nano"][0])
    nano_restart.restart("nano", tmp_path / "base", tmp_path / "adapter")
    nano_assets.write(tmp_path / "base", tmp_path / "adapter", tmp_path / "again")
    assert read_files(tmp_path / "again") == shipped.files


def test_nano_c_is_shipped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_dir: GoldenFixtures
) -> None:
    """What a run that learnt nothing hands over is what was shipped."""
    shipped = Shipped("nano-c", tmp_path, monkeypatch)
    base = tmp_path / "base"
    nano_restart.restart("nano-c", base, tmp_path / "adapter")
    model = load_model(base)
    assert isinstance(model, DualEncoder)
    adapted = load_adapters(model, tmp_path / "adapter").modules
    built = BuiltPairs(
        model=model, tokenizer=load_tokenizer(golden_dir / "internvl_14b"), source=base, adapted=adapted
    )
    hand_over(built, tmp_path)
    assert_same(tmp_path / "again", shipped.files)


def assert_same(folder: Path, shipped: Iterable[bytes]) -> None:
    """The same tensors, in whatever order."""
    found, expected = read_deltas(read_files(folder)), read_deltas(shipped)
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


def hand_over(built: BuiltPairs, folder: Path) -> None:
    """The result of nano-c-3 as a run writes it, and what is shipped of that."""
    recipe = nano_c.compare_on()
    freeze(built.model, [(pattern.replace("1[5-9]", "1"), settings) for pattern, settings in recipe.params])
    check_result(built, recipe)
    write_result(built, recipe, folder)
    nano_c_assets.write(folder / "deltas", folder / "model", folder / "again")


def test_the_published_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what is shipped; written once."""
    shipped = Shipped("nano", tmp_path, monkeypatch)
    found = load_model(nano_restart.published(tmp_path / "start")).state_dict()
    for key, value in found.items():
        expected = torch.zeros_like(value) if key.startswith("projector.") else shipped.start[key]
        assert torch.equal(value, expected), key
    written = (tmp_path / "start" / "config.json").stat().st_mtime_ns
    nano_restart.published(tmp_path / "start")
    assert (tmp_path / "start" / "config.json").stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_the_real_ones(name: Name, tmp_path: Path) -> None:
    """Merging rounds once in bfloat16; what is shipped of nano-c comes out again."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    nano_restart.restart(name, base, adapter)
    expected = load_model(nano.assemble(name)).state_dict()
    found = merged(base, adapter).state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].bfloat16().float(), value.float(), rtol=2**-7, atol=1e-6)
    if name == "nano-c":
        recipe = nano_c.compare_on()
        spec = replace(recipe.model, checkpoint=str(base), adapter=str(adapter), frozen_dtype=None)
        hand_over(build_pairs(spec, 0), tmp_path)
        assert_same(tmp_path / "again", nano.read_files(nano._assets(name)))
