"""`internvl eval retrieval`: how often InternVL-C or -G finds a text's picture, and a picture's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from internvl.cli import output
from internvl.cli.arguments import File, Flag, Number, Word, parse
from internvl.cli.file_vectors import ComputeOptions, embed_files
from internvl.cli.published_beside import find_published, write_scores
from internvl.errors import InputError
from internvl.evaluation.published import RETRIEVAL
from internvl.evaluation.retrieval import Recall
from internvl.evaluation.retrieval_sets import read_retrieval_set
from internvl.evaluation.video import video_recall
from internvl.processing.crop import Fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Search pictures or videos by their texts, and texts by their pictures: R@1, R@5 and R@10.

    "text_to_image@5" is the share of texts whose picture is among the first five, "image_to_text@5" the share
    of pictures one of whose texts is. Wrong ones with the same score come first. Pictures that cannot be
    read are told, and left out with their texts.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL", help_behavior_hint="")]
    """A directory, or a name of the zoo: InternVL-C or -G."""
    data: Annotated[Positional[str], arg(metavar="DATA", help_behavior_hint="")]
    """JSON of Karpathy, COCO or XTD, rows as JSON or JSONL, lines of name and text, or a folder of these."""
    images: File = None
    """The folder that pictures or videos lie in; that of the data by default."""
    split: str = "test"
    """Of files that hold several."""
    language: Word = None
    """Of the texts, where there are several; English by default."""
    dual_softmax: Flag = False
    """Weigh every score by how much a candidate prefers this query, as published for videos."""
    scale: Number = None
    """Of dual softmax: cosines are multiplied by it before, 1 by default."""
    truncate: Flag = False
    """Cut texts of more than 80 tokens, as in published results, instead of refusing them."""
    fit: Fit = "squash"
    """Look at the whole picture, its shape changed, as in published results, or at the centre square."""
    compute: OmitArgPrefixes[ComputeOptions] = field(default_factory=ComputeOptions)
    published: Word = None
    """Row of the published table to print beside: coco, flickr30k, flickr30k-cn, coco-cn, xtd-it, ..."""
    json: Flag = False
    """Print one JSON document."""

    def __post_init__(self) -> None:
        if self.scale is not None and (not self.dual_softmax or not 0 < self.scale < 1e6):
            raise InputError(f"--scale goes with --dual-softmax and is above 0, got {self.scale}")


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "eval retrieval")
    table = {name: rows[options.compute.mode] for name, rows in RETRIEVAL.items()}
    published = find_published(table, options.published, "")
    root = None if options.images is None else Path(options.images)
    data = read_retrieval_set(Path(options.data), split=options.split, language=options.language, root=root)
    model = options.compute.load(options.model)
    with output.status(f"{len(data.texts)} texts"):
        texts_TE = model.embed_texts(data.texts, truncate=options.truncate).float().cpu()
    found = embed_files(
        model, list(map(str, data.files)), lambda place: data.files[place], options.compute, options.fit
    )
    row_of = {place: row for row, place in enumerate(found.kept)}
    kept = [text for text, place in enumerate(data.image_of_text) if place in row_of]
    image_of_text = [row_of[data.image_of_text[text]] for text in kept]
    result = video_recall(
        found.vectors,
        texts_TE[kept],
        image_of_text,
        dual_softmax=options.dual_softmax,
        scale=options.scale or 1.0,
    )
    head = {
        "model": options.model,
        "data": options.data,
        "mode": options.compute.mode,
        "set": data.name,
        "pictures": len(found.kept),
        "texts": len(kept),
        "dual_softmax": options.dual_softmax,
        "failed": [{"key": key, "error": reason} for key, reason in found.failed],
    }
    write_scores(head, _scores(result), published, as_json=options.json)
    return 0


def _scores(result: Recall) -> dict[str, float]:
    ways = {"image_to_text": result.image_to_text, "text_to_image": result.text_to_image}
    each = {f"{way}@{k}": share for way, shares in ways.items() for k, share in shares.items()}
    return {**each, "mean": result.mean}
