"""`internvl caption`: a sentence about each picture, written by InternVL-G."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from internvl.api.contrastive import CAPTION_SAMPLING, CaptionOptions, ContrastiveModel
from internvl.cli import output
from internvl.cli.arguments import ContrastiveOptions, File, Flag, parse
from internvl.cli.loading import load_contrastive
from internvl.cli.pictures import Reader
from internvl.errors import InputError
from internvl.processing.crop import Fit
from internvl.processing.texts import CAPTION_PROMPT
from internvl.search.inputs import Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Write a caption for every picture.

    A line is the picture's key, a tab and the caption; of a single picture the caption alone. A picture that
    cannot be read is reported, the others are done, and the exit status is 1.
    """

    pictures: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PICTURE|FOLDER|LIST ...", help_behavior_hint="")
    ] = ()
    """Pictures, folders of them, text files with a path a line, tar shards, JSONL, CSV or parquet."""
    model: OmitArgPrefixes[ContrastiveOptions] = field(default_factory=ContrastiveOptions)
    prompt: Annotated[str, arg(metavar="TEXT")] = CAPTION_PROMPT
    """What the caption continues; another language is asked for here."""
    num_beams: Annotated[int, arg(metavar="N")] = CAPTION_SAMPLING["num_beams"]
    """Beams of the search; 1 is greedy."""
    min_new_tokens: Annotated[int, arg(metavar="N")] = CAPTION_SAMPLING["min_new_tokens"]
    """Fewest tokens of a caption."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = CAPTION_SAMPLING["max_new_tokens"]
    """Most tokens of a caption."""
    fit: Fit = "squash"
    """Show the whole picture, its shape changed, or only its centre square."""
    batch: Annotated[int, arg(metavar="N")] = 8
    """Pictures computed together."""
    output: File = None
    """Write JSON lines with `image` and `caption` here; until all are done the file is PATH.partial."""
    json: Flag = False
    """Print one JSON document; with --output it tells only what failed."""

    def captioning(self) -> CaptionOptions:
        return {
            "prompt": self.prompt,
            "num_beams": self.num_beams,
            "min_new_tokens": self.min_new_tokens,
            "max_new_tokens": self.max_new_tokens,
            "fit": self.fit,
            "batch": self.batch,
        }


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "caption", rest="pictures")
    if options.output is not None and not Path(options.output).parent.is_dir():
        raise InputError(f"--output {options.output}: there is no folder {Path(options.output).parent}")
    if options.output is not None and Path(options.output).resolve() in map(
        Path.resolve, map(Path, options.pictures)
    ):
        raise InputError(f"--output {options.output} is one of the inputs: name another file")
    inputs = Inputs(options.pictures)
    reader = Reader(inputs, options.batch, "captions")
    model = load_contrastive(options.model)
    rows = _captions(model, reader, options)
    made: list[dict[str, str]] = []
    if options.output is not None:
        _write_lines(Path(options.output), rows)
    elif options.json:
        made = list(rows)
    else:
        for row in rows:
            output.write(_line(row, alone=len(inputs) == 1))
    if options.json:
        head = {"model": options.model.model, "prompt": options.prompt, "output": options.output}
        output.write_json({**head, "captions": made, "failed": reader.failures()})
    return reader.tell()


def _captions(model: ContrastiveModel, reader: Reader, options: Options) -> Iterator[dict[str, str]]:
    for named in reader:
        captions = model.caption([picture for _, picture in named], **options.captioning())
        for (key, _), caption in zip(named, captions, strict=True):
            yield {"image": key, "caption": caption}


def _line(row: dict[str, str], *, alone: bool) -> str:
    """A caption holds no tabs and no ends of lines."""
    caption = " ".join(row["caption"].split())
    return f"{caption}\n" if alone else f"{row['image']}\t{caption}\n"


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """A file that gets its name when it is complete; until then, and after Ctrl-C, it is NAME.partial."""
    unfinished = path.with_name(f"{path.name}.partial")
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n")
            file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
