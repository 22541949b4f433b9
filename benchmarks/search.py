"""Search over a folder of photos: time of a query after it was encoded, recall of HNSW, and speed of
embedding.

Embedding: whole pictures from JPEG to vector, `internvl.search` against transformers' InternVL vision tower
of the same size (random weights) behind the same reading and resizing, in turns of one batch (A B A B).
Search: every photo is embedded into --out (an interrupted run goes on there), indexed exactly and as HNSW,
and asked the texts of --queries one by one; without --queries, for a model that knows no texts, with noisy
copies of the photos' own vectors. Recall is the share of the exact 10 nearest that HNSW finds. The floor of
an exact query is reading all vectors once.

    scripts/bench search PHOTOS --model nano-c --queries captions.txt --out DIR [--threads 2] [--batches 10]

Prints one JSON line per quantity: medians, versions, machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import InternVLVisionConfig, InternVLVisionModel

import internvl
from internvl.api.load import load_texts
from internvl.config import VisionConfig
from internvl.processing.image import load_image
from internvl.search.embed import ahead, embed, make_job
from internvl.search.embedders import ContrastiveEmbedder, Embedder, open_embedder
from internvl.search.index import build
from internvl.search.inputs import Inputs
from internvl.search.query import Index
from internvl.search.vectors import Embeddings

K = 10


def their_tower(config: VisionConfig, embedder: Embedder) -> InternVLVisionModel:
    side = embedder.prepare(load_image(np.zeros((8, 8, 3), np.uint8))).shape[-1]
    return InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_width,
            image_size=[side, side],
            patch_size=[config.patch_size, config.patch_size],
            attention_bias=config.qkv_bias,
            use_qk_norm=config.qk_norm,
            norm_type="layer_norm" if config.norm == "layer" else "rms_norm",
        )
    ).eval()


def seconds_per_picture(inputs: Inputs, embedder: Embedder, batches: int, size: int) -> dict[str, object]:
    """Medians over batches in turns; one batch of each as warm-up."""
    tower = embedder.encoder.vit if isinstance(embedder, ContrastiveEmbedder) else embedder.model.tower  # type: ignore[attr-defined]
    theirs = their_tower(tower.config, embedder)
    sources = [inputs.items(row)[0].source for row in range(min(len(inputs), size * (batches + 1)))]
    groups = [sources[start : start + size] for start in range(0, len(sources) - size + 1, size)]
    times: dict[str, list[float]] = {"ours": [], "transformers": []}

    def their_embed(tiles_B3SS: Tensor) -> Tensor:
        with torch.inference_mode():
            return theirs(pixel_values=tiles_B3SS).last_hidden_state[:, 0]

    with ThreadPoolExecutor(2) as readers:
        for group in groups:
            for name, work in (("ours", embedder.embed), ("transformers", their_embed)):
                start = time.perf_counter()
                tiles = list(ahead(readers, lambda one: embedder.prepare(load_image(one)), group, 2 * size))
                work(torch.stack(tiles))
                times[name].append((time.perf_counter() - start) / size)
    ours, other = (statistics.median(times[name][1:]) for name in ("ours", "transformers"))
    return {
        "what": "embedding, seconds a picture",
        "ours": round(ours, 5),
        "transformers": round(other, 5),
        "rate": round(other / ours, 2),
        "batches": len(groups) - 1,
        "batch": size,
        "side": list(tiles[0].shape[1:]),
    }


def queries(options: argparse.Namespace, embeddings: Embeddings) -> NDArray[np.float32]:
    if options.queries:
        texts = Path(options.queries).read_text(encoding="utf-8").splitlines()[: options.num_queries]
        found: NDArray[np.float32] = load_texts(options.model).embed_texts(texts).float().numpy()
        return found
    vectors_BE = np.concatenate([part for _, part in embeddings.parts()])
    random = np.random.default_rng(0)
    chosen = vectors_BE[random.permutation(len(vectors_BE))[: options.num_queries]]
    noise = random.normal(size=chosen.shape) * chosen.std() / 2
    return (chosen + noise).astype(np.float32)


def ask(index: Index, queries_QE: NDArray[np.float32]) -> tuple[list[set[int]], list[float]]:
    """Rows found for each query, and its milliseconds."""
    index.search(queries_QE[:1], K)
    found, times = [], []
    for query_E in queries_QE:
        start = time.perf_counter()
        hits = index.search(query_E[None], K)[0]
        times.append(1000 * (time.perf_counter() - start))
        found.append({hit.row for hit in hits})
    return found, times


def compare(embeddings: Embeddings, queries_QE: NDArray[np.float32], out: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    exact: list[set[int]] = []
    for kind in ("exact", "hnsw"):
        start = time.perf_counter()
        build([embeddings], out / kind, kind=kind)  # type: ignore[arg-type]
        built = time.perf_counter() - start
        start = time.perf_counter()
        index = Index(out / kind)
        opened = time.perf_counter() - start
        found, times = ask(index, queries_QE)
        exact = exact or found
        recall = np.mean([len(a & b) / len(b) for a, b in zip(found, exact, strict=True)])
        rows.append(
            {
                "what": f"search, {kind}",
                "vectors": len(index),
                "width": index.description.width,
                "queries": len(queries_QE),
                "median_ms": round(statistics.median(times), 3),
                "p95_ms": round(float(np.quantile(times, 0.95)), 3),
                "recall_at_10": round(float(recall), 4),
                "build_s": round(built, 2),
                "open_s": round(opened, 3),
            }
        )
    return rows


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(named, platform.processor()),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "faiss_version": faiss.__version__,
        "internvl_version": internvl.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--model", default="nano-c")
    parser.add_argument("--queries")
    parser.add_argument("--num-queries", type=int, default=200)
    parser.add_argument("--out", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    out = Path(options.out)
    inputs, embedder = Inputs([options.photos]), open_embedder(options.model)
    rows = [seconds_per_picture(inputs, embedder, options.batches, options.batch)]
    job = make_job(inputs, embedder, batch=options.batch)
    start = time.perf_counter()
    manifest = embed(job, inputs, embedder, out / "vectors")
    seconds = time.perf_counter() - start
    rows.append({"what": "embedding all", "pictures": manifest["vectors"], "seconds": round(seconds, 1)})
    embeddings = Embeddings(out / "vectors")
    rows += compare(embeddings, queries(options, embeddings), out)
    for row in rows:
        sys.stdout.write(json.dumps({**row, "model": options.model, **machine()}) + "\n")


if __name__ == "__main__":
    main()
