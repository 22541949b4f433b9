"""What a frozen tower makes of tiles, computed once and kept on disk.

A tile's file is named by its pixels after the transform, in a folder named by the tower's weights and
settings: a picture cut or normalised otherwise, or another tower, never meets an old file. Knows no data and
no loop. Shape letters: N tiles, P patches (of a dual encoder with the class token), C vision width.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from internvl.data.batch import Batch
from internvl.data.pairs import PairBatch
from internvl.errors import TrainingError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import ACCELERATED_TILES_AT_ONCE, POSITIONS_AT_ONCE, VLM

NAME = "features"

AnyBatch = TypeVar("AnyBatch", Batch, PairBatch)


class FeatureCache:
    """What the rest of `model` reads of its tower, in `folder`, which several runs and processes may share.

    `dtype` is kept on disk; below float32 the tower also computes in it (autocast). Drop path is off.
    `augmented` names the data sets whose pictures differ from one look to the next. Raises TrainingError for
    any of those, for a tower that is trained (make it after the recipe's rules have frozen the model) and for
    a sharded one.
    """

    def __init__(
        self,
        model: VLM | DualEncoder,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        *,
        augmented: Sequence[str] = (),
    ) -> None:
        trained = [name for name, p in model.vit.named_parameters() if p.requires_grad]
        if trained:
            raise TrainingError(
                f"features of a tower that is trained cannot be kept: {len(trained)} of its parameters are, "
                f"first vit.{trained[0]}. Freeze it, or set execution.cache_features=false"
            )
        if augmented:
            raise TrainingError(
                f"features of augmented pictures cannot be kept ({', '.join(augmented)}): set data_augment "
                "to false in the meta file, or execution.cache_features=false"
            )
        if any(isinstance(module, FSDPModule) for module in model.modules()):
            raise TrainingError(
                "features are made by whole towers: use execution.parallel=ddp with the cache"
            )
        self.model, self.dtype = model, dtype
        self.folder = folder / tower_key(model, dtype)

    def features(self, batch: AnyBatch) -> AnyBatch:
        """`batch` with features in place of its tiles; what is not on disk yet is computed and kept.

        Raises TrainingError for values that the dtype cannot hold, OSError where the disk is full.
        """
        if isinstance(batch, PairBatch):
            tiles_B3HW = batch.tiles_B3HW
            return replace(batch, features_BPC=self.of(tiles_B3HW), tiles_B3HW=tiles_B3HW[:0])
        tiles_N3HW = batch.tiles_N3HW
        return replace(batch, features_NPC=self.of(tiles_N3HW), tiles_N3HW=tiles_N3HW[:0])

    def of(self, tiles_N3HW: Tensor) -> Tensor:
        """(N, P, C) on the CPU; errors as `features`."""
        keys = [tile_key(tile_3HW) for tile_3HW in tiles_N3HW]
        read = {key: self._read(key) for key in dict.fromkeys(keys)}
        missing = [key for key, features_PC in read.items() if features_PC is None]
        made = self._compute(tiles_N3HW[[keys.index(key) for key in missing]])
        for key, features_PC in zip(missing, made, strict=True):
            self._write(key, features_PC)
        found = {key: features_PC for key, features_PC in read.items() if features_PC is not None}
        found.update(zip(missing, made, strict=True))
        rows = [found[key] for key in keys]
        return torch.stack(rows) if rows else self._nothing(tiles_N3HW)

    @torch.no_grad()
    def _compute(self, tiles_N3HW: Tensor) -> list[Tensor]:
        vit, (layer, first) = self.model.vit, _reading(self.model)
        if not len(tiles_N3HW):
            return []
        device, was_training = vit.embed.position.device, vit.training
        at_once = ACCELERATED_TILES_AT_ONCE
        if device.type == "cpu":
            at_once = max(1, POSITIONS_AT_ONCE // (1 + self._patches(tiles_N3HW)))
        vit.eval()
        try:
            with torch.autocast(device.type, self.dtype, enabled=self.dtype.itemsize < 4):
                parts = [vit(part.to(device), layer)[:, first:] for part in tiles_N3HW.split(at_once)]
        finally:
            vit.train(was_training)
        features_NPC = torch.cat(parts).to("cpu", self.dtype)
        if not features_NPC.isfinite().all():
            raise TrainingError(
                f"features of the tower exceed {self.dtype}: keep them in bfloat16 or float32"
            )
        return list(features_NPC)

    def _patches(self, tiles_N3HW: Tensor) -> int:
        return tiles_N3HW.shape[2] * tiles_N3HW.shape[3] // self.model.config.vision.patch_size**2

    def _nothing(self, tiles_N3HW: Tensor) -> Tensor:
        patches = 1 + self._patches(tiles_N3HW) - _reading(self.model)[1]
        return torch.empty(0, patches, self.model.config.vision.width, dtype=self.dtype)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Tensor | None:
        """None for a file that is not there, or was cut short when the machine went down."""
        try:
            return load_file(self._path(key))[NAME]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def _write(self, key: str, features_PC: Tensor) -> None:
        """Under a name of its own first: whoever is last to rename puts the same bytes there."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(suffix=".partial", dir=path.parent)
        os.close(handle)
        try:
            save_file({NAME: features_PC.contiguous()}, partial)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)


def _reading(model: VLM | DualEncoder) -> tuple[int, int]:
    """The hidden state of the tower that the model reads, and the first position of it: a chat model leaves
    out the class token."""
    return (model.config.select_layer, 1) if isinstance(model, VLM) else (-1, 0)


def tile_key(tile_3HW: Tensor) -> str:
    """Of the pixels a tower sees: equal tiles have equal keys, whatever picture they are cut from."""
    digest = hashlib.blake2b(f"{tuple(tile_3HW.shape)} {tile_3HW.dtype}".encode(), digest_size=16)
    digest.update(_bytes(tile_3HW))
    return digest.hexdigest()


def tower_key(model: VLM | DualEncoder, dtype: torch.dtype) -> str:
    """Changes with the tower's weights and configuration, what is read of it, and the dtype."""
    vision, (layer, first) = replace(model.config.vision, drop_path=0.0), _reading(model)
    read = f"{layer}" if first else f"{layer} with class token"
    digest = hashlib.blake2b(f"{vision} {read} {dtype}".encode(), digest_size=16)
    for name, weight in model.vit.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
