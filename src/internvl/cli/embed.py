"""`internvl embed`: vectors of many pictures into a folder of shards; run again, it goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from internvl.api.contrastive import Mode
from internvl.cli import output
from internvl.cli.arguments import ContrastiveOptions, File, Flag, Word, parse
from internvl.cli.loading import find
from internvl.errors import InputError
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
    if options.out is None:
        raise InputError("say where the vectors go: --out FOLDER")
    if not 1 <= options.workers <= MAX_WORKERS:
        raise InputError(f"--workers counts from 1 to {MAX_WORKERS}, got {options.workers}")
    inputs = Inputs(options.inputs, options.columns())
    embedder = _open(options)
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
        manifest = embed(
            job,
            inputs,
            embedder,
            Path(options.out),
            workers=options.workers,
            progress=lambda done, total: advance("", done, total),
        )
    _tell(manifest, Path(options.out), time.perf_counter() - start, is_json=options.json)
    return 0 if manifest["vectors"] else 1


def _open(options: Options) -> Embedder:
    options.model.use_threads()
    find(options.model.model)
    with output.status(f"loading {options.model.model}"):
        return open_embedder(
            options.model.model,
            mode=options.mode,
            fit=options.fit,
            normalized=options.normalize,
            device=options.model.device,
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
