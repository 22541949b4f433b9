"""What makes vectors of pictures: the one interface that jobs know, and the models behind it.

Shape letters: B pictures, S side of the square, E width of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from internvl.api.contrastive import Mode
from internvl.api.vision import VisionModel
from internvl.checkpoints.configs import describe_normalization
from internvl.checkpoints.digest import model_digest, weights_digest
from internvl.checkpoints.encoders import load_image_encoder
from internvl.checkpoints.fill import place
from internvl.checkpoints.load import build, choose_dtype, load_model, load_vision
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.resolve import open_checkpoint
from internvl.config import ContrastiveConfig
from internvl.errors import InputError
from internvl.models.dual_encoder import DualEncoder, ImageEncoder
from internvl.processing.crop import Fit, fit_square
from internvl.processing.tiles import normalize as to_tiles

PICTURE_SIDE: Mapping[Mode, tuple[str, ...]] = {
    "C": ("vit.", "image_pool."),
    "G": ("vit.", "image_pool.", "query_pool.", "qllama."),
}
"""Where the names of all weights of a dual encoder begin that decide the vector of a picture."""


class Embedder(Protocol):
    """Pictures to vectors. `prepare` is called from several threads, `embed` from one."""

    @property
    def width(self) -> int:
        """E."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the vectors, as values that JSON knows: the model, its weights, and how it is used."""

    def prepare(self, image: Image.Image) -> Tensor:
        """An RGB picture as (3, S, S). Raises InputError for one that cannot be used."""

    def embed(self, tiles_B3SS: Tensor) -> Tensor:
        """Vectors (B, E)."""


class ContrastiveEmbedder:
    """InternVL-C or -G: vectors that texts can be compared with. Mode C needs the image side alone."""

    def __init__(
        self,
        encoder: ImageEncoder | DualEncoder,
        name: str,
        *,
        mode: Mode = "C",
        fit: Fit = "squash",
        normalized: bool = False,
    ) -> None:
        self.encoder, self.mode, self.fit, self.normalized = encoder.eval(), mode, fit, normalized
        self.width = encoder.config.embed_dim
        weights, dtype = model_digest(encoder, PICTURE_SIDE[mode]), encoder.vit.embed.position.dtype
        self.identity = _identity(name, weights, dtype, mode=mode, fit=fit, normalized=normalized)

    def prepare(self, image: Image.Image) -> Tensor:
        config = self.encoder.config
        return to_tiles([fit_square(image, config.image_size, self.fit)], config.normalization)[0]

    @torch.inference_mode()
    def embed(self, tiles_B3SS: Tensor) -> Tensor:
        features_BPC = self.encoder.vit(tiles_B3SS.to(self.encoder.vit.embed.position.device))
        pooled_BE = self.encoder.pool_images(features_BPC, generative=self.mode == "G")
        return normalize(pooled_BE, dim=-1) if self.normalized else pooled_BE


class VisionEmbedder:
    """A vision tower alone: its class token. Only pictures can be compared with it."""

    def __init__(self, model: VisionModel, name: str, *, fit: Fit = "crop", normalized: bool = False) -> None:
        self.model, self.fit, self.normalized = model, fit, normalized
        self.width = model.config.width
        weights, dtype = model_digest(model.tower), model.tower.embed.position.dtype
        self.identity = _identity(name, weights, dtype, mode=None, fit=fit, normalized=normalized)

    def prepare(self, image: Image.Image) -> Tensor:
        return to_tiles(
            [fit_square(image, self.model.config.image_size, self.fit)], self.model.normalization
        )[0]

    @torch.inference_mode()
    def embed(self, tiles_B3SS: Tensor) -> Tensor:
        pooled_BE = self.model.tower(tiles_B3SS.to(self.model.device))[:, 0]
        return normalize(pooled_BE, dim=-1) if self.normalized else pooled_BE


def open_embedder(
    name: str,
    *,
    mode: Mode = "C",
    fit: Fit | None = None,
    normalized: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> ContrastiveEmbedder | VisionEmbedder:
    """The embedder of a checkpoint: both towers of InternVL-C and -G, or the vision tower of anything else.

    `fit` None is "squash" for the former (the retrieval protocol), "crop" for a tower alone. Raises as
    `internvl.load`, and InputError for mode G of a tower.
    """
    path = resolve(name)
    said = str(path) if Path(name).exists() else name
    if isinstance(open_checkpoint(path).description.config, ContrastiveConfig):
        encoder: Any = (load_model if mode == "G" else load_image_encoder)(path, device=device, dtype=dtype)
        return ContrastiveEmbedder(encoder, said, mode=mode, fit=fit or "squash", normalized=normalized)
    if mode != "C":
        raise InputError(f"{name} has no mode {mode}: that is of InternVL-G; leave the mode out")
    tower = VisionModel(
        load_vision(path, device=device, dtype=dtype), normalization=describe_normalization(path)
    )
    return VisionEmbedder(tower, said, fit=fit or "crop", normalized=normalized)


def picture_weights(name: str, *, mode: Mode, dtype: str) -> str:
    """The `weights` in the identity of a dual encoder, without the encoder: for whoever holds its text side.

    Tensors are read one at a time. Raises as `open_embedder`, and InputError for a model without a text side.
    """
    checkpoint = open_checkpoint(resolve(name))
    config = checkpoint.description.config
    if not isinstance(config, ContrastiveConfig):
        raise InputError(f"{name} is a {checkpoint.description.kind} model: name one of InternVL-C or -G")
    target, cpu = choose_dtype(dtype, checkpoint), torch.device("cpu")

    def read() -> Iterator[tuple[str, Tensor]]:
        for key in build(config).state_dict():
            if key.startswith(PICTURE_SIDE[mode]) and key in checkpoint.tensors:
                yield key, place(checkpoint.tensors[key], target, cpu, check_finite=False)

    return weights_digest(read())


def _identity(
    name: str,
    weights: str,
    dtype: torch.dtype,
    *,
    mode: Mode | None,
    fit: Fit,
    normalized: bool,
) -> dict[str, Any]:
    """`mode` is None for a tower alone."""
    return {
        "model": name,
        "weights": weights,
        "dtype": str(dtype).removeprefix("torch."),
        "mode": mode,
        "fit": fit,
        "normalized": normalized,
    }
