"""`internvl data`: training data checked before a run; answers scored by a reference model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from internvl.checkpoints.configs import describe
from internvl.cli import output
from internvl.cli.arguments import File, Flag, Whole, Word, parse
from internvl.cli.loading import find
from internvl.cli.reference import store_all
from internvl.config import ChatConfig, ContrastiveConfig
from internvl.data.bad_samples import BadSamplesLog
from internvl.data.chat_examples import Examples
from internvl.data.check import Epoch, Report, SetReport, Spread, check
from internvl.data.check_captions import CaptionCheck, LanguageReport
from internvl.data.meta import open_data
from internvl.data.spec import BadSamples, Batching, DataSpec
from internvl.errors import InputError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import VLM
from internvl.processing.processor import Processor
from internvl.processing.tokenizer import load_tokenizer
from internvl.training.estimate import Estimate, duration, estimate, measure_rate
from internvl.training.objective_spec import Contrastive, NextToken, ObjectiveSpec, Stage2
from internvl.training.recipe import AdamW, Recipe
from internvl.training.recipe_data import pair_examples
from internvl.zoo import template_of

SHOWN = 20
BAR = 40

ObjectiveName = Literal["NextToken", "Preference", "SelfCritical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Read, measure and decode every record of training data, and list what is broken.

    With InternVL-C or -G as --model records are pairs of a picture and its captions, all of which are read.

    Exit status 1 tells that something is. Nothing is trained; to check, of the model only the configuration
    and the tokenizer are read.
    """

    action: Annotated[
        Positional[Literal["check", "reference"]], arg(metavar="check|reference", help_behavior_hint="")
    ]
    """Check records; or write pairs of answers again, into the folder --out, with the log-probabilities that
    --model gives them."""
    meta: Annotated[Positional[str], arg(metavar="META", help_behavior_hint="")]
    """A meta JSON, or one file or folder of records."""
    model: str = "nano"
    """The model to be trained: a directory, or a name of the zoo."""
    template: Word = None
    """The chat template, where the checkpoint names none."""
    max_length: Annotated[int, arg(metavar="N")] = DataSpec().max_length
    """Longer records are bad."""
    examples: Whole = None
    """Records of a step; 8 by default."""
    packs: Whole = None
    """Packs of a step, instead of --examples."""
    max_tokens: Annotated[int, arg(metavar="N")] = Batching(examples=1).max_tokens
    """Tokens of a pack, and so of a record."""
    max_tiles: Annotated[int, arg(metavar="N")] = Batching(examples=1).max_tiles
    """Tiles of a pack, and so of a record."""
    sampling: Literal["length", "sqrt", "weight"] = "length"
    """How an epoch is shared out over data sets."""
    objective: Annotated[ObjectiveName | None, arg(help_behavior_hint="")] = None
    """Of a chat model: objective.type of the recipe, for which records of another kind are bad. Without it
    preferences and other records are good alike."""
    language: Word = None
    """The captions to take, where there are several languages."""
    clean_captions: Flag = False
    """Of pairs: captions in small letters without punctuation, as retrieval fine-tuning reads them."""
    quick: Flag = False
    """Read pictures only as far as their headers; those cut off further on are not found."""
    workers: Annotated[int, arg(metavar="N")] = 1
    """Threads that read."""
    out: File = None
    """Of `check`: write all broken records here, a JSON object a line; a file there is replaced. Of
    `reference`: the folder to make."""
    json: Flag = False
    """Print one JSON document."""

    def spec(self) -> DataSpec:
        examples = 8 if self.examples is None and self.packs is None else self.examples
        if self.workers < 1:
            raise InputError(f"--workers counts from 1, got {self.workers}")
        return DataSpec(
            meta=self.meta,
            sampling=self.sampling,
            max_length=self.max_length,
            language=self.language,
            clean_captions=self.clean_captions,
            batching=Batching(
                examples=examples, packs=self.packs, max_tokens=self.max_tokens, max_tiles=self.max_tiles
            ),
            workers=self.workers,
        )


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "data")
    spec = options.spec()
    if options.action == "reference":
        if options.out is None:
            raise InputError("data reference writes a folder of new files: name it with --out")
        return store_all(spec, options.model, options.template, Path(options.out))
    datasets = open_data(options.meta)
    config, examples = _open_model(options, spec)
    with output.progress("checking") as advance:
        report = check(datasets, examples, spec, decode=not options.quick, progress=advance)
    if options.out is not None:
        _write(report, Path(options.out))
    made = None if report.epoch is None else _estimate(config, spec, report, report.epoch.num_steps)
    languages = examples.languages() if isinstance(examples, CaptionCheck) else ()
    if options.json:
        output.write_json(_as_json(report, made, languages))
    else:
        _show(report, made, languages, options)
    return 0 if report.is_good else 1


