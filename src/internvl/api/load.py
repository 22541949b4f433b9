"""From a name or a path to a model, and back to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from internvl.api.chat import ChatModel
from internvl.api.contrastive import ContrastiveModel, TextModel
from internvl.api.vision import VisionModel
from internvl.checkpoints.configs import describe_normalization
from internvl.checkpoints.encoders import load_text_encoder
from internvl.checkpoints.load import build, choose_dtype, load_opened, resolve_device
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.resolve import open_checkpoint
from internvl.checkpoints.write import save_model
from internvl.config import IMG_CONTEXT, ChatConfig, ContrastiveConfig
from internvl.models.vlm import VLM
from internvl.processing.colour import ImagePolicy
from internvl.processing.image import ImageLimits
from internvl.processing.processor import Processor
from internvl.processing.texts import TextProcessor
from internvl.processing.tokenizer import Tokenizer, load_tokenizer
from internvl.zoo import template_of


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    quantize: str | Mapping[str, str] | None = None,
    template: str | None = None,
    vision_path: str | Path | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    limits: ImageLimits | None = None,
    policy: ImagePolicy | None = None,
) -> ChatModel | ContrastiveModel | VisionModel:
    """Load any checkpoint of the family: a `ChatModel`, a `ContrastiveModel` (InternVL-C and -G), or a
    `VisionModel` for a tower alone.

    Args:
        name_or_path: a directory in any layout, a weight file, or a name of `docs/models.md`
            ("nano" comes with this package), fetched on first use.
        device: "cpu", "cuda", "mps"; only the CPU has been tested.
        dtype: of the weights in memory; "auto" is that of the files.
        quantize: pack the linear layers for the CPU's kernels: "bfloat16" (exact for published weights),
            "int8", "int4", "float32", or {pattern over names of layers: scheme}; for inference, in dtype
            float32. None keeps them as they are.
        template: chat template; wins over the checkpoint's own. A zoo name brings its own: models of
            1.x the system message of May 2024, with which they were measured.
        vision_path: the tower's checkpoint, where a LLaVA-style one does not hold it.
        tokenizer: a directory with the tokenizer's files, where the checkpoint has none beside it, as the
            original `.pth` of InternVL-C.
        revision: branch, tag or commit on the hub.
        offline: True never asks the network; None follows HF_HUB_OFFLINE.
        limits: what pictures, videos and documents are read at all; web addresses are closed by default.
        policy: how pictures become RGB; `processing.colour.RELEASED_POLICY` is what the released code
            does with EXIF and transparency.

    Raises:
        UnknownNameError: no such path and no such model.
        CheckpointError: files that cannot be read or do not fit (ConfigError, WeightsError,
            TokenizerError).
        HubError: it cannot be downloaded.
        DeviceError: a device or dtype that is not available.
        InputError: packed weights on another device or in another dtype, an unknown scheme or pattern.
    """
    resolve_device(device)
    path = resolve(name_or_path, revision=revision, offline=offline)
    chosen = template or template_of(name_or_path)
    checkpoint = open_checkpoint(path, template=chosen, vision_path=vision_path)
    config = checkpoint.description.config
    if not isinstance(config, ChatConfig | ContrastiveConfig):
        tower = load_opened(checkpoint, dtype=dtype, device=device, quantize=quantize)
        return VisionModel(tower, normalization=describe_normalization(path))  # type: ignore[arg-type]
    words, source = _tokenizer(path, tokenizer)
    if isinstance(config, ContrastiveConfig):
        texts = TextProcessor(words, vocab_size=config.text.vocab_size)
        encoder: Any = load_opened(checkpoint, dtype=dtype, device=device, quantize=quantize)
        return ContrastiveModel(encoder, texts, source=source, limits=limits, policy=policy)
    processor = Processor(config, words, limits=limits, policy=policy)
    model = load_opened(checkpoint, dtype=dtype, device=device, quantize=quantize)
    return ChatModel(model, processor, source=source)  # type: ignore[arg-type]


def load_outline(
    path: str | Path, *, dtype: str | torch.dtype = "float32", template: str | None = None
) -> ChatModel | None:
    """A chat model without its weights, for whoever prepares and explains requests that another process
    answers; None for a model that does not chat.

    Arguments and errors are those of `load`, but `path` must be on this disk, and tensors are not read.
    """
    checkpoint = open_checkpoint(path, template=template)
    config = checkpoint.description.config
    if not isinstance(config, ChatConfig):
        return None
    words, source = _tokenizer(Path(path), None)
    vlm = build(config)
    assert isinstance(vlm, VLM)
    return ChatModel(vlm.to(choose_dtype(dtype, checkpoint)), Processor(config, words), source=source)


def load_texts(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> TextModel:
    """The text side of InternVL-C or -G alone: of the weights, only its own are read.

    Arguments and errors are those of `load`; ConfigError for a model that is not contrastive.
    """
    path = resolve(name_or_path, revision=revision, offline=offline)
    words, source = _tokenizer(path, tokenizer)
    encoder = load_text_encoder(path, dtype=dtype, device=device)
    processor = TextProcessor(words, vocab_size=encoder.config.text.vocab_size)
    return TextModel(encoder, processor, source=source)


def save(
    model: ChatModel | ContrastiveModel | VisionModel,
    path: str | Path,
    layout: str = "official",
    *,
    overwrite: bool = False,
) -> None:
    """Write a model as a checkpoint directory, whole or not at all.

    Args:
        model: what `load` gave.
        path: must be empty or absent unless `overwrite`.
        layout: "official" (the published code's names) or "hf" (transformers'; it has no contrastive models).
        overwrite: replace a directory that holds files.

    Raises:
        CheckpointError: the directory is in use, or cannot be written.
        UnknownNameError: no such layout.
    """
    if isinstance(model, VisionModel):
        save_model(
            model.tower, model.config, path, layout, normalization=model.normalization, overwrite=overwrite
        )
        return
    tokenizer = model.processor.tokenizer
    save_model(
        model.encoder if isinstance(model, ContrastiveModel) else model.vlm,
        model.config,
        path,
        layout,
        extra_files_from=model.source,
        tokenizer_files=tokenizer.files,
        image_token_id=tokenizer.token_id(IMG_CONTEXT),
        overwrite=overwrite,
    )


def _tokenizer(path: Path, elsewhere: str | Path | None) -> tuple[Tokenizer, Path | None]:
    """The tokenizer, and the directory whose files belong to the model if they are all there."""
    if elsewhere is not None:
        return load_tokenizer(elsewhere), None
    directory = path if path.is_dir() else path.parent
    return load_tokenizer(directory), directory
