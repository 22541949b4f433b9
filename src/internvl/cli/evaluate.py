"""`internvl eval`: questions whose answers are known, asked of a model, and how good its answers are.

`internvl eval zero-shot` and `internvl eval retrieval` measure models that compare pictures and texts.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from internvl.api.chat import ChatModel
from internvl.checkpoints.adapters import load_adapters
from internvl.checkpoints.digest import model_digest
from internvl.cli import evaluate_retrieval, evaluate_zero_shot, output
from internvl.cli.arguments import DtypeName, File, Flag, ModelOptions, SchemeName, Whole, Word, parse
from internvl.cli.loading import load_chat
from internvl.data.bad_samples import BadSample
from internvl.data.chat_examples import Examples
from internvl.data.meta import DataSet, open_data
from internvl.errors import InputError
from internvl.evaluation.answer_file import AnswerFile
from internvl.evaluation.scores import SCORES
from internvl.generation.prompt import context_limit
from internvl.training.answers import Answer, Answers
from internvl.training.evaluate import mean_loss, spread

SHOWN = 20

Metric = Literal["exact", "cider", "loss"]
Advance = Callable[[str, float, float | None], None]

FORMS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "zero-shot": evaluate_zero_shot.run,
    "retrieval": evaluate_retrieval.run,
}
"""Of InternVL-C and -G, by the first word; a folder of that name is written ./zero-shot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Ask a model the questions of held-out data and score its answers.

    Answers are those of `internvl chat`: greedy, the same prompt, the same tiles. "exact" is the share that
    equals one of the answers on record (case, spaces and a final full stop aside), "cider" is CIDEr-D for
    captions, "loss" the mean loss of an answer's token. Of preferences only the chosen answers count. Exit
    status 1: no record could be used.

    InternVL-C and -G are measured by `internvl eval zero-shot` and `internvl eval retrieval`, which have
    their own --help.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL", help_behavior_hint="")]
    """A directory, or a name of the zoo."""
    data: Annotated[Positional[str], arg(metavar="DATA", help_behavior_hint="")]
    """A meta JSON, or one file or folder of records: JSONL, CSV, parquet, tar, pictures with captions."""
    adapter: File = None
    """Adapters in PEFT's format to be put on the model."""
    metric: Annotated[UseAppendAction[tuple[Metric, ...]], arg(help_behavior_hint="")] = ()
    """What is measured, "exact" by default; may be repeated."""
    examples: Whole = None
    """Records of each data set, evenly spread over it; all by default."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = 256
    """Most tokens of an answer."""
    max_tiles: Whole = None
    """Most tiles of one picture; the data set's or the model's own number by default."""
    language: Word = None
    """The captions to take, where there are several languages."""
    out: File = None
    """Write the answers here, a JSON object a line. What is there already is not asked again."""
    batch: Annotated[int, arg(metavar="N")] = 8
    """Questions that are answered together."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    dtype: DtypeName = "float32"
    """What the weights are computed in."""
    quantize: Annotated[SchemeName | None, arg(help_behavior_hint="")] = None
    """Pack the weights for the CPU: int8, int4 (faster, smaller), bfloat16 (exact for published models)."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""
    json: Flag = False
    """Print one JSON document: the scores, and counts of questions and bad records, of each data set."""

    def __post_init__(self) -> None:
        counts = {"--examples": self.examples, "--max-new-tokens": self.max_new_tokens, "--batch": self.batch}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise InputError(f"{name} counts from 1, got {count}")
        if self.out is not None and not self.asked:
            raise InputError("--out is for answers, and the loss alone needs none: add --metric exact")

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.metric)) or ("exact",)

    @property
    def asked(self) -> tuple[str, ...]:
        """The metrics that need answers."""
        return tuple(name for name in self.metrics if name in SCORES)


@dataclass(slots=True, kw_only=True)
class _Result:
    """What one data set came to; `scores` of what could not be measured are None."""

    name: str
    num_records: int
    num_questions: int = 0
    num_known: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)
    bad: dict[str, BadSample] = field(default_factory=dict)
    each: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        kinds = dict(Counter(one.error for one in self.bad.values()))
        return {
            "name": self.name,
            "records": self.num_records,
            "questions": self.num_questions,
            "known": self.num_known,
            "bad": len(self.bad),
            "kinds": kinds,
            "scores": self.scores,
        }


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    if words and words[0] in FORMS:
        return FORMS[words[0]](words[1:])
    options = parse(Options, words, "eval")
    start = time.perf_counter()
    datasets = [
        dataset if options.max_tiles is None else replace(dataset, max_tiles=options.max_tiles)
        for dataset in open_data(options.data)
    ]
    model = _load(options)
    file = None if options.out is None else AnswerFile(Path(options.out), _made_by(model, options))
    with output.progress("") as advance:
        results = [_measure(model, dataset, options, file, advance) for dataset in datasets]
    if file is not None:
        scores = {key: score for one in results for key, score in one.each.items()}
        if num_others := file.finish(scores):
            output.note(f"{options.out} also keeps {num_others} answers to questions that were not asked now")
    _tell(results, options, time.perf_counter() - start)
    return 0 if any(one.num_records > len(one.bad) for one in results) else 1


def _load(options: Options) -> ChatModel:
    chosen = ModelOptions(
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        threads=options.threads,
    )
    model = load_chat(chosen)
    if options.adapter is not None:
        load_adapters(model.vlm, options.adapter)
    return model


def _made_by(model: ChatModel, options: Options) -> str:
    """Stands for the weights and for whatever else decides an answer."""
    settings = (model.config, options.dtype, options.quantize, options.max_new_tokens, options.max_tiles)
    return hashlib.blake2b(f"{settings!r} {model_digest(model.vlm)}".encode(), digest_size=8).hexdigest()


def _measure(
    model: ChatModel, dataset: DataSet, options: Options, file: AnswerFile | None, advance: Advance
) -> _Result:
    """One data set. Of the loss the tiles are those of training, of answers those of chat."""
    count = min(dataset.size, options.examples or dataset.size)
    result = _Result(name=dataset.name, num_records=count)
    room = context_limit(model.config.text)
    examples = Examples(model.processor, max_length=room, language=options.language)
    bad: list[BadSample] = []

    def rows(what: str) -> Iterator[int]:
        for done, row in enumerate(spread(dataset.size, count)):
            advance(f"{dataset.name}: {what}", done, count)
            yield row
        advance(f"{dataset.name}: {what}", count, count)

    if "loss" in options.metrics:
        result.scores["loss"] = mean_loss(model.vlm, dataset, rows("loss"), examples, bad)
    if options.asked:
        answers = Answers(model.vlm, model.processor, options.max_new_tokens)
        found = answers.stream(
            examples,
            dataset,
            rows("answers"),
            bad,
            at_once=options.batch,
            known=lambda key, asked: None if file is None else file.find(key, asked.text, asked.references),
        )
        _score(list(_kept(found, file)), options.asked, result)
    result.bad = {one.key: one for one in bad}
    return result


def _kept(found: Iterable[Answer], file: AnswerFile | None) -> Iterator[Answer]:
    """The answers, each on disk before the next one is asked for."""
    for one in found:
        if file is not None and one.is_new:
            file.add(one.key, one.question.text, one.text, one.question.references)
        yield one


def _score(found: Sequence[Answer], metrics: Sequence[str], result: _Result) -> None:
    result.num_questions = len(found)
    result.num_known = sum(not one.is_new for one in found)
    texts, references = [one.text for one in found], [one.question.references for one in found]
    for name in metrics:
        result.scores[name], each = SCORES[name](texts, references) if found else (None, [])
        for one, value in zip(found, each, strict=True):
            result.each.setdefault(one.key, {})[name] = value


def _tell(results: Sequence[_Result], options: Options, seconds: float) -> None:
    bad = [sample for one in results for sample in one.bad.values()]
    if options.json:
        places = {"model": options.model, "adapter": options.adapter, "data": options.data}
        sets = [one.as_json() for one in results]
        output.write_json({**places, "sets": sets, "out": options.out, "seconds": round(seconds, 3)})
    else:
        names = ("data set", "records", "bad", "questions", *options.metrics)
        output.write_table("", names, (_cells(one, options.metrics) for one in results))
    for sample in bad[:SHOWN]:
        output.note(f"{sample.key} ({sample.path}): {sample.error}: {sample.reason}")
    if len(bad) > SHOWN:
        output.note(f"{len(bad) - SHOWN} more; internvl data check {options.data} lists them")
    if bad:
        output.note(f"{len(bad)} of {sum(one.num_records for one in results)} records could not be used")


def _cells(one: _Result, metrics: Sequence[str]) -> Iterator[object]:
    yield from (one.name, one.num_records, len(one.bad), one.num_questions)
    for name in metrics:
        value = one.scores[name]
        yield "-" if value is None else f"{value:.4f}"
