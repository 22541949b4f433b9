"""`internvl bench`: how fast a model's shape answers here, and how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from tyro.conf import arg

from internvl import zoo
from internvl.api.chat import ChatModel
from internvl.api.explanation import count_parameters
from internvl.api.load import load
from internvl.cli import machine, measure, output
from internvl.cli.arguments import DtypeName, Flag, SchemeName, Whole, parse, use_threads
from internvl.cli.media import exists
from internvl.cli.stand_in import write_checkpoint
from internvl.config import ChatConfig
from internvl.errors import DeviceError, InputError

QUESTION = "Describe this picture."
TINY_VOCABULARY = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Load a model, let it answer, and report medians: vision, first token, tokens a second, memory.

    For a name of the zoo a checkpoint of its shape with random weights is made in a temporary directory:
    speed does not depend on the values, and nothing is downloaded. A directory is measured as it is.
    Questions are random pictures and 40 words; one answer is made to warm up.
    """

    model: str = "InternVL2_5-1B"
    """A name of the zoo, or a checkpoint directory."""
    tiles: Annotated[str, arg(metavar="N,N,...")] = "1,7"
    """Numbers of tiles of the questions."""
    new_tokens: Annotated[int, arg(metavar="N")] = 64
    """Tokens of every answer, at least 2."""
    repeat: Annotated[int, arg(metavar="N")] = 5
    """Answers of which the median is taken."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    dtype: DtypeName = "float32"
    """What the weights are computed in."""
    quantize: Annotated[SchemeName | None, arg(help_behavior_hint="")] = None
    """Pack the weights for the CPU: int8, int4 (faster, smaller), bfloat16 (exact for published models)."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""
    tiny: Flag = False
    """The same shape at test size: says whether it works, not how fast it is."""
    json: Flag = False
    """Print one JSON document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Reading a checkpoint and answering one question in words."""

    seconds: float
    peak_bytes: int
    weight_bytes: int
    answer_seconds: float


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "bench")
    tile_counts = parse_tiles(options.tiles)
    if options.new_tokens < 2 or options.repeat < 1:
        raise InputError("--new-tokens must be at least 2 and --repeat at least 1")
    if options.threads is not None:
        use_threads(options.threads)
    with _checkpoint(options) as (path, is_random):
        model, loading = measure_loading(path, options)
        timings = [_measure(model, count, options) for count in tile_counts]
    report = {
        "model": options.model,
        "random_weights": is_random,
        "tiny": options.tiny,
        "dtype": options.dtype,
        "quantize": options.quantize,
        "device": options.device,
        "repeat": options.repeat,
        "loading": {name: getattr(loading, name) for name in Loading.__slots__},
        "answers": [timing.as_json() for timing in timings],
        "machine": machine.describe_processor(),
        "versions": machine.versions(),
    }
    if options.json:
        output.write_json(report)
    else:
        _show(report, timings, loading)
    return 0


def parse_tiles(text: str) -> list[int]:
    """ "1,7" as numbers. Raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--tiles takes numbers such as 1,7, not {text!r}")
    return [int(part) for part in parts]


def measure_loading(path: Path, options: Options) -> tuple[ChatModel, Loading]:
    """Load from disk, then answer a question in words about one random picture."""
    measure.reset_peak()
    start = time.perf_counter()
    with output.status(f"loading {options.model}"):
        model = load(path, device=options.device, dtype=options.dtype, quantize=options.quantize)
    seconds, peak = time.perf_counter() - start, measure.peak_bytes()
    if not isinstance(model, ChatModel):
        raise InputError(f"{options.model} is a vision tower: bench measures chat models")
    size = model.config.tiling.tile_size
    picture = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8).numpy()
    start = time.perf_counter()
    model.chat(QUESTION, images=[picture], max_new_tokens=options.new_tokens)
    return model, Loading(
        seconds=seconds,
        peak_bytes=peak,
        weight_bytes=sum(weight.nbytes for weight in model.vlm.state_dict().values()),
        answer_seconds=time.perf_counter() - start,
    )


@contextmanager
def _checkpoint(options: Options) -> Iterator[tuple[Path, bool]]:
    """Where the model lies, and whether it was made for this run."""
    if exists(options.model):
        yield Path(options.model), False
        return
    config = zoo.find(options.model).config
    if not isinstance(config, ChatConfig):
        raise InputError(f"{options.model} does not chat: bench measures chat models")
    config = shrink(config) if options.tiny else config
    _check_room(config, options)
    with TemporaryDirectory(prefix="internvl-bench-") as folder:
        path = Path(folder) / "model"
        # Another process, so that making the weights does not count as memory of loading them.
        maker = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        with output.status(f"making random weights of {options.model}'s shape"), maker:
            maker.submit(write_checkpoint, config, path).result()
        yield path, True


def shrink(config: ChatConfig) -> ChatConfig:
    """Test size, with room for the tokenizer of the stand-in."""
    small = zoo.tiny(config)
    return replace(small, text=replace(small.text, vocab_size=TINY_VOCABULARY, max_positions=2048))


def _check_room(config: ChatConfig, options: Options) -> None:
    value_bytes = 4 if options.dtype == "float32" else 2
    needed, available = count_parameters(config) * value_bytes, machine.total_memory()
    if available and needed > available:
        raise DeviceError(
            f"{options.model} in {options.dtype} has {output.size(needed)} of weights, but this machine has "
            f"{output.size(available)} of memory: choose a smaller model or --dtype bfloat16"
        )


def _measure(model: ChatModel, num_tiles: int, options: Options) -> measure.Timing:
    with output.progress(f"{num_tiles} tiles") as advance:
        return measure.measure(
            model.vlm,
            num_tiles,
            new_tokens=options.new_tokens,
            repeat=options.repeat,
            after_each=lambda count: advance("", count, options.repeat + 1),
        )


COLUMNS: Mapping[str, str] = {
    "tiles": "num_tiles",
    "prompt tokens": "prompt_tokens",
    "s/tile": "seconds_per_tile",
    "vision s": "vision_seconds",
    "prompt s": "prompt_seconds",
    "first token s": "first_token_seconds",
    "tokens/s": "tokens_per_second",
    "total s": "total_seconds",
    "peak": "peak_bytes",
}


def _show(report: Mapping[str, Any], timings: Sequence[measure.Timing], loading: Loading) -> None:
    weights = "random weights" if report["random_weights"] else "its own weights"
    numbers = report["quantize"] or report["dtype"]
    title = f"{report['model']}, {weights}, {numbers}, medians of {report['repeat']}"
    rows = [[_cell(name, getattr(timing, name)) for name in COLUMNS.values()] for timing in timings]
    output.write_table(title, COLUMNS, rows)
    this, versions = report["machine"], report["versions"]
    pairs = {
        "loading": f"{loading.seconds:.2f} s, {output.size(loading.weight_bytes)} of weights",
        "peak while loading": output.size(loading.peak_bytes),
        "machine": f"{this['processor']}, {this['capability']}, {this['threads']} threads",
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("internvl", "torch", "python")),
    }
    output.write_pairs("", pairs.items())


def _cell(name: str, value: float) -> str:
    if name == "peak_bytes":
        return output.size(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"
