"""One side of a contrastive checkpoint as a model: only the tensors of that side are read.

The text side is the text model without queries, cross attention and head, and its projection; the image side
is the vision tower and its pool, which is all that mode C needs. Whole models are read by `checkpoints.load`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from internvl.checkpoints.fill import fill
from internvl.checkpoints.load import choose_dtype, resolve_device
from internvl.checkpoints.resolve import Checkpoint, open_checkpoint
from internvl.config import ContrastiveConfig
from internvl.errors import ConfigError
from internvl.models.dual_encoder import ImageEncoder, TextEncoder


def load_text_encoder(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    check_finite: bool = True,
) -> TextEncoder:
    """The text side, in evaluation mode; arguments are those of `load_model`.

    Its embeddings are those of the whole model in both modes; its `config` says that it has no queries.

    Raises:
        ConfigError: the checkpoint is no contrastive model.
        CheckpointError, DeviceError: as `load_model`.
    """
    checkpoint, config = _open(path)
    with torch.device("meta"):
        encoder = TextEncoder(replace(config, num_queries=0))
    _fill(encoder, checkpoint, dtype, device, check_finite=check_finite)
    return encoder.eval()


def load_image_encoder(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    check_finite: bool = True,
) -> ImageEncoder:
    """The image side of mode C, in evaluation mode; arguments are those of `load_model`.

    Raises:
        ConfigError: the checkpoint is no contrastive model.
        CheckpointError, DeviceError: as `load_model`.
    """
    checkpoint, config = _open(path)
    with torch.device("meta"):
        encoder = ImageEncoder(config)
    _fill(encoder, checkpoint, dtype, device, check_finite=check_finite)
    return encoder.eval()


def _open(path: str | Path) -> tuple[Checkpoint, ContrastiveConfig]:
    checkpoint = open_checkpoint(path)
    config = checkpoint.description.config
    if not isinstance(config, ContrastiveConfig):
        raise ConfigError(
            f"{path} is a {checkpoint.description.kind} model: only a contrastive one has a text side and an "
            "image side that meet in one space"
        )
    return checkpoint, config


def _fill(
    encoder: nn.Module,
    checkpoint: Checkpoint,
    dtype: str | torch.dtype,
    device: str | torch.device,
    *,
    check_finite: bool,
) -> None:
    """As `checkpoints.load.fill`, from a checkpoint that holds more than the encoder."""
    target, weights = resolve_device(device), choose_dtype(dtype, checkpoint)
    tensors = {name: checkpoint.tensors[name] for name in encoder.state_dict() if name in checkpoint.tensors}
    part = replace(checkpoint, tensors=tensors, unexpected=())
    fill(encoder, part, weights, target, check_finite=check_finite)
