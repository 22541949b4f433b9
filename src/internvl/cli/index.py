"""`internvl index`: an index over the vectors that `internvl embed` wrote."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from internvl.cli import output
from internvl.cli.arguments import File, Flag, parse
from internvl.errors import InputError
from internvl.search.index import Kind, build
from internvl.search.vectors import Embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Make an index of embeddings, to be asked by `internvl search`.

    The number of vectors decides the kind: up to 50,000 exact, up to a million hnsw (a graph; about one in a
    hundred of the nearest may be missed), above ivfpq (vectors as short codes; approximate). An index that is
    there is replaced when the new one is complete.
    """

    embeddings: Annotated[Positional[tuple[str, ...]], arg(metavar="FOLDER ...", help_behavior_hint="")] = ()
    """Folders that `internvl embed` wrote with one model."""
    out: File = None
    """The folder of the index."""
    kind: Annotated[Kind | None, arg(help_behavior_hint="")] = None
    """Another kind than the number of vectors asks for."""
    json: Flag = False
    """Print one JSON document."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "index", rest="embeddings")
    if not options.embeddings or options.out is None:
        raise InputError("name the folders of embeddings, and where the index goes: --out FOLDER")
    sources = [Embeddings(folder) for folder in options.embeddings]
    start = time.perf_counter()
    with output.status(f"indexing {sum(map(len, sources))} vectors"):
        description = build(sources, Path(options.out), kind=options.kind)
    seconds = time.perf_counter() - start
    if options.json:
        fields = {"kind": description.kind, "count": description.count, "width": description.width}
        output.write_json({"out": options.out, **fields, "seconds": round(seconds, 3)})
    else:
        output.write(f"{options.out}\n")
    output.note(f"{description.count} vectors, {description.kind}")
    return 0
