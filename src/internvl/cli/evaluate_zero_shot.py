"""`internvl eval zero-shot`: how often InternVL-C or -G names the class of a picture or video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from internvl.cli import output
from internvl.cli.arguments import Flag, Whole, Word, parse
from internvl.cli.classify import read_classes
from internvl.cli.file_vectors import ComputeOptions, embed_files
from internvl.cli.labelled import FOLDER, Labelled, class_folders, open_labelled
from internvl.cli.published_beside import find_published, write_scores
from internvl.errors import InputError
from internvl.evaluation.prompts import MAX_BYTES, ClassPrompts, make_prompts
from internvl.evaluation.published import ZERO_SHOT
from internvl.evaluation.small_files import read_json
from internvl.evaluation.zero_shot import Accuracy, Label, accuracy, class_logits, classifier
from internvl.processing.crop import Fit
from internvl.training.evaluate import spread

PRESENT = "present"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Classify pictures or videos whose class is known, by names alone, and count.

    A class is the mean of its texts, its name in each template. "acc1" and "acc5" are the shares of pictures
    whose class comes first or among five, "mean_per_class" the mean over classes; a wrong class with the same
    score comes first. Pictures that cannot be read are told and left out.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL", help_behavior_hint="")]
    """A directory, or a name of the zoo: InternVL-C or -G."""
    data: Annotated[Positional[str], arg(metavar="DATA", help_behavior_hint="")]
    """A folder with a folder for each class, or rows (JSONL, CSV, parquet, tar) with image and label."""
    classes: Word = None
    """A set that comes with us, a JSON file of classes and templates, or names with commas between them; the
    names of the folders by default."""
    language: str = "en"
    """Of names and templates: en, zh, ja, ar, it, or what the file has."""
    label: str = "label"
    """Column of the labels, which are names, numbers from 0, or lists of them (any is right)."""
    among: Word = None
    """Only these classes compete: "present", those that the data has, or a JSON list of labels; a list in it
    is several classes that count as one."""
    fit: Fit = "crop"
    """Look at the centre square, as in published results, or at the whole picture, its shape changed."""
    compute: OmitArgPrefixes[ComputeOptions] = field(default_factory=ComputeOptions)
    examples: Whole = None
    """Pictures, evenly spread over the data; all by default."""
    published: Word = None
    """Row of the published table to print beside; that of the set by default."""
    json: Flag = False
    """Print one JSON document."""

    def __post_init__(self) -> None:
        if self.examples is not None and self.examples < 1:
            raise InputError(f"--examples counts from 1, got {self.examples}")


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "eval zero-shot")
    data = open_labelled(Path(options.data), options.label)
    prompts = _read_prompts(options, data)
    published = find_published(ZERO_SHOT, options.published, options.classes or "")
    rows = list(spread(len(data), min(len(data), options.examples or len(data))))
    labels = data.labels(rows, prompts)
    among = _among(options.among, prompts, labels)
    model = options.compute.load(options.model)
    with output.status(f"{len(prompts)} classes"):
        classes_YE = classifier(lambda texts: model.embed_texts(texts), prompts)
    keys = [data.source.where(row) for row in rows]
    found = embed_files(model, keys, lambda place: data.media(rows[place]), options.compute, options.fit)
    score = accuracy(class_logits(found.vectors, classes_YE), [labels[place] for place in found.kept], among)
    scores = _scores(score, has_videos=found.num_videos > 0)
    head = {
        "model": options.model,
        "data": options.data,
        "mode": options.compute.mode,
        "set": prompts.name,
        "language": prompts.language,
        "classes": len(prompts) if among is None else len(among),
        "pictures": score.num_pictures,
        "failed": [{"key": key, "error": reason} for key, reason in found.failed],
    }
    write_scores(head, scores, published, as_json=options.json)
    return 0


def _read_prompts(options: Options, data: Labelled) -> ClassPrompts:
    if options.classes is not None:
        return read_classes(options.classes, (), options.language)
    if data.column != FOLDER:
        raise InputError(
            "say which classes there are: --classes SET, --classes FILE.json or --classes cat,dog"
        )
    names = [folder.name.replace("_", " ") for folder in class_folders(data.root)]
    return make_prompts(names, language=options.language)


def _among(word: str | None, prompts: ClassPrompts, labels: Sequence[Label]) -> Sequence[Label] | None:
    """The classes that compete, None for all. Raises InputError for a file of something else, a class in two
    of its entries and a picture none of whose classes competes, UnknownNameError for a label that is none:
    before any picture is read."""
    if word is None:
        return None
    if word == PRESENT:
        sets = [{label} if isinstance(label, int) else set(label) for label in labels]
        return sorted(set[int]().union(*sets))
    entries = read_json(Path(word), MAX_BYTES)
    if not isinstance(entries, list):
        raise InputError(f"--among {word}: expected a JSON list of labels")
    found = [_entry(one, prompts, word) for one in entries]
    counts = Counter(one for entry in found for one in entry)
    if doubles := [prompts.labels[one] for one, count in counts.items() if count > 1]:
        raise InputError(f"--among {word}: class {doubles[0]!r} is in several entries: name it once")
    for label in labels:
        own = [label] if isinstance(label, int) else sorted(label)
        if own and counts.keys().isdisjoint(own):
            raise InputError(
                f"--among {word}: none of its {len(counts)} classes is {prompts.labels[own[0]]!r}, which a "
                "picture shows: name it there, or leave out such pictures"
            )
    return found


def _entry(value: Any, prompts: ClassPrompts, where: str) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str | int) for one in values):
        raise InputError(f"--among {where}: expected labels or lists of them, got {value!r:.40}")
    return frozenset(prompts.find(one) for one in values)


def _scores(score: Accuracy, *, has_videos: bool) -> Mapping[str, float | None]:
    scores = {"acc1": score.acc1, "acc5": score.acc5, "mean_per_class": score.mean_per_class}
    return {**scores, "mean_1_5": score.mean_1_5} if has_videos else scores