def _open_model(
    options: Options, spec: DataSpec
) -> tuple[ChatConfig | ContrastiveConfig, Examples | CaptionCheck]:
    """What is to be trained, and what makes its examples."""
    path = find(options.model)
    folder = path if path.is_dir() else path.parent
    config = describe(folder, template=options.template or template_of(options.model)).config
    if isinstance(config, ContrastiveConfig):
        return config, CaptionCheck(pair_examples(config, load_tokenizer(folder), spec))
    if not isinstance(config, ChatConfig):
        raise InputError(
            f"{options.model} does not chat, nor compare pictures with texts: name a chat model, or "
            "InternVL-C or -G"
        )
    processor = Processor(config, load_tokenizer(folder))
    preferences = None if options.objective is None else options.objective == "Preference"
    return config, Examples(
        processor, max_length=spec.max_length, preferences=preferences, language=spec.language
    )


def _estimate(config: ChatConfig | ContrastiveConfig, spec: DataSpec, report: Report, steps: int) -> Estimate:
    """Of one epoch on this machine that trains every weight, the most a recipe can ask for."""
    objective: ObjectiveSpec = NextToken()
    if isinstance(config, ContrastiveConfig):
        objective = Stage2() if config.is_generative else Contrastive()
    rules = ((".*", AdamW(lr=1.0)),)
    recipe = Recipe(name="check", params=rules, data=spec, steps=steps, objective=objective)
    with torch.device("meta"):
        model = VLM(config) if isinstance(config, ChatConfig) else DualEncoder(config)
    return estimate(model, recipe, report.sample, rate=measure_rate(recipe, torch.device("cpu")))


def _as_json(report: Report, made: Estimate | None, languages: Sequence[LanguageReport]) -> dict[str, object]:
    document = asdict(report)
    del document["sample"]
    if languages:
        document["languages"] = [asdict(one) for one in languages]
    if made is not None:
        document["estimate"] = {"memory": made.memory, "flops": made.flops, "seconds": made.seconds}
    return document


def _write(report: Report, path: Path) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(b"")
    BadSamplesLog(partial, BadSamples(limit=1.0)).add(report.bad)
    partial.replace(path)


def _show(
    report: Report, made: Estimate | None, languages: Sequence[LanguageReport], options: Options
) -> None:
    names = ("data set", "rows", "an epoch", "bad", "tokens", "tiles", "trained")
    output.write_table("tokens and tiles of a record: median, 95 %, most", names, map(_row, report.sets))
    if languages:
        columns = ("language", "rows", "captions", "tokens")
        output.write_table("captions and their tokens: median, 95 %, most", columns, map(_spoken, languages))
    for name in ("tokens",) if languages else ("tokens", "tiles"):
        output.write_table("", (name, "records", ""), _bars(getattr(one, name) for one in report.sets))
    if report.epoch is not None and made is not None:
        output.write_pairs("an epoch", _totals(report.epoch, made, options))
    for one in report.bad[:SHOWN]:
        output.write(f"{one.key} ({one.path}): {one.error}: {one.reason}\n")
    if len(report.bad) > SHOWN:
        output.note(f"{len(report.bad) - SHOWN} more; --out FILE lists all of them")
    total = sum(one.num_rows for one in report.sets)
    output.note(f"{len(report.bad)} of {total} records cannot be used")


def _totals(epoch: Epoch, made: Estimate, options: Options) -> Iterable[tuple[str, object]]:
    yield from (("records", epoch.num_records), ("tokens", epoch.num_tokens), ("tiles", epoch.num_tiles))
    yield "steps", epoch.num_steps
    if epoch.token_fill is not None:
        yield "packs hold", f"{epoch.token_fill:.0%} of their tokens, {epoch.tile_fill:.0%} of their tiles"
    yield "reading", f"{duration(epoch.seconds)} with {options.workers} threads"
    yield (
        "training all weights",
        f"{duration(made.seconds or 0.0)} on this processor, {output.size(made.memory)}",
    )
    yield "", "in float32; internvl train RECIPE --dry-run tells it for a recipe"


def _row(one: SetReport) -> tuple[object, ...]:
    spreads = map(_told, (one.tokens, one.tiles))
    return (one.name, one.num_rows, one.per_epoch, one.num_bad, *spreads, f"{one.coverage:.1%}")


def _spoken(one: LanguageReport) -> tuple[object, ...]:
    return (one.language, one.num_rows, one.num_captions, _told(one.tokens))


def _told(spread: Spread) -> str:
    return f"{spread.median} {spread.p95} {spread.most}"


def _bars(spreads: Iterable[Spread]) -> list[tuple[object, ...]]:
    """The histogram of all data sets together."""
    counts: Counter[int] = Counter()
    for spread in spreads:
        counts.update(dict(spread.histogram))
    most = max(counts.values(), default=1)
    return [
        (f"{bound}" if bound < 2 else f"{bound // 2 + 1}-{bound}", count, "#" * -(-count * BAR // most))
        for bound, count in sorted(counts.items())
    ]
