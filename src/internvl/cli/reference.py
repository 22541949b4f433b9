"""`internvl data reference`: pairs of answers written again with the log-probabilities of a reference model.

Preference training then needs no second model (`objective.reference=stored`).
"""

from __future__ import annotations

import json
from pathlib import Path

from internvl.checkpoints.load import load_model
from internvl.cli import output
from internvl.cli.loading import find
from internvl.data.chat_examples import Examples
from internvl.data.meta import DataSet, open_data
from internvl.data.spec import DataSpec
from internvl.errors import InputError
from internvl.models.vlm import VLM
from internvl.processing.processor import Processor
from internvl.processing.tokenizer import load_tokenizer
from internvl.training.reference import store
from internvl.zoo import template_of

META = "meta.json"


def store_all(spec: DataSpec, name: str, template: str | None, out: Path) -> int:
    """Writes every data set of `spec.meta` to `out` with a meta file; returns the exit status."""
    datasets = open_data(spec.meta or "")
    path = find(name)
    model = load_model(path, template=template or template_of(name))
    if not isinstance(model, VLM):
        raise InputError(f"{name} does not chat, so it prefers no answer: name a chat model")
    processor = Processor(model.config, load_tokenizer(path if path.is_dir() else path.parent))
    examples = Examples(processor, max_length=spec.max_length, language=spec.language)
    out.mkdir(parents=True, exist_ok=True)
    num_wrong = 0
    for dataset in datasets:
        with output.status(f"{dataset.name}: {len(dataset.source)} pairs"):
            wrong = store(model, examples, dataset, out / f"{dataset.name}.jsonl")
        for where, reason in wrong.items():
            output.write(f"{where}: {reason}\n")
        num_wrong += len(wrong)
    _write_meta(datasets, out)
    output.note(
        f"{out / META}: train on it with --set objective.reference=stored; {num_wrong} rows are no pairs"
    )
    return 1 if num_wrong else 0


def _write_meta(datasets: tuple[DataSet, ...], out: Path) -> None:
    entries = {one.name: _entry(one) for one in datasets}
    partial = out / f"{META}.partial"
    partial.write_text(json.dumps(entries, indent=2, ensure_ascii=False), encoding="utf-8")
    partial.replace(out / META)


def _entry(dataset: DataSet) -> dict[str, object]:
    """The data set as it was, with the new file for its rows."""
    entry: dict[str, object] = {"root": str(dataset.root.resolve()), "annotation": f"{dataset.name}.jsonl"}
    repeat = dataset.repeat
    entry |= {
        "repeat_time": int(repeat) if repeat == int(repeat) else repeat,
        "data_augment": dataset.augment,
    }
    optional = {"max_dynamic_patch": dataset.max_tiles, "weight": dataset.weight}
    return entry | {key: value for key, value in optional.items() if value is not None}
