"""The table of models: found by any spelling, sized as published, printed as committed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from internvl.checkpoints.load import build
from internvl.config import ADDED_TOKENS, ChatConfig, ContrastiveConfig, TextConfig, VisionConfig
from internvl.errors import UnknownNameError
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from internvl.zoo import CARDS, EXAMPLES, ModelCard, find, names, tiny
from tests.conftest import ROOT

WITH_CONFIG = [card for card in CARDS if card.config is not None]
KINDS = {"chat": ChatConfig, "contrastive": ContrastiveConfig, "vision": VisionConfig}
DISTINCT = {card.config: card for card in reversed(WITH_CONFIG)}

RELEASED = (
    "InternVL-Chat-13B",
    "InternVL-Chat-19B",
    "InternVL-Chat-19B-448px",
    "InternVL-Chat-V1-1",
    "InternVL-Chat-V1-2",
    "InternVL-Chat-V1-2-Plus",
    "InternVL-Chat-V1-5",
    "InternVL-Chat-V1-5-Int8",
    "InternVL-Chat-V1-5-AWQ",
    "Mini-InternVL-Chat-2B-V1-5",
    "Mini-InternVL-Chat-4B-V1-5",
    "InternVL2-1B",
    "InternVL2-2B",
    "InternVL2-4B",
    "InternVL2-8B",
    "InternVL2-26B",
    "InternVL2-40B",
    "InternVL2-Llama3-76B",
    "InternVL2-8B-MPO",
    "InternVL2_5-1B",
    "InternVL2_5-2B",
    "InternVL2_5-4B",
    "InternVL2_5-8B",
    "InternVL2_5-26B",
    "InternVL2_5-38B",
    "InternVL2_5-78B",
    "InternVL2_5-1B-MPO",
    "InternVL2_5-78B-MPO",
    "InternVL3-1B",
    "InternVL3-9B",
    "InternVL3-78B",
    "InternVL3-8B-hf",
    "InternViT-6B-224px",
    "InternViT-6B-448px-V1-0",
    "InternViT-6B-448px-V1-2",
    "InternViT-6B-448px-V1-5",
    "InternViT-6B-448px-V2_5",
    "InternViT-300M-448px",
    "InternViT-300M-448px-V2_5",
    "InternVL-14B-224px",
    "InternVL-14B-Flickr30K-FT-364px",
    "InternVL-14B-FlickrCN-FT-364px",
    "InternVL-C-13B-224px",
    "nano",
)


def ids(card: ModelCard) -> str:
    return card.name


class TestFind:
    @pytest.mark.parametrize("name", RELEASED)
    def test_every_released_model_is_there(self, name: str) -> None:
        assert find(name).name == name

    @pytest.mark.parametrize(
        "spelling",
        [
            "internvl2_5-1b",
            "InternVL2.5-1B",
            "OpenGVLab/InternVL2_5-1B",
            "opengvlab/internvl2.5-1b",
            " InternVL2_5-1B ",
        ],
    )
    def test_spellings_of_one_model(self, spelling: str) -> None:
        assert find(spelling).name == "InternVL2_5-1B"

    def test_a_repository_of_another_name(self) -> None:
        for name in ("OpenGVLab/InternVL-Chat-ViT-6B-Vicuna-7B", "InternVL-Chat-ViT-6B-Vicuna-7B"):
            assert find(name).name == "InternVL-Chat-13B"

    def test_names_and_repositories_mean_one_row(self) -> None:
        for card in CARDS:
            assert find(card.name) is card
            assert card.repository is None or find(card.repository) is card

    def test_unknown_names_get_the_closest(self) -> None:
        with pytest.raises(UnknownNameError, match=r"'InternVL2_5-3B': did you mean .*InternVL2_5-38B"):
            find("InternVL2_5-3B")

    def test_names_like_no_other_get_examples(self) -> None:
        with pytest.raises(UnknownNameError, match=f"for example nano.*lists all {len(CARDS)}"):
            find("qqqq")

    def test_examples_exist_and_load(self) -> None:
        assert all(find(name).supported for name in EXAMPLES)

    def test_names_are_distinct(self) -> None:
        assert len({name.casefold() for name in names()}) == len(names()) == len(CARDS)


class TestRows:
    @pytest.mark.parametrize("card", CARDS, ids=ids)
    def test_a_row_is_whole(self, card: ModelCard) -> None:
        assert card.tower
        assert card.licence
        assert card.source
        assert card.supported != bool(card.reason)
        assert (card.config is None) == (card.layout is None)
        assert (card.kind != "vision" and card.config is not None) == (card.family is not None)
        assert not (card.supported and card.config is None)

    @pytest.mark.parametrize("card", WITH_CONFIG, ids=ids)
    def test_configuration_is_of_its_kind(self, card: ModelCard) -> None:
        assert isinstance(card.config, KINDS[card.kind])
        assert (card.template is None) == (card.kind != "chat")

    @pytest.mark.parametrize("card", DISTINCT.values(), ids=ids)
    def test_parameters_are_those_published(self, card: ModelCard) -> None:
        assert card.config is not None
        count = sum(parameter.numel() for parameter in build(card.config).parameters()) / 1e9
        assert count == pytest.approx(card.parameters, rel=0.03)

    def test_rows_are_values(self) -> None:
        card = find("nano")
        with pytest.raises(FrozenInstanceError):
            card.name = "other"  # type: ignore[misc]
        assert hash(card) == hash(replace(card))

    def test_older_models_keep_the_templates_of_their_time(self) -> None:
        dated = {card.name for card in CARDS if card.template and card.template.endswith("@2024-05")}
        assert {"InternVL-Chat-V1-1", "InternVL-Chat-V1-2-Plus", "InternVL-Chat-V1-5"} < dated
        assert {"Mini-InternVL-Chat-2B-V1-5", "Mini-InternVL-Chat-4B-V1-5"} < dated
        assert not {name for name in dated if name.startswith(("InternVL2", "InternVL3"))}

    @pytest.mark.parametrize(
        ("name", "shuffle", "select_layer", "tokens"),
        [
            ("InternVL-Chat-13B", None, -4, 576),
            ("InternVL-Chat-19B-448px", None, -4, 1024),
            ("InternVL-Chat-V1-1", "v1", -4, 256),
            ("InternVL-Chat-V1-2", "v1", -1, 256),
            ("InternVL-Chat-V1-5", "v2", -1, 256),
            ("InternVL2_5-78B", "v2", -1, 256),
            ("nano", "v2", -1, 64),
        ],
    )
    def test_how_pictures_become_tokens(
        self, name: str, shuffle: str | None, select_layer: int, tokens: int
    ) -> None:
        config = find(name).config
        assert isinstance(config, ChatConfig)
        assert (config.projector.shuffle, config.select_layer) == (shuffle, select_layer)
        assert config.tokens_per_tile == tokens

    @pytest.mark.parametrize(
        ("name", "vocab_size"),
        [
            ("InternVL2-1B", 151_655),
            ("InternVL2-2B", 92_553),
            ("InternVL2-4B", 32_020),
            ("InternVL2-40B", 64_009),
            ("InternVL2_5-1B", 151_674),
            ("InternVL2_5-8B", 92_553),
            ("InternVL2_5-78B", 151_674),
            ("InternVL-Chat-13B", 32_000),
            ("nano", 49_152 + len(ADDED_TOKENS)),
        ],
    )
    def test_vocabularies(self, name: str, vocab_size: int) -> None:
        assert text_of(find(name)).vocab_size == vocab_size

    def test_phi3_has_a_factor_for_every_frequency(self) -> None:
        text = text_of(find("InternVL2-4B"))
        assert len(text.rope.short_factors) == len(text.rope.long_factors) == text.head_dim // 2
        assert list(text.rope.long_factors) == sorted(text.rope.long_factors)

    def test_variants_differ_in_name_only(self) -> None:
        base, further = find("InternVL2_5-8B"), find("InternVL2_5-8B-MPO")
        assert (further.config, further.family) == (base.config, base.family)
        assert further.repository == "OpenGVLab/InternVL2_5-8B-MPO"
        assert find("InternVL3-8B-hf").layout == "hf"
        assert not find("InternVL2_5-8B-AWQ").supported


class TestTiny:
    @pytest.mark.parametrize("card", DISTINCT.values(), ids=ids)
    def test_switches_are_kept(self, card: ModelCard) -> None:
        config = card.config
        assert config is not None
        small = tiny(config)  # type: ignore[type-var]
        assert type(small) is type(config)
        vision, tiny_vision = (
            value if isinstance(value, VisionConfig) else value.vision for value in (config, small)
        )
        for switch in ("norm", "norm_eps", "qkv_bias", "qk_norm", "activation", "patch_size"):
            assert getattr(tiny_vision, switch) == getattr(vision, switch)
        if isinstance(config, ChatConfig) and isinstance(small, ChatConfig):
            assert (small.projector, small.select_layer) == (config.projector, config.select_layer)
            assert (small.template, small.system_message) == (config.template, config.system_message)
            assert_same_make(small.text, config.text)
        if isinstance(config, ContrastiveConfig) and isinstance(small, ContrastiveConfig):
            assert (small.is_generative, small.cross_every) == (config.is_generative, config.cross_every)
            assert small.image_size == small.vision.image_size
            assert_same_make(small.text, config.text)

    def test_a_tower_read_before_its_end_has_the_blocks_for_it(self) -> None:
        config = find("InternVL-Chat-V1-1").config
        assert isinstance(config, ChatConfig)
        tower = VisionTower(tiny(config).vision)
        assert tower(torch.zeros(1, 3, 56, 56), config.select_layer).shape == (1, 17, 32)

    def test_tiny_is_small(self) -> None:
        config = find("InternVL2_5-78B").config
        assert isinstance(config, ChatConfig)
        assert sum(parameter.numel() for parameter in VLM(tiny(config)).parameters()) < 500_000


def assert_same_make(small: TextConfig, text: TextConfig) -> None:
    assert small.num_heads // small.num_kv_heads == text.num_heads // text.num_kv_heads
    assert small.width == small.num_heads * small.head_dim
    for switch in ("norm_eps", "qkv_bias", "out_bias", "qk_norm"):
        assert getattr(small, switch) == getattr(text, switch)
    assert (small.rope.theta, small.rope.scaling) == (text.rope.theta, text.rope.scaling)


def text_of(card: ModelCard) -> TextConfig:
    assert isinstance(card.config, ChatConfig)
    return card.config.text


def test_the_page_is_written_from_the_table() -> None:
    written = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "models-page")],
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout.decode("utf-8")
    assert written == (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), (
        "run scripts/models-page > docs/models.md"
    )
    assert all(card.name in written for card in CARDS)
