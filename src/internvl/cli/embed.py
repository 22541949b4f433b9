"""`internvl embed`: vectors of many pictures into a folder of shards; run again, it goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from internvl.api.contrastive import Mode
from internvl.cli import output
from internvl.cli.arguments import ContrastiveOptions, File, Flag, Whole, Word, parse
from internvl.cli.loading import find
from internvl.errors import InputError
from internvl.integrations.ray_embed import embed_on_ray
from internvl.processing.crop import Fit
from internvl.search.columns import Columns, visible
from internvl.search.embed import embed, make_job
from internvl.search.embedders import Embedder, open_embedder
from internvl.search.folder import ERRORS
from internvl.search.inputs import Inputs
from internvl.search.job import Form, Precision

SHOWN = 10
MAX_WORKERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Write the vectors of pictures, with their keys and metadata, as shards into a folder.

    Killed at any moment, the same command goes on where it was, and the folder ends up the same to the byte.
    A picture that cannot be read goes to errors.jsonl with its reason; exit status 1 tells that none could.
    """

    inputs: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PICTURE|FOLDER|LIST ...", help_behavior_hint="")
    ] = ()
    """Pictures, folders of them, text files with a path a line, tar shards, JSONL, CSV or parquet."""
    out: File = None
    """The folder to write: a new one, or that of the same job."""
    model: OmitArgPrefixes[ContrastiveOptions] = field(default_factory=ContrastiveOptions)
    mode: Mode = "C"
    """Pictures as InternVL-C or as InternVL-G sees them."""
    fit: Annotated[Fit | None, arg(help_behavior_hint="")] = None
    """The whole picture, its shape changed, or the centre square; the model's own way by default (squash
    where texts can be compared, crop for a vision tower)."""
    normalize: Flag = False
    """Divide each vector by its length."""
    format: Form = "parquet"
    """Shards as parquet, or as .npy with a .jsonl of the keys beside it."""
    precision: Precision = "float32"
    """Of the vectors on disk."""
    shard: Annotated[int, arg(metavar="N")] = 1000
    """Rows of a shard: at most these are computed again after an interruption."""
    batch: Annotated[int, arg(metavar="N")] = 8
    """Pictures computed together."""
    workers: Annotated[int, arg(metavar="N")] = 2
    """Threads that read pictures ahead."""
    ray: Whole = None
    """Compute in this many processes on Ray (extra "ray"): on the cluster that RAY_ADDRESS names, or else
    here. Each uses --threads processors, or a GPU of its own with --device cuda."""
    key: Word = None
    """The column that names a row; key, the picture's path, id or the row's number by default."""
    image: Word = None
    """The column of the picture; image or images by default."""
    metadata: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="COLUMN", help_behavior_hint="")] = ()
    """A column to keep beside the vector; may be repeated. All but the picture by default."""
    json: Flag = False
    """Print one JSON document."""

    def columns(self) -> Columns:
        return Columns(key=self.key, image=self.image, metadata=self.metadata or None)


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "embed", rest="inputs")
    out = _check(options)
    inputs, device = Inputs(options.inputs, options.columns()), options.model.device
    embedder = _open(options, device if options.ray is None else "cpu")
    job = make_job(
        inputs,
        embedder,
        form=options.format,
        precision=options.precision,
        shard_rows=options.shard,
        batch=options.batch,
    )
    start = time.perf_counter()
    with output.progress("embedding") as advance:

        def progress(done: int, total: int) -> None:
            advance("", done, total)

        if options.ray is None:
            manifest = embed(job, inputs, embedder, out, workers=options.workers, progress=progress)
        else:
            del embedder  # the job needed its identity; every worker opens it for itself
            manifest = embed_on_ray(
                job,
                _opener(options, device),
                out,
                workers=options.ray,
                readers=options.workers,
                gpus=int(device == "cuda"),
                progress=progress,
            )
    _tell(manifest, out, time.perf_counter() - start, is_json=options.json)
    return 0 if manifest["vectors"] else 1


def _check(options: Options) -> Path:
    if options.out is None:
        raise InputError("say where the vectors go: --out FOLDER")
    if not 1 <= options.workers <= MAX_WORKERS:
        raise InputError(f"--workers counts from 1 to {MAX_WORKERS}, got {options.workers}")
    if options.ray is not None and options.ray < 1:
        raise InputError(f"--ray counts from 1, got {options.ray}")
    if options.ray is not None and options.model.device not in ("cpu", "cuda"):
        raise InputError(
            f"on Ray --device is cpu or cuda, not {options.model.device}: Ray gives out the GPUs"
        )
    return Path(options.out)


def _open(options: Options, device: str) -> Embedder:
    options.model.use_threads()
    find(options.model.model)
    with output.status(f"loading {options.model.model}"):
        return _opener(options, device)()


def _opener(options: Options, device: str) -> Callable[[], Embedder]:
    name = options.model.model
    return partial(
        open_embedder,
        str(Path(name).absolute()) if Path(name).exists() else name,  # workers run in folders of their own
        mode=options.mode,
        fit=options.fit,
        normalized=options.normalize,
        device=device,
        dtype=options.model.dtype,
    )


def _tell(manifest: Mapping[str, Any], out: Path, seconds: float, *, is_json: bool) -> None:
    counts = {name: manifest[name] for name in ("vectors", "failures")}
    if is_json:
        job = manifest["job"]
        shards = {"rows": job["rows"], "width": job["width"], "shards": len(manifest["shards"])}
        output.write_json({"out": str(out), **shards, **counts, "seconds": round(seconds, 3)})
    else:
        output.write(f"{out}\n")
    if counts["failures"]:
        with (out / ERRORS).open(encoding="utf-8") as lines:
            for line, _ in zip(lines, range(SHOWN), strict=False):
                failure = json.loads(line)
                output.note(visible(f"{failure['key']}: {failure['reason']}"))
        if counts["failures"] > SHOWN:
            output.note(f"{counts['failures'] - SHOWN} more in {out / ERRORS}")
    output.note(f"{counts['vectors']} pictures embedded, {counts['failures']} failed")
