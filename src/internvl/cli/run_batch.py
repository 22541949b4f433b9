"""`internvl run-batch`: the requests of a JSONL file, answered into another.

Resumable; errors stay in their rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, arg

from internvl.cli import output
from internvl.cli.arguments import Flag, ModelOptions, parse
from internvl.cli.engine_options import EngineOptions, served_name
from internvl.cli.loading import load_any
from internvl.errors import InputError, InternVLError

if TYPE_CHECKING:
    from internvl.serving.batch_run import Progress
    from internvl.serving.server import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Answer the rows of a batch file (OpenAI's format) without a server.

    A row is {"custom_id", "method": "POST", "url": "/v1/chat/completions" or "/v1/embeddings", "body"}. Rows
    that have their answer in the output are left out: a run that was broken off goes on.
    """

    input_file: Annotated[Path, arg(metavar="FILE", aliases=["-i"])]
    """The rows."""
    output_file: Annotated[Path, arg(metavar="FILE", aliases=["-o"])]
    """Where answers are added, a line each."""
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    served_model_name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """What rows call the model, if it is not MODEL."""
    engine: OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    allowed_local_media_path: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder whose files rows may name as file:///...; closed by default."""
    json: Flag = False
    """Print one JSON document: path, total, completed, failed, seconds."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "run-batch")
    options.engine.check()
    if not options.input_file.is_file():
        raise InputError(f"there is no file {options.input_file}")
    if options.output_file.exists() and options.output_file.samefile(options.input_file):
        raise InputError(f"-i and -o are the same file, {options.input_file}: name another for the answers")
    model = load_any(options.model)
    start = time.perf_counter()
    try:
        progress = asyncio.run(_answer(options, model))
    except ImportError as reason:
        raise InternVLError(
            f"batches need more packages ({reason}): pip install 'internvl[serve]'"
        ) from reason
    seconds = round(time.perf_counter() - start, 3)
    if options.json:
        output.write_json({"path": str(options.output_file), **asdict(progress), "seconds": seconds})
    else:
        output.note(
            f"{progress.completed} of {progress.total} rows answered, {progress.failed} refused; "
            f"{seconds:.1f} s"
        )
        output.write(f"{options.output_file}\n")
    return 0


async def _answer(options: Options, model: Model) -> Progress:
    from internvl.serving.answer_row import answer_row
    from internvl.serving.batch_run import Progress, read_rows, run_rows
    from internvl.serving.media import MediaPolicy
    from internvl.serving.server import open_server
    from internvl.serving.settings import Settings

    name = options.served_model_name or served_name(options.model.model)
    settings = Settings(
        served_names=(name,),
        adapters=options.engine.adapters,
        engine=options.engine.settings(options.model.device),
        media=MediaPolicy(allowed_local_path=options.allowed_local_media_path),
    )
    rows = read_rows(options.input_file.read_bytes())
    progress = Progress()
    async with AsyncExitStack() as stack:
        server = await open_server([model], settings, stack)
        await run_rows(
            rows,
            options.output_file,
            partial(answer_row, server),
            concurrency=options.engine.max_num_seqs,
            progress=progress,
        )
    return progress
