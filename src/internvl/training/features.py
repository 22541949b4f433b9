"""Features of a frozen tower, computed once and kept on disk in float16.

One array per set of pictures, (pictures, patches, width), class token left out. Only models whose
pictures are one tile each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from internvl.errors import InputError, TrainingError
from internvl.models.vlm import VLM


class Features:
    """A memory-mapped array of patch features."""

    def __init__(self, path: Path) -> None:
        self.array = np.load(path, mmap_mode="r", allow_pickle=False)

    def take(self, indices: Sequence[int]) -> Tensor:
        """(N, P, C) in float32."""
        return torch.from_numpy(np.asarray(self.array[list(indices)], dtype=np.float32))


def features_key(model: VLM, pictures: Iterable[Path], dtype: torch.dtype) -> str:
    """Changes with all that features depend on: the tower's weights and settings, the pictures, the dtype.

    Pictures count by path, size and time of change; their pixels are not read.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"{model.config.vision} {model.config.tiling} {model.config.select_layer} {dtype}".encode())
    for name, weight in model.vit.state_dict().items():
        digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    for picture in pictures:
        status = picture.stat()
        digest.update(f"{picture} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


@torch.inference_mode()
def cache_features(
    model: VLM,
    tiles: Callable[[int], Tensor],
    count: int,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 16,
) -> Features:
    """Runs the tower over `tiles(0)` ... `tiles(count - 1)`, each (1, 3, H, W), unless `path` is there.

    `dtype` below float32 computes under autocast. The name of `path` must tell its contents apart (see
    `features_key`). Raises InputError for more than one tile a picture, TrainingError for features that
    float16 cannot hold.
    """
    if path.is_file():
        return Features(path)
    patches = (model.config.tiling.tile_size // model.config.vision.patch_size) ** 2
    shape = (count, patches, model.config.vision.width)
    partial = path.with_suffix(".partial.npy")
    out = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
    for first in range(0, count, batch):
        some = [tiles(index) for index in range(first, min(first + batch, count))]
        if any(len(one) != 1 for one in some):
            raise InputError("a picture became several tiles: cached features need fixed tiling")
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            features_NPC = model.vit(torch.cat(some), model.config.select_layer)[:, 1:]
        features_NPC = features_NPC.to(torch.float16)
        if not features_NPC.isfinite().all():
            raise TrainingError(f"features of pictures {first} to {first + len(some) - 1} exceed float16")
        out[first : first + len(some)] = features_NPC.numpy()
    out.flush()
    partial.replace(path)
    return Features(path)
