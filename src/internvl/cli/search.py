"""`internvl search`: the pictures of an index that are most like a text or a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tyro.conf import Positional, UseAppendAction, arg

from internvl.api.contrastive import Mode
from internvl.api.load import load_texts
from internvl.cli import output
from internvl.cli.arguments import File, Flag, Whole, Word, parse, use_threads
from internvl.cli.loading import find
from internvl.cli.media import IMAGE_LIMITS
from internvl.errors import InputError
from internvl.processing.crop import Fit
from internvl.processing.image import load_image
from internvl.search.columns import readable, visible
from internvl.search.embedders import open_embedder, picture_weights
from internvl.search.gallery import MAX_PICTURES, Answer, write_gallery
from internvl.search.index import INDEX
from internvl.search.query import Filter, Hit, Index
from internvl.search.vectors import Embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Find the pictures of an index that are most like each query, the best first.

    Scores are cosines: they order the pictures of one query and say little across queries. Exit status 1
    tells that nothing was found.
    """

    index: Annotated[Positional[str], arg(metavar="INDEX", help_behavior_hint="")]
    """The folder that `internvl index` wrote."""
    queries: Annotated[Positional[tuple[str, ...]], arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """Texts, in any language that the model knows; each is a query of its own."""
    image: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PICTURE", help_behavior_hint="")] = ()
    """A file or address to find similar pictures of; may be repeated."""
    k: Annotated[int, arg(metavar="N", aliases=("-k",))] = 10
    """Results of each query."""
    key: Word = None
    """Only keys like this, such as "2024/*.jpg"; * stands for slashes too."""
    where: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """Only pictures whose metadata say this, or hold it in a list; may be repeated, all must hold."""
    gallery: File = None
    """Write the results as one HTML page with thumbnails."""
    model: Word = None
    """Where the model lies now; by default where it lay when the pictures were embedded."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""
    json: Flag = False
    """Print one JSON document."""

    def filter(self) -> Filter:
        """Raises InputError for a condition that is none, and two for one name."""
        where: dict[str, str] = {}
        for condition in self.where:
            name, sign, value = condition.partition("=")
            if not sign or not name or name in where:
                raise InputError(f"--where {condition}: it takes NAME=VALUE, each name once")
            where[name] = value
        return Filter(key=self.key, where=where)


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "search", rest="queries")
    names = tuple(map(readable, (*options.queries, *options.image)))
    if not names:
        raise InputError("say what to search for: a text, or --image PICTURE")
    if options.gallery is not None and len(options.image) + len(names) * options.k > MAX_PICTURES:
        raise InputError(f"a gallery shows {MAX_PICTURES} pictures at most: take a smaller -k")
    only = options.filter()
    if options.threads is not None:
        use_threads(options.threads)
    index = Index(options.index)
    start = time.perf_counter()
    queries_QE = _encode(_made_by(index, options), options)
    middle = time.perf_counter()
    found = index.search(queries_QE, options.k, only=only)
    seconds = {"model": round(middle - start, 4), "search": round(time.perf_counter() - middle, 4)}
    pictures = (*(None for _ in options.queries), *options.image)
    answers = [
        Answer(query=name, hits=hits, picture=picture)
        for name, picture, hits in zip(names, pictures, found, strict=True)
    ]
    if options.gallery is not None:
        write_gallery(Path(options.gallery), answers, _finder(), title=", ".join(names))
    _tell(answers, seconds, options)
    return 0 if any(found) else 1


def _made_by(index: Index, options: Options) -> Mapping[str, Any]:
    """The identity of the embedder of the vectors. Raises InputError where the index does not say it."""
    made_by = index.description.embedder
    sound = {name: isinstance(made_by.get(name), str) for name in ("model", "weights", "dtype")}
    sound["mode"] = made_by.get("mode", "") in (None, *get_args(Mode))
    sound["fit"] = made_by.get("fit") in get_args(Fit)
    if lacking := [name for name, is_sound in sound.items() if not is_sound]:
        raise InputError(
            f"{Path(options.index) / INDEX} does not say what made the vectors: its embedder lacks "
            f"{', '.join(lacking)}; make them again with `internvl embed`, then `internvl index`"
        )
    return made_by


def _encode(made_by: Mapping[str, Any], options: Options) -> NDArray[np.float32]:
    """The vectors of all queries (Q, E), texts first. Raises InputError where the model does not fit."""
    name = options.model or made_by["model"]
    if options.queries and made_by["mode"] is None:
        raise InputError(
            f"the index was made by {name}, a vision tower that knows no texts: search with --image, or "
            "embed with InternVL-C or -G"
        )
    find(name)
    parts: list[Any] = []
    with output.status(f"loading {name}"):
        if options.queries:
            parts.append(_encode_texts(name, made_by, options))
        if options.image:
            parts.append(_encode_images(name, made_by, options))
    return np.concatenate(parts)


def _encode_texts(name: str, made_by: Mapping[str, Any], options: Options) -> NDArray[np.float32]:
    """Of the model's picture side only a digest is made, which tells whether the pictures are its own."""
    texts = load_texts(name, device=options.device, dtype=made_by["dtype"])
    _check(picture_weights(name, mode=made_by["mode"], dtype=made_by["dtype"]), name, made_by)
    found: NDArray[np.float32] = texts.embed_texts(options.queries).float().cpu().numpy()
    return found


def _encode_images(name: str, made_by: Mapping[str, Any], options: Options) -> NDArray[np.float32]:
    embedder = open_embedder(
        name,
        mode=made_by["mode"] or "C",
        fit=made_by["fit"],
        device=options.device,
        dtype=made_by["dtype"],
    )
    _check(embedder.identity["weights"], name, made_by)
    tiles = [embedder.prepare(load_image(source, IMAGE_LIMITS)) for source in options.image]
    found: NDArray[np.float32] = embedder.embed(torch.stack(tiles)).float().cpu().numpy()
    return found


def _check(weights: str, name: str, made_by: Mapping[str, Any]) -> None:
    if weights != made_by["weights"]:
        raise InputError(
            f"{name} has other weights than the model the index was made with, {made_by['model']}: name that "
            "with --model, or make the vectors again with `internvl embed`, then `internvl index`"
        )


def _finder() -> Any:
    """Hits to their pictures; what was embedded is opened once."""
    embeddings = cache(Embeddings)
    return lambda hit: embeddings(hit.folder).picture(hit.row, hit.picture, hit.key)


def _tell(answers: Sequence[Answer], seconds: Mapping[str, float], options: Options) -> None:
    if options.json:
        found = [{"query": answer.query, "hits": [asdict(hit) for hit in answer.hits]} for answer in answers]
        head = {"index": options.index, "gallery": options.gallery}
        output.write_json({**head, "results": found, "seconds": seconds})
        return
    for answer in answers:
        rows = [(f"{hit.score:.4f}", visible(hit.key), visible(_metadata(hit))) for hit in answer.hits]
        output.write_table(visible(answer.query), ("score", "picture", "metadata"), rows)
    if options.gallery is not None:
        output.write(f"{options.gallery}\n")


def _metadata(hit: Hit) -> str:
    return ", ".join(f"{name}={value}" for name, value in hit.metadata.items())[:200]
