"""`internvl features`: what a vision tower makes of pictures, into a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tyro.conf import OmitArgPrefixes, Positional, arg

from internvl.api.vision import VisionModel
from internvl.checkpoints.configs import describe_normalization
from internvl.checkpoints.load import load_vision
from internvl.cli import output
from internvl.cli.arguments import File, Flag, ModelOptions, parse
from internvl.cli.arrays import write_arrays
from internvl.cli.loading import find
from internvl.cli.media import IMAGE_LIMITS, IMAGE_SUFFIXES, exists
from internvl.errors import InputError
from internvl.processing.image import load_image

What = Literal["both", "pooled", "states"]
FILE_SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Write features of pictures to one file, or print the pooled ones as JSON.

    `pooled` (B, C) is the class token and `last_hidden_state` (B, 1+P, C) all tokens, after the layer asked
    for; there is no final norm. Pictures are cut to their centre square. One that cannot be read is
    reported, the others are done, and the exit status is 1.
    """

    pictures: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PICTURE|FOLDER ...", help_behavior_hint="")
    ] = ()
    """Files, web addresses, and folders, which are searched with all their subfolders."""
    output: File = None
    """Where to write: .npz or .safetensors, replaced when the new one is complete."""
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    layer: Annotated[int, arg(metavar="N")] = -1
    """Hidden state: 0 is the embedding, -1 the last block."""
    what: What = "both"
    """What to write."""
    batch: Annotated[int, arg(metavar="N")] = 8
    """Pictures computed together."""
    json: Flag = False
    """Print one JSON document; without --output it holds the pooled vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A picture that was read: its name and size in pixels."""

    name: str
    width: int
    height: int


@dataclass(slots=True)
class Results:
    """What has been computed, and what could not be read, with the reason."""

    done: list[Done] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def arrays(self, what: What) -> dict[str, Tensor]:
        """`pooled` (B, C) and `last_hidden_state` (B, 1+P, C), or one of them."""
        states = torch.cat(self.states)
        pooled = {} if what == "states" else {"pooled": states[:, 0].clone() if states.dim() == 3 else states}
        return pooled if what == "pooled" else {**pooled, "last_hidden_state": states}


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "features", rest="pictures")
    _check(options)
    names = list(find_pictures(options.pictures))
    options.model.use_threads()
    path = find(options.model.model)
    with output.status(f"loading {options.model.model}"):
        tower = load_vision(
            path, dtype=options.model.dtype, device=options.model.device, quantize=options.model.quantize
        )
    results = compute(VisionModel(tower, normalization=describe_normalization(path)), names, options)
    _report(results, options)
    return 1 if results.failed else 0


def find_pictures(sources: Sequence[str]) -> Iterator[str]:
    """Files as they are, folders as the pictures in them by path; hidden ones are left out."""
    for source in sources:
        folder = Path(source)
        if not exists(source) or not folder.is_dir():
            yield source
            continue
        found = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if not found:
            raise InputError(f"there are no pictures in {source} ({', '.join(sorted(IMAGE_SUFFIXES))})")
        yield from map(str, found)


def compute(model: VisionModel, names: Sequence[str], options: Options) -> Results:
    """Features of all pictures that can be read, in order; all tokens are kept only if asked for."""
    results = Results()
    keeps_states = options.what != "pooled" and options.output is not None
    with output.progress("features") as advance:
        for start in range(0, len(names), options.batch):
            pictures = _read(names[start : start + options.batch], results)
            if pictures:
                features = model.features(pictures, layer=options.layer, batch=options.batch)
                kept = features.last_hidden_state if keeps_states else features.pooled
                results.states.append(kept.float().cpu())
            advance("", min(start + options.batch, len(names)), len(names))
    return results


def _read(names: Sequence[str], results: Results) -> list[Image.Image]:
    pictures = []
    for name in names:
        try:
            picture = load_image(name, IMAGE_LIMITS)
        except InputError as error:
            output.note(f"{name}: {error}")
            results.failed.append((name, str(error)))
            continue
        results.done.append(Done(name=name, width=picture.width, height=picture.height))
        pictures.append(picture)
    return pictures


def _check(options: Options) -> None:
    if not options.pictures:
        raise InputError("name at least one picture or folder")
    if options.batch < 1:
        raise InputError(f"--batch must be at least 1, got {options.batch}")
    if options.output is None and not options.json:
        raise InputError("say where to write (--output FILE.npz or FILE.safetensors), or ask for --json")
    if options.output is None:
        return
    path = Path(options.output)
    if path.suffix not in FILE_SUFFIXES:
        raise InputError(f"--output {path}: the ending must be one of {', '.join(FILE_SUFFIXES)}")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no directory {path.parent}")


def _report(results: Results, options: Options) -> None:
    shapes = {}
    if results.done and options.output is not None:
        arrays = results.arrays(options.what)
        write_arrays(Path(options.output), arrays, [done.name for done in results.done])
        shapes = {name: list(array.shape) for name, array in arrays.items()}
    if options.json:
        output.write_json(_document(results, options, shapes))
        return
    for name, shape in shapes.items():
        output.write(f"{name} {tuple(shape)}\n")
    output.note(f"{len(results.done)} pictures done, {len(results.failed)} failed")
    if shapes:
        output.write(f"{options.output}\n")


def _document(results: Results, options: Options, shapes: dict[str, list[int]]) -> dict[str, Any]:
    pictures = [asdict(done) for done in results.done]
    if options.output is None and results.done:
        vectors = results.arrays("pooled")["pooled"].tolist()
        pictures = [{**picture, "pooled": vector} for picture, vector in zip(pictures, vectors, strict=True)]
    failed = [{"name": name, "error": error} for name, error in results.failed]
    head = {"model": options.model.model, "layer": options.layer, "output": options.output, "shapes": shapes}
    return {**head, "pictures": pictures, "failed": failed}
