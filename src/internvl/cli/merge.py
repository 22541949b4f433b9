"""`internvl merge`: a base model and its adapters become one checkpoint that is checked before it is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from internvl.checkpoints.locate import resolve
from internvl.checkpoints.merge import MergeReport, merge_checkpoint
from internvl.cli import output
from internvl.cli.arguments import File, Flag, Word, parse
from internvl.cli.convert import find_image_token
from internvl.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Merge adapters (LoRA, DoRA) in PEFT's format into a copy of their base model.

    The merged model has to answer a fixed question like the model with adapters, and the files have to
    read back as what was written; else nothing is kept. Needs the model in memory.
    """

    base: Annotated[Positional[str], arg(metavar="BASE")]
    """A directory, or the name of a model that was pulled: what the adapters were trained on."""
    adapter: Annotated[Positional[Path], arg(metavar="ADAPTER")]
    """A directory with adapter_config.json and adapter_model.safetensors."""
    destination: Annotated[Positional[Path], arg(metavar="OUT")]
    """A directory that does not exist, or is empty."""
    layout: Literal["official", "hf", "llava"] | None = None
    """What to write; as the base by default."""
    family: Word = None
    """How the language model is packed (llama, internlm2, qwen2, phi3, ...); as in the base by default."""
    template: Word = None
    """The chat template, where the base names none."""
    vision: File = None
    """The vision tower's checkpoint, where the base has none inside."""
    shard_gb: Annotated[float, arg(metavar="X")] = 5.0
    """Size above which the weights are split."""
    overwrite: Flag = False
    """Replace OUT if it holds files."""
    json: Flag = False
    """Print one JSON document: base, adapter, path, modules, effect, error, rounding, seconds."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "merge")
    if not options.shard_gb > 0:
        raise InputError(f"--shard-gb must be above 0, got {options.shard_gb}")
    base = resolve(options.base, offline=True)
    start = time.perf_counter()
    with output.progress("", is_bytes=True) as advance:
        report = merge_checkpoint(
            base,
            options.adapter,
            options.destination,
            options.layout,
            family=options.family,
            max_shard_bytes=options.shard_gb * 1e9,
            template=options.template,
            vision_path=options.vision,
            image_token_id=find_image_token(base),
            overwrite=options.overwrite,
            progress=advance,
        )
    _report(options, base, report, time.perf_counter() - start)
    return 0


def _report(options: Options, base: Path, report: MergeReport, seconds: float) -> None:
    if options.json:
        places = {"base": str(base), "adapter": str(options.adapter), "path": str(options.destination)}
        measured = {"effect": report.effect, "error": report.error, "rounding": report.rounding}
        measured["seconds"] = round(seconds, 3)
        output.write_json({**places, "modules": list(report.modules), **measured})
        return
    output.note(
        f"{len(report.modules)} modules merged and verified: the adapters move a fixed answer by "
        f"{report.effect:.2g} of its size, merging by {report.error:.2g}, rounding by {report.rounding:.2g}; "
        f"{seconds:.1f} s"
    )
    output.write(f"{options.destination}\n")
