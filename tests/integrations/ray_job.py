"""A slow job on Ray with two workers, in a process of its own, to be killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from internvl.integrations.ray_embed import embed_on_ray
from internvl.search.embed import make_job
from internvl.search.inputs import Inputs
from tests.search.fakes import FakeEmbedder

DEADLY = (5, 5)
"""Size of a picture that ends the process that reads it."""

HOLD = "hold"
"""While a file of this name is in the folder of the workers, none of them computes."""


class Watched(FakeEmbedder):
    """Leaves the number of its process in the folder `workers`, and waits there."""

    def __init__(self, workers: Path, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self.workers = workers
        (workers / str(os.getpid())).touch()

    def prepare(self, image: Image.Image) -> Tensor:
        if image.size == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(image)

    def embed(self, tiles_B3SS: Tensor) -> Tensor:
        while (self.workers / HOLD).exists():
            time.sleep(0.02)
        return super().embed(tiles_B3SS)


def main(pictures: str, out: str, workers: str, seconds: str) -> None:
    job = make_job(Inputs([pictures]), FakeEmbedder(), shard_rows=4, batch=3)
    opener = partial(Watched, Path(workers), float(seconds))
    embed_on_ray(job, opener, Path(out), workers=2, threads=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
