"""`internvl quantize`: a checkpoint with packed weights, which loads at once; measured before it is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from internvl.api.packing import Loss, quantize
from internvl.checkpoints.packing import Packing
from internvl.cli import output
from internvl.cli.arguments import File, Flag, SchemeName, Whole, Word, parse, use_threads
from internvl.cli.features import find_pictures
from internvl.cli.loading import find
from internvl.errors import InputError
from internvl.zoo import template_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Write a copy of a model whose weights are packed for the CPU, and tell what that costs.

    The copy is mapped from disk: it loads at once, and processes share its memory. Vision tokens and
    next-token shares are compared with those of the model as it is, which has to fit into memory in float32;
    a copy whose vision tokens have a mean cosine below 0.999 is not kept.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A directory, or a name of the zoo."""
    destination: Annotated[Positional[Path], arg(metavar="OUT")]
    """A directory that does not exist, or is empty."""
    scheme: Annotated[SchemeName | None, arg(help_behavior_hint="")] = None
    """int8, int4, bfloat16 or float32; int8 if there is no --rule."""
    rule: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="PATTERN=SCHEME", help_behavior_hint="")
    ] = ()
    """The scheme of the layers that a regular expression names, before that of --scheme; may be repeated."""
    pictures: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH", help_behavior_hint="")] = ()
    """A picture or a folder of pictures to measure on; may be repeated. By default four photos."""
    activation_aware: Flag = False
    """Scale four-bit weights of the language model for what they see of the pictures: more exact."""
    allow_loss: Flag = False
    """Keep the copy also when its vision tokens miss the bound."""
    template: Word = None
    """The chat template, where the model names none."""
    vision: File = None
    """The vision tower's checkpoint, where the model has none inside."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""
    overwrite: Flag = False
    """Replace OUT if it holds files."""
    json: Flag = False
    """Print one JSON document: source, path, schemes, measured, bytes, seconds."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "quantize")
    rules = parse_rules(options.rule)
    if options.threads is not None:
        use_threads(options.threads)
    source = find(options.model)
    start = time.perf_counter()
    with output.progress("", is_bytes=True) as advance:
        packing, loss = quantize(
            source,
            options.destination,
            options.scheme or (None if rules else "int8"),
            rules=rules,
            pictures=list(find_pictures(options.pictures)),
            activation_aware=options.activation_aware,
            allow_loss=options.allow_loss,
            template=options.template or template_of(options.model),
            vision_path=options.vision,
            overwrite=options.overwrite,
            progress=advance,
        )
    _report(options, source, packing, loss, time.perf_counter() - start)
    return 0


def parse_rules(texts: Sequence[str]) -> dict[str, str]:
    """ "PATTERN=SCHEME" as {pattern: scheme}; a pattern may hold "=". Raises InputError without one."""
    rules: dict[str, str] = {}
    for text in texts:
        pattern, mark, scheme = text.rpartition("=")
        if not (mark and pattern):
            raise InputError(rf"--rule takes PATTERN=SCHEME such as vit\..*=bfloat16, not {text!r}")
        rules[pattern] = scheme
    return rules


def _report(options: Options, source: Path, packing: Packing, loss: Loss, seconds: float) -> None:
    folder = options.destination
    total = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if options.json:
        found: dict[str, Any] = {"source": str(source), "path": str(folder), "packed": packing.summary}
        output.write_json({**found, "measured": loss.as_json(), "bytes": total, "seconds": round(seconds, 3)})
        return
    output.note(f"packed: {packing.summary}; {output.size(total)}, {seconds:.1f} s")
    output.note("; ".join(measured_lines(loss.as_json())))
    output.write(f"{folder}\n")


def measured_lines(measured: dict[str, float]) -> list[str]:
    """What packing costs, for people."""
    lines = [
        f"vision tokens have a cosine of {measured['vision_cosine']:.5f} with the plain ones "
        f"({measured['worst_cosine']:.5f} for the worst of {measured['pictures']:.0f} pictures)"
    ]
    if "divergence" in measured:
        lines.append(f"next-token shares diverge by {measured['divergence']:.4f} nats")
        lines.append(f"{measured['agreement']:.1%} of the likeliest tokens are the same")
    return lines
