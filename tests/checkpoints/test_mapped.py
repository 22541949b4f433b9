"""Packed checkpoints on disk: mapped and equal to packing in memory; damage is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.adapt.quantize import quantize, rules_of
from internvl.checkpoints.encoders import load_text_encoder
from internvl.checkpoints.load import load_model, load_vision
from internvl.checkpoints.mapped import map_tensors
from internvl.checkpoints.pack import pack_model, packing_rules, write_packed
from internvl.checkpoints.read import read_tensors
from internvl.checkpoints.shards import ALIGNMENT
from internvl.checkpoints.write import Target
from internvl.errors import CheckpointError, ConfigError, InputError, WeightsError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import VLM
from internvl.ops.packed import SCHEMES
from tests.checkpoints.tiny import chat_config, equal, write_official
from tests.checkpoints.tiny_contrastive import write_pair

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain")
    write_official(path, chat_config("qwen2"), "qwen2")
    return path


def pack_to(plain: Path, out: Path, scheme: str) -> Path:
    model = load_model(plain)
    assert isinstance(model, VLM)
    packing = pack_model(model, packing_rules(model, scheme, {}))
    write_packed(model, model.config, packing, Target(directory=out, source=plain))
    return out


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mapped_equals_packed_in_memory(plain: Path, tmp_path: Path, scheme: str) -> None:
    out = pack_to(plain, tmp_path / "out", scheme)
    mapped, packed = load_model(out), load_model(plain)
    quantize(packed, rules_of(scheme, packed))
    assert equal(mapped.state_dict(), packed.state_dict())
    assert mapped.config == packed.config
    assert not any(parameter.requires_grad for parameter in mapped.parameters())
    assert not mapped.training
    tiles = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = [model.encode_tiles(tiles) for model in (mapped, packed) if isinstance(model, VLM)]
        tower = load_vision(out)(tiles)
    assert torch.equal(*tokens)
    assert torch.isfinite(tower).all()


def test_panels_are_the_file(plain: Path, tmp_path: Path) -> None:
    """Aligned for the kernels, not copied, and private: writing to them leaves the file alone."""
    out = pack_to(plain, tmp_path / "out", "int8")
    tensors = map_tensors(read_tensors(out))
    panels = [tensor for name, tensor in tensors.items() if name.endswith(".panels")]
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in panels}) == 1
    if Path("/proc/self/maps").exists():
        assert str(out / WEIGHTS) in Path("/proc/self/maps").read_text(encoding="utf-8")
    before = (out / WEIGHTS).read_bytes()
    panels[0].fill_(1)
    assert (out / WEIGHTS).read_bytes() == before


def test_nothing_is_left_of_a_failed_write(plain: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    model = load_model(plain)
    assert isinstance(model, VLM)
    packing = pack_model(model, packing_rules(model, "int8", {}))
    with pytest.raises(CheckpointError, match="no space left"):
        write_packed(model, model.config, packing, Target(directory=tmp_path / "out", progress=fail))
    assert list(tmp_path.iterdir()) == []


def change(out: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(out / WEIGHTS)
    edit(tensors)
    save_file(tensors, out / WEIGHTS)


def truncate(out: Path) -> None:
    data = (out / WEIGHTS).read_bytes()
    (out / WEIGHTS).write_bytes(data[:-100])


def lengthen_scales(out: Path) -> None:
    change(out, lambda x: x.update({"llm.head.scale_O": torch.ones(3)}))


def spoil_scales(out: Path) -> None:
    change(out, lambda x: x["llm.layers.0.mlp.down.scale_O"].fill_(torch.nan))


def spoil_norm(out: Path) -> None:
    change(out, lambda x: x["llm.norm.weight"].fill_(torch.inf))


def retype(out: Path) -> None:
    change(out, lambda x: x.update({"llm.head.sum_O": x["llm.head.sum_O"].float()}))


def lose(out: Path) -> None:
    change(out, lambda x: x.pop("llm.head.panels"))


def record(**changes: object) -> Callable[[Path], None]:
    def edit(out: Path) -> None:
        values = json.loads((out / "config.json").read_text(encoding="utf-8"))
        values["quantization_config"].update(changes)
        (out / "config.json").write_text(json.dumps(values), encoding="utf-8")

    return edit


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncate, WeightsError, "truncated"),
        (lengthen_scales, WeightsError, r"llm.head.scale_O is \(3,\), expected \(48,\)"),
        (spoil_scales, WeightsError, "NaN or infinite"),
        (spoil_norm, WeightsError, "llm.norm.weight in .* holds NaN"),
        (retype, WeightsError, "llm.head.sum_O in .* is torch.float32, packed weights need torch.int32"),
        (lose, WeightsError, "1 missing: llm.head.panels"),
        (record(version=2), ConfigError, "version 2, read here is 1: make it again"),
        (record(layouts={"int8": "0" * 16}), ConfigError, "packed in panels of layout"),
        (record(layers={"llm.head": "int3"}), ConfigError, "no scheme 'int3'"),
        (record(layers={"audio": "int8"}), ConfigError, "does not have, first audio"),
        (record(layers={}), ConfigError, "layers"),
        (record(measured={"vision_cosine": "high"}), ConfigError, "vision_cosine"),
        (record(quant_method="gptq"), ConfigError, r"quantised \(gptq\)"),
    ],
)
def test_damage(
    plain: Path, tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    out = pack_to(plain, tmp_path / "out", "int8")
    damage(out)
    with pytest.raises(error, match=message):
        load_model(out)


def test_damaged_four_bit_scales(plain: Path, tmp_path: Path) -> None:
    out = pack_to(plain, tmp_path / "out", "int4")
    change(out, lambda x: x["llm.layers.1.mlp.gate_up.panels"][..., 512:].fill_(255))  # float16: NaN
    with pytest.raises(WeightsError, match=r"llm.layers.1.mlp.gate_up \(int4\) has scales"):
        load_model(out)


def test_wrong_device_dtype_and_use(plain: Path, tmp_path: Path) -> None:
    out = pack_to(plain, tmp_path / "out", "int8")
    with pytest.raises(InputError, match="compute in float32"):
        load_model(out, dtype="bfloat16")
    with pytest.raises(InputError, match="compute in float32"):
        load_model(out, device="meta")
    with pytest.raises(InputError, match="nothing is packed"):
        packing_rules(load_model(plain), None, {})


def test_a_contrastive_model(tmp_path: Path) -> None:
    write_pair(tmp_path / "plain")
    model = load_model(tmp_path / "plain")
    packing = pack_model(model, packing_rules(model, "int8", {}))
    assert isinstance(model, DualEncoder)
    write_packed(model, model.config, packing, Target(directory=tmp_path / "out", source=tmp_path / "plain"))
    mapped = load_model(tmp_path / "out")
    assert mapped.config == model.config
    assert equal(mapped.state_dict(), model.state_dict())
    with pytest.raises(ConfigError, match="take the checkpoint it was made from"):
        load_text_encoder(tmp_path / "out")
