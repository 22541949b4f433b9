"""`internvl classify`: which of some classes each picture shows, without training, by InternVL-C or -G."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from internvl.api.contrastive import ContrastiveModel, Mode
from internvl.cli import output
from internvl.cli.arguments import ContrastiveOptions, Flag, Word, parse
from internvl.cli.loading import load_contrastive
from internvl.cli.pictures import Reader
from internvl.errors import InputError
from internvl.evaluation.prompts import ClassPrompts, make_prompts, open_prompts, shipped_sets
from internvl.evaluation.zero_shot import SCALE, class_logits, classifier
from internvl.processing.crop import Fit
from internvl.search.inputs import Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Tell the class of every picture, out of names that you give.

    A class is the mean of its texts, its name in each template. Probabilities are over these classes alone:
    they say which fits best, not that it fits. A picture that cannot be read is reported, the others are
    done, and the exit status is 1.
    """

    pictures: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PICTURE|FOLDER|LIST ...", help_behavior_hint="")
    ] = ()
    """Pictures, folders of them, text files with a path a line, tar shards, JSONL, CSV or parquet."""
    classes: Word = None
    """Names with commas between them, a JSON file of classes and templates, or a set that comes with us."""
    template: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT", help_behavior_hint="")] = ()
    """A text with {} where the name goes; may be repeated. By default those of the file or the language."""
    language: str = "en"
    """Of names and templates: en, zh, ja, ar, it, or what the file has."""
    model: OmitArgPrefixes[ContrastiveOptions] = field(default_factory=ContrastiveOptions)
    mode: Mode = "C"
    """Pictures as InternVL-C or as InternVL-G sees them."""
    fit: Fit = "crop"
    """Look at the centre square, as in published results, or at the whole picture, its shape changed."""
    top: Annotated[int, arg(metavar="N")] = 3
    """Classes told of each picture, the likeliest first."""
    batch: Annotated[int, arg(metavar="N")] = 8
    """Pictures computed together."""
    json: Flag = False
    """Print one JSON document."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "classify", rest="pictures")
    if options.top < 1:
        raise InputError(f"--top must be at least 1, got {options.top}")
    prompts = read_classes(options.classes, options.template, options.language)
    reader = Reader(Inputs(options.pictures), options.batch, "pictures")
    model = load_contrastive(options.model)
    with output.status(f"{len(prompts)} classes"):
        classes_YE = classifier(lambda texts: model.embed_texts(texts).float().cpu(), prompts)
    rows = list(_classify(model, classes_YE, reader, options))
    _tell(rows, prompts, reader, options)
    return reader.tell()


def read_classes(classes: str | None, templates: Sequence[str], language: str) -> ClassPrompts:
    """The classes a user means. Raises InputError, and UnknownNameError as `evaluation.prompts`."""
    if not classes or not classes.strip():
        raise InputError("say which classes there are: --classes cat,dog or --classes FILE.json")
    is_file = os.path.isfile(classes)  # noqa: PTH113  # Path's raises for names longer than a path may be
    if classes.endswith(".json") or is_file or classes in shipped_sets():
        found = open_prompts(classes, language)
        if not templates:
            return found
        return replace(found, templates=make_prompts(["a"], templates, language).templates)
    names = [name.strip() for name in classes.split(",")]
    if len(names) < 2:
        raise InputError(
            f"--classes {classes!r} is one class: give several with commas between them, a JSON file, or "
            f"one of {', '.join(shipped_sets())}"
        )
    return make_prompts(names, list(templates) or None, language)


def _classify(
    model: ContrastiveModel, classes_YE: Tensor, reader: Reader, options: Options
) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """The key of each picture with its likeliest classes and their probabilities."""
    scale = float(model.encoder.logit_scale.detach().float().exp()) / SCALE
    for named in reader:
        images_BE = model.embed_images(
            [picture for _, picture in named], options.mode, fit=options.fit, batch=options.batch
        )
        shares_BY = torch.softmax(scale * class_logits(images_BE.float().cpu(), classes_YE), dim=1)
        best = shares_BY.topk(min(options.top, len(classes_YE)), dim=1)
        for (key, _), shares, indices in zip(named, best.values.tolist(), best.indices.tolist(), strict=True):
            yield key, list(zip(indices, shares, strict=True))


def _tell(
    rows: Sequence[tuple[str, list[tuple[int, float]]]],
    prompts: ClassPrompts,
    reader: Reader,
    options: Options,
) -> None:
    def name(index: int) -> str:
        return prompts.names[index][0]

    if options.json:
        pictures: list[Mapping[str, Any]] = [
            {"image": key, "classes": [{"name": name(one), "probability": share} for one, share in found]}
            for key, found in rows
        ]
        head = {"model": options.model.model, "mode": options.mode, "set": prompts.name}
        counts = {"classes": len(prompts), "language": prompts.language}
        output.write_json({**head, **counts, "pictures": pictures, "failed": reader.failures()})
    elif rows:
        titles = ("class", *(f"{place}." for place in range(2, len(rows[0][1]) + 1)))
        cells = ((key, *(f"{name(one)} {share:.3f}" for one, share in found)) for key, found in rows)
        output.write_table("", ("picture", *titles), cells)
