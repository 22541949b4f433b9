"""The published models of the family, one row each: what they are made of and where they lie.

Every dimension is stated once, in a tower or a language model; rows compose them. Names live here and
nowhere else in the library: other code reads fields. Knows no torch, no files, no network.

A checkpoint's own config.json wins over its row: the row serves listings, estimates and tests.
Templates: Chat 1.1 to 1.5 and Mini 1.5 use the templates of May 2024 ("...@2024-05"), because their
numbers were measured with those system messages; InternVL 2 and later use the current ones.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from internvl.config import (
    ADDED_TOKENS,
    ChatConfig,
    ContrastiveConfig,
    ProjectorConfig,
    RopeConfig,
    TextConfig,
    TilingConfig,
    VisionConfig,
)
from internvl.errors import UnknownNameError

Kind = Literal["chat", "vision", "contrastive"]
Layout = Literal["official", "hf", "llava", "vision", "contrastive", "timm-contrastive"]
Family = Literal["llama", "internlm2", "internlm3", "phi3", "qwen2", "qwen3"]
AnyConfig = TypeVar("AnyConfig", ChatConfig, ContrastiveConfig, VisionConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One published model.

    `config` is None where no configuration of this package describes the model (`reason` says why).
    `layout` names the weights' naming, `family` that of the language model inside it. `parameters` are
    billions as published. `repository` None means that nothing is downloaded (see `reason` or `source`);
    `file` is what the model is of a repository that holds several.
    `supported` False means that the weights cannot be loaded here; such a row can still be pulled.
    """

    name: str
    repository: str | None
    file: str | None = None
    revision: str | None = None
    kind: Kind
    config: ChatConfig | ContrastiveConfig | VisionConfig | None
    layout: Layout | None
    family: Family | None = None
    tower: str
    language: str | None = None
    released: str
    parameters: float
    licence: str
    source: str
    supported: bool = True
    reason: str = ""

    @property
    def template(self) -> str | None:
        """The chat template's name; None for models that do not chat."""
        return self.config.template if isinstance(self.config, ChatConfig) else None

    @property
    def is_assembled(self) -> bool:
        """Whether it is put together on the user's machine instead of downloaded whole."""
        return self.repository is None and self.supported


def names() -> tuple[str, ...]:
    """Names of all rows, in the order of the table."""
    return tuple(card.name for card in CARDS)


def find_or_none(name: str) -> ModelCard | None:
    """As `find`; None where nothing is called so."""
    try:
        return find(name)
    except UnknownNameError:
        return None


def find(name: str) -> ModelCard:
    """The row called `name`: its name or repository, upper or lower case, "2.5" or "2_5".

    Raises UnknownNameError that lists the closest names.
    """
    wanted = _key(name)
    for card in CARDS:
        if wanted in _keys(card):
            return card
    known = {key: card.name for card in CARDS for key in _keys(card)}
    close = dict.fromkeys(known[key] for key in difflib.get_close_matches(wanted, known, n=5, cutoff=0.6))
    hint = f"did you mean {', '.join(close)}?" if close else f"for example {', '.join(EXAMPLES)}"
    raise UnknownNameError(f"no model is called {name!r}: {hint} (docs/models.md lists all {len(CARDS)})")


def _keys(card: ModelCard) -> tuple[str, ...]:
    """All spellings of a row's name, folded; a repository counts with and without its owner."""
    repository = card.repository or card.name
    return tuple(map(_key, (card.name, repository, repository.rpartition("/")[2])))


def _key(name: str) -> str:
    return name.strip().casefold().replace(".", "-").replace("_", "-")


def tiny(config: AnyConfig) -> AnyConfig:
    """The same model at test size: every switch kept, every dimension small, the ratio of heads kept."""
    if isinstance(config, VisionConfig):
        return _tiny_vision(config, 2)
    if isinstance(config, ContrastiveConfig):
        return _tiny_contrastive(config)
    num_layers = max(2, 1 - config.select_layer)
    return replace(
        config,
        vision=_tiny_vision(config.vision, num_layers),
        text=_tiny_text(config.text),
        tiling=replace(config.tiling, tile_size=4 * config.vision.patch_size),
    )


def _tiny_contrastive(config: ContrastiveConfig) -> ContrastiveConfig:
    vision = _tiny_vision(config.vision, 2)
    return replace(
        config,
        vision=vision,
        text=_tiny_text(config.text),
        embed_dim=24,
        pool_heads=2,
        num_queries=min(config.num_queries, 3),
        image_size=vision.image_size,
    )


