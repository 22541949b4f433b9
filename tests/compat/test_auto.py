"""`from_pretrained`: what it takes, and what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import internvl
from internvl.compat import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from internvl.errors import CheckpointError, HubError, InputError, UnknownNameError


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_dtypes(folder: Path, dtype) -> None:
    assert AutoModel.from_pretrained(folder, torch_dtype=dtype).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).dtype == torch.bfloat16
    assert AutoModel.from_pretrained(folder).dtype == torch.float32


def test_options(folder: Path) -> None:
    for load in (AutoModel, AutoTokenizer, AutoConfig):
        with pytest.raises(InputError, match=r"no option temperature; there are .*revision"):
            load.from_pretrained(folder, temperature=1)


@pytest.mark.parametrize(("option", "scheme"), [("load_in_8bit", "int8"), ("load_in_4bit", "int4")])
def test_fewer_bits(folder: Path, option: str, scheme: str) -> None:
    model = AutoModel.from_pretrained(folder, torch_dtype=torch.bfloat16, **{option: True})
    assert model.chat_model.vlm.llm.layers[0].mlp.down.scheme == scheme
    assert model.dtype == torch.float32


@pytest.mark.parametrize("load", [AutoModel, AutoTokenizer, AutoConfig])
def test_names(load, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path), "local_files_only": True}
    with pytest.raises(UnknownNameError):
        load.from_pretrained("no such model", **options)
    with pytest.raises((HubError, UnknownNameError)):
        load.from_pretrained("OpenGVLab/InternVL2_5-1B", **options)
    with pytest.raises(CheckpointError):
        load.from_pretrained(tmp_path)


def test_configuration_of_other_layouts(folder: Path, tmp_path: Path) -> None:
    """Whatever the file's own form, the published names are there."""
    internvl.save(internvl.load(folder), tmp_path / "hf", layout="hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    official = AutoConfig.from_pretrained(folder)
    for name in ("template", "force_image_size", "use_thumbnail", "max_dynamic_patch", "select_layer"):
        assert getattr(config, name) == getattr(official, name)
    assert config.llm_config.num_hidden_layers == official.llm_config.num_hidden_layers
    assert config.vision_config.hidden_size == official.vision_config.hidden_size


def test_configuration_is_a_view(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert "template" in config
    assert config.to_dict()["template"] == config.template
    assert set(config) == set(config.to_dict())
    with pytest.raises(AttributeError):
        config.template = "other"
    with pytest.raises(AttributeError, match="no field 'nothing'"):
        _ = config.nothing
    assert not hasattr(config.vision_config, "template")
