"""Memory and time of recall at k over random vectors, all pairs compared, against one matrix of scores.

Each number of vectors is measured in a process of its own: what its peak of memory grows by while recall is
computed, embeddings not counted. The matrix is what has to be held where scores are kept: 40 GB of float32
for 100,000 pictures and as many texts.

    scripts/bench retrieval_memory [--sizes 10000 100000] [--width 768] [--threads 2]

Prints one JSON line per size. Texts are their picture plus noise, so that the shares say something.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time

import torch

from internvl.evaluation.retrieval import BLOCK, recall

NOISE = 5.0


def measure(size: int, width: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    images_IE = torch.randn(size, width, generator=generator)
    texts_TE = torch.randn(size, width, generator=generator).mul_(NOISE).add_(images_IE)
    recall(images_IE[:64], texts_TE[:64], range(64))  # what is loaded once is loaded before
    before, start = peak(), time.perf_counter()
    found = recall(images_IE, texts_TE, torch.arange(size))
    seconds, grown = time.perf_counter() - start, peak() - before
    return {
        "benchmark": "retrieval_memory",
        "pictures": size,
        "texts": size,
        "width": width,
        "block": BLOCK,
        "mb_beyond_embeddings": round(grown / 1e6, 1),
        "mb_of_embeddings": round(2 * images_IE.nbytes / 1e6, 1),
        "mb_of_all_scores": round(4 * size * size / 1e6, 1),
        "seconds": round(seconds, 2),
        "gflops": round(2 * size * size * width / seconds / 1e9, 1),
        "text_to_image": found.text_to_image,
        "image_to_text": found.image_to_text,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def peak() -> int:
    """Bytes at most resident so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", type=int, help="measure this size here; used by the script itself")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone is not None:
        print(json.dumps(measure(options.alone, options.width)), flush=True)
        return
    for size in options.sizes:
        words = ["--alone", str(size), "--width", str(options.width), "--threads", str(options.threads)]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
