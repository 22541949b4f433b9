"""Words of the command line to a frozen dataclass of options, by tyro; and the groups that commands share.

A dataclass's docstring becomes the help text and its fields the options. Wrong use ends the program with
status 2, `--help` with 0. Knows no models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

import tyro
from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

Options = TypeVar("Options")

SchemeName = Literal["float32", "bfloat16", "int8", "int4"]
"""How linear layers may be packed (`ops.packed`, which this module does not load)."""

DtypeName = Literal["float32", "bfloat16", "float16"]
"""What weights may be computed in."""

THREADS_PER_PROCESSOR = 8
"""More are refused: a few thousand threads that wait by spinning take the whole machine with them."""

Flag: TypeAlias = FlagCreatePairsOff[bool]
Whole: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Number: TypeAlias = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Word: TypeAlias = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
File: TypeAlias = Annotated[str | None, arg(metavar="PATH", help_behavior_hint="")]
"""Options that may be left out: what then holds is said in their help text."""


def parse(options: type[Options], words: Sequence[str], command: str, *, rest: str | None = None) -> Options:
    """Options of `internvl COMMAND`. Words between options join the tuple field called `rest`.

    Without `rest`, positional words must stand together (`a.jpg --model nano "question"` would fail).
    """
    prog = f"internvl {command}"
    parsed: Any
    if rest is None:
        return tyro.cli(options, args=words, prog=prog)
    parsed, unknown = tyro.cli(options, args=words, prog=prog, return_unknown_args=True)
    if any(word.startswith("-") and word != "-" for word in unknown):
        return tyro.cli(options, args=words, prog=prog)  # says what is wrong and exits
    return cast(Options, replace(parsed, **{rest: (*getattr(parsed, rest), *unknown)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str = "nano"
    """A directory, a name of the zoo (internvl info --models lists them), or a cached "owner/name"."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    dtype: DtypeName = "float32"
    """What the weights are computed in."""
    quantize: Annotated[SchemeName | None, arg(help_behavior_hint="")] = None
    """Pack the weights for the CPU: int8, int4 (faster, smaller), bfloat16 (exact for published models)."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""

    def use_threads(self) -> None:
        """Sets torch's number of threads, if one was named."""
        if self.threads is not None:
            use_threads(self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveOptions(ModelOptions):
    """Which model, where pictures and texts are compared."""

    model: str = "nano-c"
    """A directory, or a name of the zoo: InternVL-C or -G."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """How pictures, videos and documents are read."""

    max_tiles: Whole = None
    """Most tiles of one picture, thumbnail not counted; the model's own number by default."""
    min_tiles: Whole = None
    """Fewest tiles of one picture."""
    total_tiles: Whole = None
    """Most tiles of all pictures together, shared out evenly."""
    frames: Whole = None
    """Frames of a video, evenly spread; 8 by default."""
    fps: Number = None
    """Frames a second of a video, instead of --frames."""
    start: Number = None
    """Where a video begins, in seconds."""
    end: Number = None
    """Where a video ends, in seconds."""
    pages: Annotated[str | None, arg(metavar="1-3,7", help_behavior_hint="")] = None
    """Pages of a document; all by default."""

    def arguments(self) -> dict[str, Any]:
        """Limits on tiles as keywords of `ChatModel.chat`; frames and pages are chosen while reading."""
        limits = {
            "max_tiles": self.max_tiles,
            "min_tiles": self.min_tiles,
            "total_tiles": self.total_tiles,
        }
        return {name: value for name, value in limits.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the answer is written. What is left out is the library's default: greedy, 256 tokens."""

    max_new_tokens: Whole = None
    """Most tokens of the answer."""
    min_new_tokens: Whole = None
    """Fewest tokens of the answer."""
    temperature: Number = None
    """0 takes the likeliest token; above, tokens are drawn."""
    top_k: Whole = None
    """Draw from the k likeliest tokens."""
    top_p: Number = None
    """Draw from the likeliest tokens that make up this probability."""
    min_p: Number = None
    """Draw from tokens at least this likely compared with the likeliest."""
    repetition_penalty: Number = None
    """Above 1, tokens that have occurred become less likely."""
    presence_penalty: Number = None
    """Subtracted from the score of tokens that have occurred in the answer."""
    frequency_penalty: Number = None
    """Subtracted for each time a token has occurred in the answer."""
    num_beams: Whole = None
    """Above 1, beam search; nothing is streamed then."""
    length_penalty: Number = None
    """Of beam search: above 0 favours long answers."""
    seed: Whole = None
    """Makes drawing repeatable."""
    stop: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT", help_behavior_hint="")] = ()
    """End the answer before this text; may be repeated."""

    def arguments(self) -> dict[str, Any]:
        """The keywords of `ChatModel.chat`; what was not given is left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def use_threads(count: int) -> None:
    """Sets torch's number of threads. Raises InputError below 1, and for what would stop the machine."""
    import torch

    from internvl.errors import InputError

    processors = os.cpu_count() or 1
    most = THREADS_PER_PROCESSOR * processors
    if not 1 <= count <= most:
        raise InputError(
            f"--threads must be at least 1 and, with {processors} processors, at most {most}, got {count}"
        )
    torch.set_num_threads(count)