def _tiny_vision(vision: VisionConfig, num_layers: int) -> VisionConfig:
    """Position tables of 4 x 4 patches."""
    side = 4 * vision.patch_size
    return replace(vision, image_size=side, width=32, num_layers=num_layers, num_heads=2, mlp_width=56)


def _tiny_text(text: TextConfig) -> TextConfig:
    """Heads of 8, two key-value heads, and as many query heads for each as the model has."""
    head_dim, num_heads, rope = 8, 2 * (text.num_heads // text.num_kv_heads), text.rope
    if rope.scaling == "longrope":
        rope = replace(
            rope,
            factor=4.0,
            original_max_positions=64,
            short_factors=rope.short_factors[: head_dim // 2],
            long_factors=rope.long_factors[: head_dim // 2],
        )
    return replace(
        text,
        vocab_size=128,
        width=num_heads * head_dim,
        num_layers=2,
        num_heads=num_heads,
        num_kv_heads=2,
        head_dim=head_dim,
        mlp_width=48,
        rope=rope,
        max_positions=256,
        bos_id=None if text.bos_id is None else 1,
    )


# --- vision towers (InternVL paper, arXiv 2312.14238; model cards) ------------------------------


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower, and its name."""

    name: str
    config: VisionConfig


_6B = VisionConfig(
    image_size=224,
    width=3200,
    num_layers=48,
    num_heads=25,
    mlp_width=12_800,
    norm="rms",
    qkv_bias=False,
    qk_norm=True,
)
_6B_448 = replace(_6B, image_size=448)
_6B_45 = replace(_6B_448, num_layers=45)

VIT_6B_224 = Tower("InternViT-6B-224px", _6B)
VIT_6B_V1_0 = Tower("InternViT-6B-448px-V1-0", _6B_448)
VIT_6B_V1_2 = Tower("InternViT-6B-448px-V1-2", _6B_45)
VIT_6B_V1_5 = Tower("InternViT-6B-448px-V1-5", _6B_45)
VIT_6B_V2_5 = Tower("InternViT-6B-448px-V2_5", _6B_45)
VIT_300M = Tower("InternViT-300M-448px", VisionConfig())
VIT_300M_V2_5 = Tower("InternViT-300M-448px-V2_5", VisionConfig())
VIT_S = Tower(
    "ViT-S/14 (DINOv2)", VisionConfig(image_size=224, width=384, num_layers=12, num_heads=6, mlp_width=1536)
)

# --- language models (their public configurations) ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Language:
    """A language model, its key layout, and the licence its weights add to ours."""

    name: str
    family: Family
    licence: str
    config: TextConfig


_ADDED = len(ADDED_TOKENS)

_VICUNA_7B = TextConfig(
    vocab_size=32_000,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    mlp_width=11_008,
    norm_eps=1e-5,
    max_positions=4096,
    bos_id=1,
)
_CHINESE_ALPACA_7B = replace(_VICUNA_7B, vocab_size=49_954, norm_eps=1e-6, max_positions=2048)
_LLAMA_13B = replace(_VICUNA_7B, width=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_width=13_824)
_YI_34B = TextConfig(
    vocab_size=64_000 + _ADDED,
    width=7168,
    num_layers=60,
    num_heads=56,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=20_480,
    norm_eps=1e-5,
    rope=RopeConfig(theta=5e6),
    max_positions=4096,
    bos_id=1,
)
_LLAMA3_70B = TextConfig(
    vocab_size=128_256 + _ADDED,
    width=8192,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=28_672,
    norm_eps=1e-5,
    rope=RopeConfig(theta=5e5),
    max_positions=8192,
    bos_id=128_000,
)
_INTERNLM2_7B = TextConfig(
    vocab_size=92_544 + _ADDED,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=14_336,
    norm_eps=1e-5,
    rope=RopeConfig(theta=1e6, scaling="dynamic", factor=2.0),
    bos_id=1,
)
_INTERNLM2_2B = replace(_INTERNLM2_7B, width=2048, num_layers=24, num_heads=16, mlp_width=8192)
_INTERNLM2_20B = replace(_INTERNLM2_7B, width=6144, num_layers=48, num_heads=48, mlp_width=16_384)
_INTERNLM3_8B = TextConfig(
    vocab_size=128_512,
    width=4096,
    num_layers=48,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    mlp_width=10_240,
    norm_eps=1e-5,
    rope=RopeConfig(theta=5e7, scaling="dynamic", factor=6.0),
    bos_id=1,
)
_QWEN2_0_5B = TextConfig(
    vocab_size=151_646 + _ADDED,
    width=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    mlp_width=4864,
    rope=RopeConfig(theta=1e6),
    qkv_bias=True,
    bos_id=151_643,
)
_QWEN25_0_5B = replace(_QWEN2_0_5B, vocab_size=151_665 + _ADDED)
_QWEN25_1_5B = replace(
    _QWEN25_0_5B, width=1536, num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128, mlp_width=8960
)
_QWEN25_3B = replace(_QWEN25_1_5B, width=2048, num_layers=36, num_heads=16, mlp_width=11_008)
_QWEN25_7B = replace(_QWEN25_1_5B, width=3584, num_heads=28, num_kv_heads=4, mlp_width=18_944)
_QWEN25_14B = replace(_QWEN25_7B, width=5120, num_layers=48, num_heads=40, num_kv_heads=8, mlp_width=13_824)
_QWEN25_32B = replace(_QWEN25_14B, num_layers=64, mlp_width=27_648)
_QWEN25_72B = replace(_QWEN25_14B, width=8192, num_layers=80, num_heads=64, mlp_width=29_568)
_SMOLLM2_135M = TextConfig(
    vocab_size=49_152 + _ADDED,
    width=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_width=1536,
    norm_eps=1e-5,
    rope=RopeConfig(theta=1e5),
    max_positions=8192,
)

# fmt: off
# Phi-3-mini-128k as published in April 2024 (Mini-InternVL and InternVL2-4B were trained from that version).
_PHI3_SHORT = (
    1.05, 1.05, 1.05, 1.1, 1.1, 1.1500000000000001, 1.2000000000000002, 1.2500000000000002,
    1.3000000000000003, 1.3500000000000003, 1.5000000000000004, *[2.000000000000001] * 21,
    *[2.0500000000000007] * 3, *[2.1000000000000005] * 3, *[2.1500000000000004] * 2, 2.3499999999999996,
    2.549999999999999, *[2.5999999999999988] * 2, 2.7499999999999982, *[2.849999999999998] * 2,
    2.9499999999999975,
)
_PHI3_LONG = (
    1.0299999713897705, 1.0499999523162842, 1.0499999523162842, 1.0799999237060547, 1.2299998998641968,
    1.2299998998641968, 1.2999999523162842, 1.4499999284744263, 1.5999999046325684, 1.6499998569488525,
    1.8999998569488525, 2.859999895095825, 3.68999981880188, 5.419999599456787, 5.489999771118164,
    5.489999771118164, 9.09000015258789, 11.579999923706055, 15.65999984741211, 15.769999504089355,
    15.789999961853027, 18.360000610351562, 21.989999771118164, 23.079999923706055, 30.009998321533203,
    32.35000228881836, 32.590003967285156, 35.56000518798828, 39.95000457763672, 53.840003967285156,
    56.20000457763672, 57.95000457763672, 59.29000473022461, 59.77000427246094, 59.920005798339844,
    61.190006256103516, 61.96000671386719, 62.50000762939453, 63.3700065612793, 63.48000717163086,
    63.48000717163086, 63.66000747680664, 63.850006103515625, 64.08000946044922, 64.760009765625,
    64.80001068115234, 64.81001281738281, 64.81001281738281,
)
# fmt: on
_PHI3_MINI = TextConfig(
    vocab_size=32_011 + _ADDED,
    width=3072,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=96,
    mlp_width=8192,
    norm_eps=1e-5,
    rope=RopeConfig(
        scaling="longrope",
        factor=131_072 / 4096,
        original_max_positions=4096,
        short_factors=_PHI3_SHORT,
        long_factors=_PHI3_LONG,
    ),
    max_positions=131_072,
    bos_id=1,
)

_LLAMA2_LICENCE, _LLAMA3_LICENCE = "Llama 2 Community", "Llama 3 Community"
_APACHE, _INTERNLM_LICENCE = "Apache-2.0", "InternLM (free commercial use on request)"

CHINESE_ALPACA_7B = Language("Chinese-Alpaca-7B", "llama", "LLaMA (non-commercial)", _CHINESE_ALPACA_7B)
VICUNA_7B = Language("Vicuna-7B v1.5", "llama", _LLAMA2_LICENCE, _VICUNA_7B)
VICUNA_13B = Language("Vicuna-13B v1.5", "llama", _LLAMA2_LICENCE, _LLAMA_13B)
# The vocabulary, extended for Chinese, is not published outside the checkpoint: this one gives the
# 13.12 billion parameters of its model card.
LLAMA2_13B = Language("LLaMA2-13B", "llama", _LLAMA2_LICENCE, replace(_LLAMA_13B, vocab_size=42_000))
YI_34B = Language("Nous-Hermes-2-Yi-34B", "llama", _APACHE, _YI_34B)
LLAMA3_70B = Language("Hermes-2-Theta-Llama-3-70B", "llama", _LLAMA3_LICENCE, _LLAMA3_70B)
INTERNLM2_2B = Language("internlm2-chat-1_8b", "internlm2", _INTERNLM_LICENCE, _INTERNLM2_2B)
INTERNLM2_20B = Language("internlm2-chat-20b", "internlm2", _INTERNLM_LICENCE, _INTERNLM2_20B)
INTERNLM25_2B = Language("internlm2_5-1_8b-chat", "internlm2", _INTERNLM_LICENCE, _INTERNLM2_2B)
INTERNLM25_7B = Language("internlm2_5-7b-chat", "internlm2", _INTERNLM_LICENCE, _INTERNLM2_7B)
INTERNLM25_20B = Language("internlm2_5-20b-chat", "internlm2", _INTERNLM_LICENCE, _INTERNLM2_20B)
INTERNLM3_8B = Language("internlm3-8b-instruct", "internlm3", _APACHE, _INTERNLM3_8B)
PHI3_MINI = Language("Phi-3-mini-128k-instruct", "phi3", "MIT", _PHI3_MINI)
QWEN2_0_5B = Language("Qwen2-0.5B-Instruct", "qwen2", _APACHE, _QWEN2_0_5B)
QWEN25_0_5B_CHAT = Language("Qwen2.5-0.5B-Instruct", "qwen2", _APACHE, _QWEN25_0_5B)
QWEN25_3B_CHAT = Language("Qwen2.5-3B-Instruct", "qwen2", "Qwen Research", _QWEN25_3B)
QWEN25_32B_CHAT = Language("Qwen2.5-32B-Instruct", "qwen2", _APACHE, _QWEN25_32B)
QWEN25_72B_CHAT = Language("Qwen2.5-72B-Instruct", "qwen2", "Qwen", _QWEN25_72B)
QWEN25_0_5B = Language("Qwen2.5-0.5B", "qwen2", _APACHE, _QWEN25_0_5B)
QWEN25_1_5B = Language("Qwen2.5-1.5B", "qwen2", _APACHE, _QWEN25_1_5B)
QWEN25_7B = Language("Qwen2.5-7B", "qwen2", _APACHE, _QWEN25_7B)
QWEN25_14B = Language("Qwen2.5-14B", "qwen2", _APACHE, _QWEN25_14B)
QWEN25_32B = Language("Qwen2.5-32B", "qwen2", _APACHE, _QWEN25_32B)
QWEN25_72B = Language("Qwen2.5-72B", "qwen2", "Qwen", _QWEN25_72B)
SMOLLM2_135M = Language("SmolLM2-135M-Instruct", "llama", _APACHE, _SMOLLM2_135M)

# --- rows ---------------------------------------------------------------------------------------

_OWNER = "OpenGVLab/"
_PLAIN = ProjectorConfig(shuffle=None, norm=False)
_COLUMNS = ProjectorConfig(shuffle="v1")
_ROWS = ProjectorConfig(shuffle="v2")
_TILED = TilingConfig()
_FIXED = TilingConfig(dynamic=False, max_tiles=1, thumbnail=False)

_PAPER_1 = "arXiv 2312.14238"
_PAPER_1_5 = "arXiv 2404.16821"
_BLOG_2 = "InternVL 2.0 model cards"
_PAPER_MPO = "arXiv 2411.10442"
_PAPER_2_5 = "arXiv 2412.05271"
_PAPER_3 = "arXiv 2504.10479"

_UNCHECKED = "its language model and tokenizer (InternLM3) were compared with no reference yet"
_QUANTISED = "quantised checkpoints are not read yet: take the full one"


def _vision(tower: Tower, released: str, parameters: float, source: str) -> ModelCard:
    return ModelCard(
        name=tower.name,
        repository=_OWNER + tower.name,
        kind="vision",
        config=tower.config,
        layout="vision",
        tower=tower.name,
        released=released,
        parameters=parameters,
        licence="MIT",
        source=source,
    )


def _chat(
    name: str,
    tower: Tower,
    language: Language,
    template: str,
    released: str,
    parameters: float,
    source: str,
    *,
    repository: str | None = None,
    layout: Layout = "official",
    projector: ProjectorConfig = _ROWS,
    tiling: TilingConfig = _TILED,
    select_layer: int = -1,
) -> ModelCard:
    return ModelCard(
        name=name,
        repository=_OWNER + (repository or name),
        kind="chat",
        config=ChatConfig(
            vision=tower.config,
            projector=projector,
            text=language.config,
            tiling=tiling,
            select_layer=select_layer,
            template=template,
        ),
        layout=layout,
        family=language.family,
        tower=tower.name,
        language=language.name,
        released=released,
        parameters=parameters,
        licence=f"MIT; language model {language.licence}",
        source=source,
    )


def _variant(
    card: ModelCard, suffix: str, released: str | None = None, source: str | None = None
) -> ModelCard:
    """The same model trained further: only the name and where it lies differ."""
    return replace(
        card,
        name=card.name + suffix,
        repository=f"{card.repository}{suffix}",
        released=released or card.released,
        source=source or card.source,
    )


def _hf(card: ModelCard) -> ModelCard:
    """The same weights as transformers names them."""
    return replace(_variant(card, "-hf"), layout="hf")


def _quantised(card: ModelCard, suffix: str = "-AWQ") -> ModelCard:
    return replace(_variant(card, suffix), supported=False, reason=_QUANTISED)


def _without_parts(
    name: str, kind: Kind, tower: str, released: str, parameters: float, reason: str, source: str = _PAPER_1
) -> ModelCard:
    """A row that no configuration of this package describes."""
    return ModelCard(
        name=name,
        repository=_OWNER + name,
        kind=kind,
        config=None,
        layout=None,
        tower=tower,
        released=released,
        parameters=parameters,
        licence="MIT",
        source=source,
        supported=False,
        reason=reason,
    )


_TOWERS = (
    _vision(VIT_6B_224, "2023-12-22", 5.9, _PAPER_1),
    _vision(VIT_6B_V1_0, "2024-01-30", 5.9, _PAPER_1),
    _vision(VIT_6B_V1_2, "2024-02-11", 5.5, _PAPER_1_5),
    _vision(VIT_6B_V1_5, "2024-04-20", 5.5, _PAPER_1_5),
    _vision(VIT_300M, "2024-05-25", 0.304, _PAPER_1_5),
    _vision(VIT_6B_V2_5, "2024-12-05", 5.5, _PAPER_2_5),
    _vision(VIT_300M_V2_5, "2024-12-05", 0.304, _PAPER_2_5),
)

_14B_CONFIG = ContrastiveConfig(vision=_6B, text=CHINESE_ALPACA_7B.config)
_14B = ModelCard(
    name="InternVL-14B-224px",
    repository=_OWNER + "InternVL-14B-224px",
    kind="contrastive",
    config=_14B_CONFIG,
    layout="contrastive",
    family=CHINESE_ALPACA_7B.family,
    tower=VIT_6B_224.name,
    language=f"QLLaMA ({CHINESE_ALPACA_7B.name})",
    released="2023-12-22",
    parameters=14.0,
    licence=f"MIT; language model {CHINESE_ALPACA_7B.licence}",
    source=_PAPER_1,
)
_14B_364 = replace(_14B_CONFIG, vision=replace(_6B, image_size=364), image_size=364)
_CONTRASTIVE = (
    _14B,
    *(
        replace(_14B, name=name, repository=_OWNER + name, config=_14B_364, released="2023-12-25")
        for name in ("InternVL-14B-Flickr30K-FT-364px", "InternVL-14B-FlickrCN-FT-364px")
    ),
    replace(
        _14B,
        name="InternVL-C-13B-224px",
        repository=_OWNER + "InternVL",
        file="internvl_c_13b_224px.pth",
        config=replace(_14B_CONFIG, num_queries=0),
        layout="timm-contrastive",
        language=CHINESE_ALPACA_7B.name,
        parameters=13.0,
    ),
)

_LLAVA_336 = replace(_FIXED, tile_size=336, pad_to_square=True)
_LLAVA_448 = replace(_FIXED, pad_to_square=True)
_CHAT_1_0 = tuple(
    _chat(
        name,
        tower,
        language,
        "vicuna_v1.1",
        released,
        parameters,
        _PAPER_1,
        repository=f"InternVL-Chat-ViT-6B-{repository}",
        layout="llava",
        projector=_PLAIN,
        tiling=tiling,
        select_layer=-4,
    )
    for name, tower, language, tiling, released, parameters, repository in (
        ("InternVL-Chat-13B", VIT_6B_224, VICUNA_7B, _LLAVA_336, "2023-12-25", 13.0, "Vicuna-7B"),
        ("InternVL-Chat-19B", VIT_6B_224, VICUNA_13B, _LLAVA_336, "2023-12-25", 19.0, "Vicuna-13B"),
        (
            "InternVL-Chat-19B-448px",
            VIT_6B_V1_0,
            VICUNA_13B,
            _LLAVA_448,
            "2024-02-03",
            19.0,
            "Vicuna-13B-448px",
        ),
    )
)

_CHAT_1_1 = _chat(
    "InternVL-Chat-V1-1",
    VIT_6B_V1_0,
    LLAMA2_13B,
    "internvl_zh@2024-05",
    "2024-01-24",
    19.11,
    "model card",
    projector=_COLUMNS,
    tiling=_FIXED,
    select_layer=-4,
)
_CHAT_1_2 = _chat(
    "InternVL-Chat-V1-2",
    VIT_6B_V1_2,
    YI_34B,
    "Hermes-2@2024-05",
    "2024-02-11",
    40.07,
    "model card",
    projector=_COLUMNS,
    tiling=_FIXED,
)
_LM_1_5, _PHI_1_5 = "internlm2-chat@2024-05", "phi3-chat@2024-05"
_CHAT_1_5 = _chat("InternVL-Chat-V1-5", VIT_6B_V1_5, INTERNLM2_20B, _LM_1_5, "2024-04-18", 25.51, _PAPER_1_5)
_CHAT_1 = (
    *_CHAT_1_0,
    _CHAT_1_1,
    _CHAT_1_2,
    _variant(_CHAT_1_2, "-Plus", "2024-02-21"),
    _CHAT_1_5,
    _quantised(_CHAT_1_5, "-Int8"),
    _quantised(_CHAT_1_5),
    _chat("Mini-InternVL-Chat-2B-V1-5", VIT_300M, INTERNLM2_2B, _LM_1_5, "2024-05-19", 2.21, _PAPER_1_5),
    _chat("Mini-InternVL-Chat-4B-V1-5", VIT_300M, PHI3_MINI, _PHI_1_5, "2024-05-28", 4.15, _PAPER_1_5),
)

_BASE_2 = tuple(
    _chat(f"InternVL2-{size}", tower, language, template, "2024-07", parameters, _BLOG_2)
    for size, tower, language, template, parameters in (
        ("1B", VIT_300M, QWEN2_0_5B, "Hermes-2", 0.938),
        ("2B", VIT_300M, INTERNLM2_2B, "internlm2-chat", 2.21),
        ("4B", VIT_300M, PHI3_MINI, "phi3-chat", 4.15),
        ("8B", VIT_300M, INTERNLM25_7B, "internlm2-chat", 8.08),
        ("26B", VIT_6B_V1_5, INTERNLM2_20B, "internlm2-chat", 25.5),
        ("40B", VIT_6B_V1_5, YI_34B, "Hermes-2", 40.1),
        ("Llama3-76B", VIT_6B_V1_5, LLAMA3_70B, "internlm2-chat", 76.3),
    )
)
_1B_2, _2B_2, _4B_2, _8B_2, *_LARGE_2 = _BASE_2
_CHAT_2 = (
    *_BASE_2,
    _variant(_8B_2, "-MPO", "2024-11", _PAPER_MPO),
    *map(_quantised, (_2B_2, _8B_2, *_LARGE_2)),
    replace(
        _without_parts("InternVL2-Pro", "chat", VIT_6B_V1_5.name, "2024-07", 108.0, "", _BLOG_2),
        repository=None,
        reason="offered as a service; its weights were not published",
    ),
)

_BASE_2_5 = tuple(
    _chat(f"InternVL2_5-{size}", tower, language, "internvl2_5", "2024-12-05", parameters, _PAPER_2_5)
    for size, tower, language, parameters in (
        ("1B", VIT_300M_V2_5, QWEN25_0_5B_CHAT, 0.94),
        ("2B", VIT_300M_V2_5, INTERNLM25_2B, 2.21),
        ("4B", VIT_300M_V2_5, QWEN25_3B_CHAT, 3.71),
        ("8B", VIT_300M_V2_5, INTERNLM25_7B, 8.08),
        ("26B", VIT_6B_V2_5, INTERNLM25_20B, 25.5),
        ("38B", VIT_6B_V2_5, QWEN25_32B_CHAT, 38.4),
        ("78B", VIT_6B_V2_5, QWEN25_72B_CHAT, 78.4),
    )
)
_CHAT_2_5 = (
    *_BASE_2_5,
    *(_variant(card, "-MPO", "2024-12-20", _PAPER_MPO) for card in _BASE_2_5),
    *map(_quantised, _BASE_2_5[2:]),
)

_BASE_3 = tuple(
    _chat(f"InternVL3-{size}", tower, language, "internvl2_5", "2025-04", parameters, _PAPER_3)
    for size, tower, language, parameters in (
        ("1B", VIT_300M_V2_5, QWEN25_0_5B, 0.94),
        ("2B", VIT_300M_V2_5, QWEN25_1_5B, 2.09),
        ("8B", VIT_300M_V2_5, QWEN25_7B, 7.94),
        ("9B", VIT_300M_V2_5, INTERNLM3_8B, 9.14),
        ("14B", VIT_300M_V2_5, QWEN25_14B, 15.1),
        ("38B", VIT_6B_V2_5, QWEN25_32B, 38.4),
        ("78B", VIT_6B_V2_5, QWEN25_72B, 78.4),
    )
)
_BASE_3 = tuple(
    replace(card, supported=False, reason=_UNCHECKED) if card.family == "internlm3" else card
    for card in _BASE_3
)
_CHAT_3 = (
    *_BASE_3,
    *(_variant(card, suffix) for suffix in ("-Pretrained", "-Instruct") for card in _BASE_3),
    *(_hf(card) for card in _BASE_3 if card.family == "qwen2"),
    *map(_quantised, _BASE_3),
)

_NANO_SYSTEM = "You are a helpful assistant that answers questions about pictures."
_NANO_CHAT = ChatConfig(
    vision=VIT_S.config,
    projector=_ROWS,
    text=SMOLLM2_135M.config,
    tiling=replace(_FIXED, tile_size=224),
    select_layer=-1,
    template="internvl2_5",
    system_message=_NANO_SYSTEM,
)
_NANO = ModelCard(
    name="nano",
    repository=None,
    kind="chat",
    config=_NANO_CHAT,
    layout="official",
    family=SMOLLM2_135M.family,
    tower=VIT_S.name,
    language=SMOLLM2_135M.name,
    released="with this package",
    parameters=0.186,
    licence=f"MIT; tower and language model {_APACHE}",
    source="put together from two Python packages and weights trained by this project",
)

_NANO_C = replace(
    _NANO,
    name="nano-c",
    kind="contrastive",
    config=ContrastiveConfig(
        vision=VIT_S.config,
        text=SMOLLM2_135M.config,
        embed_dim=256,
        pool_heads=12,
        num_queries=16,
        cross_every=5,
    ),
    layout="contrastive",
    language=f"QLLaMA ({SMOLLM2_135M.name})",
    parameters=0.194,
)

CARDS: tuple[ModelCard, ...] = (
    _NANO,
    _NANO_C,
    *_CHAT_1,
    *_CHAT_2,
    *_CHAT_2_5,
    *_CHAT_3,
    *_TOWERS,
    *_CONTRASTIVE,
)
"""Every row; later code finds rows by name with `find`."""

EXAMPLES = ("nano", "InternVL2_5-1B", "InternVL2-8B", "InternViT-300M-448px-V2_5")


def template_of(name_or_path: str | Path) -> str | None:
    """The template of a zoo name, which tells older models' system messages apart; None for a path."""
    if Path(name_or_path).expanduser().exists():
        return None
    try:
        return find(str(name_or_path)).template
    except UnknownNameError:  # a repository of the hub that is in the cache, but no row
        return None
