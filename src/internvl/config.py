"""What a model is made of: frozen values, composed, never mutated.

Knows no torch, no files and no model names. `checkpoints.configs` reads and writes the
JSON forms; `zoo` holds the published rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NormKind = Literal["layer", "rms"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
RopeScaling = Literal["linear", "dynamic", "longrope"]
ShuffleOrder = Literal["v1", "v2"]
Normalization = Literal["imagenet", "clip", "siglip"]

RGB = tuple[float, float, float]
NORMALIZATION_STATISTICS: Mapping[Normalization, tuple[RGB, RGB]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of red, green and blue, for values in 0..1; digits of the released code."""

IMG_START = "<img>"
IMG_END = "</img>"
IMG_CONTEXT = "<IMG_CONTEXT>"
GROUNDING_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
ADDED_TOKENS = (IMG_START, IMG_END, IMG_CONTEXT, *GROUNDING_TOKENS)
"""Tokens every chat model adds to its language model's vocabulary, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """InternViT. Defaults describe the 300M tower at 448 px."""

    image_size: int = 448
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096
    norm: NormKind = "layer"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    activation: Activation = "gelu"
    drop_path: float = 0.0
    layer_scale_init: float = 0.1

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def grid(self) -> int:
        """Patches per side at the size the position table was made for."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions. The last three fields belong to longrope (Phi-3 "su").

    `factor` stretches positions beyond those trained first: for longrope the whole context over
    `original_max_positions`.
    """

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    factor: float = 1.0
    original_max_positions: int | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The language model: every family of the zoo is a row of these values.

    `bos_id` is the id that repetition penalties count as seen before the first new token; it is
    never fed to the model.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 32_768
    bos_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorConfig:
    """Vision width to text width. `shuffle` None means one vision token a patch (LLaVA style)."""

    shuffle: ShuffleOrder | None = "v2"
    factor: int = 2
    norm: bool = True

    @property
    def cells(self) -> int:
        """Patches that share one vision token."""
        return 1 if self.shuffle is None else self.factor**2


@dataclass(frozen=True, slots=True, kw_only=True)
class TilingConfig:
    """How a picture becomes tiles, before any per-image choice of the caller."""

    tile_size: int = 448
    dynamic: bool = True
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    pad_to_square: bool = False
    normalization: Normalization = "imagenet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """A chat model: tower, projector, language model, and how it is spoken to.

    `select_layer` indexes the tower's hidden states (0 = embeddings, -1 = last block).
    `system_message` None means the template's own.
    """

    vision: VisionConfig
    projector: ProjectorConfig
    text: TextConfig
    tiling: TilingConfig
    select_layer: int = -1
    template: str
    system_message: str | None = None

    @property
    def tokens_per_tile(self) -> int:
        """Vision tokens of one tile: 256 at 448 px."""
        patches = (self.tiling.tile_size // self.vision.patch_size) ** 2
        return patches // self.projector.cells


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveConfig:
    """InternVL-C and -G: tower, text model, and the space in which pictures and texts meet.

    With `num_queries` 0 it is InternVL-C alone: no query tokens, no cross attention, no captions. Cross
    attention is in every `cross_every`-th block of the text model, from the first on.
    """

    vision: VisionConfig
    text: TextConfig
    embed_dim: int = 768
    pool_heads: int = 16
    num_queries: int = 96
    cross_every: int = 2
    image_size: int = 224
    normalization: Normalization = "imagenet"

    @property
    def is_generative(self) -> bool:
        """Whether it has mode G: query features, matching and captions."""
        return self.num_queries > 0
