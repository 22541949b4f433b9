"""An embedder without a model, pictures of every kind of input, and pictures that are none."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl.errors import ImageError
from internvl.processing.crop import fit_square
from internvl.processing.tiles import normalize
from internvl.search.embed import embed, make_job
from internvl.search.inputs import Inputs

SIDE = 8


@dataclass
class FakeEmbedder:
    """A fixed projection of 8 x 8 pixels. `seconds` is how long a batch takes, and "huge.png" overflows."""

    width: int = 6
    seconds: float = 0.0
    seed: int = 0
    batches: list[int] = field(default_factory=list)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "fake", "weights": f"{self.seed}", "mode": "C", "fit": "squash", "normalized": False}

    def prepare(self, image: Image.Image) -> Tensor:
        if image.size == (3, 3):
            raise ImageError("a picture of 3 x 3 pixels is not liked")
        return normalize([fit_square(image, SIDE, "squash")], "imagenet")[0]

    def embed(self, tiles_B3SS: Tensor) -> Tensor:
        time.sleep(self.seconds)
        self.batches.append(len(tiles_B3SS))
        generator = torch.Generator().manual_seed(self.seed)
        weight = torch.randn(3 * SIDE * SIDE, self.width, generator=generator)
        return tiles_B3SS.flatten(1) @ weight


def picture(seed: int, size: tuple[int, int] = (12, 9), kind: str = "PNG") -> bytes:
    """An encoded picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


BROKEN: Mapping[str, bytes] = {
    "cut.png": picture(1)[:150],
    "empty.jpg": b"",
    "small.png": picture(2, (3, 3)),
    "text.jpg": b"no picture at all",
}


def write_folder(folder: Path, count: int, broken: Mapping[str, bytes] = BROKEN) -> Path:
    """`count` good pictures in two folders, and the broken ones among them."""
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        (folder / ("sub" if number % 3 else "") / f"{number:04}.png").write_bytes(picture(number))
    for name, content in broken.items():
        (folder / "sub" / name).write_bytes(content)
    return folder


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_embeddings(folder: Path, pictures: Sequence[str | Path], **options: Any) -> Path:
    """A finished job of the fake embedder."""
    inputs, embedder = Inputs(pictures), FakeEmbedder()
    embed(make_job(inputs, embedder, **{"shard_rows": 4, "batch": 3, **options}), inputs, embedder, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(pictures: str, out: str, form: str, seconds: str) -> None:
    """A slow job in a process of its own, to be killed."""
    inputs, embedder = Inputs([pictures]), FakeEmbedder(seconds=float(seconds))
    job = make_job(inputs, embedder, shard_rows=4, batch=3, form="npy" if form == "npy" else "parquet")
    embed(job, inputs, embedder, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
