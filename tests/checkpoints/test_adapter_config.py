"""adapter_config.json: understood, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from internvl.checkpoints.adapter_config import read_adapter_config, write_adapter_config
from internvl.errors import ConfigError


def test_there_and_back() -> None:
    ranks = {"a.q_proj": 2, "a.k_proj": 2, "b.q_proj": 6}
    scales = {"a.q_proj": 2.0, "a.k_proj": 1.5, "b.q_proj": 2.0}
    for rank_stabilized in (False, True):
        written = write_adapter_config(
            ranks, scales, dropout=0.1, rank_stabilized=rank_stabilized, magnitude=True, whole=["c"], base="x"
        )
        assert (written["r"], written["rank_pattern"]) == (2, {r"b\.q_proj": 6})
        assert (written["modules_to_save"], written["base_model_name_or_path"]) == (["c"], "x")
        config = read_adapter_config(written, "adapter_config.json")
        assert (config.dropout, config.magnitude, config.rank_stabilized) == (0.1, True, rank_stabilized)
        assert {name: config.scale(name, rank) for name, rank in ranks.items()} == pytest.approx(scales)


def test_the_first_pattern_that_ends_the_name_decides() -> None:
    values = {"lora_alpha": 4, "alpha_pattern": {"layers.1.q": 8, "q": 2}}
    config = read_adapter_config(values, "")
    assert config.scale("model.layers.1.q", 2) == 4
    assert config.scale("model.layers.11.q", 2) == 1
    assert config.scale("model.layers.1.seq", 2) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected LORA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "leaves the base weights alone"),
        ({"init_lora_weights": ["x"]}, "init_lora_weights"),
        ({"lora_alpha": 0}, "lora_alpha is 0; expected a number other than 0"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"alpha_pattern": {"(": 1}}, "a regular expression as the name"),
        ({"alpha_pattern": {"a{99999999999999999999}": 1}}, "a regular expression as the name"),
        ({"alpha_pattern": {"(" * 100_000: 1}}, "a plain pattern of at most 200"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "a plain pattern of at most 200"),
        ({"alpha_pattern": {".*.*.*.*.*.*x": 1}}, "a plain pattern of at most 200"),
        ({"alpha_pattern": {"q" * 201: 1}}, "a plain pattern of at most 200"),
        ({"alpha_pattern": [1]}, "expected an object"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_adapter_config({"peft_type": "LORA", "lora_alpha": 8, **values}, "adapter_config.json")
