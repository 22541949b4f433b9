"""`internvl convert`: a checkpoint in another layout, in part, or in other sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from internvl.checkpoints.convert import Language, convert
from internvl.checkpoints.edit import Resize
from internvl.checkpoints.locate import resolve
from internvl.cli import output
from internvl.cli.arguments import File, Flag, Whole, Word, parse
from internvl.config import ADDED_TOKENS, IMG_CONTEXT
from internvl.errors import InputError, TokenizerError
from internvl.processing.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Rewrite a checkpoint in another layout, tensor by tensor; every value and dtype is kept.

    On the way it can be given another language model or other sizes, or be reduced to one of its parts, in
    this order. "official" is the layout of the published repositories, "hf" that of transformers, "llava"
    that of InternVL-Chat 1.0. Adapters (LoRA) in the source are merged. The result appears whole or not at
    all.
    """

    source: Annotated[Positional[str], arg(metavar="SRC")]
    """A directory, a weight file, or the name of a model that was pulled."""
    destination: Annotated[Positional[Path], arg(metavar="DST")]
    """A directory that does not exist, or is empty."""
    layout: Literal["official", "hf", "llava"] = "official"
    """What to write."""
    family: Word = None
    """How the language model is packed (llama, internlm2, qwen2, phi3, ...); as in the source by default."""
    template: Word = None
    """The chat template, where the source names none."""
    vision: File = None
    """The vision tower's checkpoint, where the source has none inside."""
    replace_llm: File = None
    """A language model of the same shape to put in; tokens that the chat model added stay its own."""
    image_size: Whole = None
    """Side of a tile: the tower's position table is resized."""
    vocabulary: Whole = None
    """Number of vocabulary rows, more than now: new ones are untrained."""
    part: Literal["vit", "projector", "llm"] | None = None
    """Write this part alone."""
    shard_gb: Annotated[float, arg(metavar="X")] = 5.0
    """Size above which the weights are split."""
    overwrite: Flag = False
    """Replace DST if it holds files."""
    json: Flag = False
    """Print one JSON document: source, path, layout, files, bytes, seconds."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "convert")
    if not options.shard_gb > 0:
        raise InputError(f"--shard-gb must be above 0, got {options.shard_gb}")
    source = resolve(options.source, offline=True)
    start = time.perf_counter()
    with output.progress("", is_bytes=True) as advance:
        convert(
            source,
            options.destination,
            options.layout,
            family=options.family,
            max_shard_bytes=options.shard_gb * 1e9,
            template=options.template,
            vision_path=options.vision,
            image_token_id=find_image_token(source),
            overwrite=options.overwrite,
            progress=advance,
            language=_language(options, source),
            sizes=Resize(image_size=options.image_size, vocabulary=options.vocabulary),
            part=options.part,
        )
    _report(options, source, time.perf_counter() - start)
    return 0


def _language(options: Options, source: Path) -> Language | None:
    if options.replace_llm is None:
        return None
    tokenizer = load_tokenizer(source if source.is_dir() else source.parent)
    ids = [id for token in ADDED_TOKENS if (id := tokenizer.token_id(token)) is not None]
    if not ids:
        raise InputError(f"the tokenizer of {source} has none of the tokens that a chat model adds")
    return Language(options.replace_llm, min(ids))


def find_image_token(source: Path) -> int | None:
    """What the tokenizer beside the weights says; None without one, as beside a vision tower."""
    try:
        return load_tokenizer(source if source.is_dir() else source.parent).token_id(IMG_CONTEXT)
    except TokenizerError:
        return None


def _report(options: Options, source: Path, seconds: float) -> None:
    folder = options.destination
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    total = sum(files.values())
    if options.json:
        layout = {"source": str(source), "path": str(folder), "layout": options.layout}
        output.write_json({**layout, "files": files, "bytes": total, "seconds": round(seconds, 3)})
    else:
        output.note(f"{options.layout} layout: {len(files)} files, {output.size(total)}, {seconds:.1f} s")
        output.write(f"{folder}\n")
