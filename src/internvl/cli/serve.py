"""`internvl serve`: a model behind an OpenAI-compatible server, until it is told to stop.

Flags that mean what vLLM's or LMDeploy's mean have their names too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from internvl.api.chat import ChatModel
from internvl.api.engine import make_intake
from internvl.api.load import load_outline
from internvl.cli import output
from internvl.cli.arguments import DtypeName, Flag, ModelOptions, SchemeName, Whole, Word, parse
from internvl.cli.engine_options import EngineOptions, served_name
from internvl.cli.engine_source import EngineSource
from internvl.cli.loading import find, load_any
from internvl.errors import InputError, InternVLError
from internvl.zoo import template_of

if TYPE_CHECKING:
    from internvl.serving.engine_process import EngineProcess
    from internvl.serving.server import Model
    from internvl.serving.settings import Settings

MEGABYTE = 2**20
LAST_PORT = 65535
KEY_VARIABLE = "INTERNVL_API_KEY"

Words = UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Serve a chat model, or a model for vectors, by the OpenAI protocol (docs/how-to/serve.md).

    SIGTERM or Ctrl-C lets running requests finish, for at most --shutdown-timeout seconds.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = "nano"
    """A directory, or a name of the zoo."""
    host: Annotated[str, arg(aliases=["--server-name"])] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine."""
    port: Annotated[int, arg(metavar="N", aliases=["--server-port"])] = 8000
    """Port to listen on; 0 takes a free one."""
    api_key: Annotated[Words, arg(metavar="KEY", aliases=["--api-keys"], help_behavior_hint="")] = ()
    """Key that requests must carry; may be repeated. INTERNVL_API_KEY in the environment is another way."""
    api_key_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """More keys, one a line."""
    max_reqs_per_key: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Requests of one key that may run or wait; others of it are answered with 429. No limit by default."""
    served_model_name: Annotated[
        Words, arg(metavar="NAME", aliases=["--model-name"], help_behavior_hint="")
    ] = ()
    """What requests call the model; may be repeated. MODEL's own name by default."""
    embedding_model: Word = None
    """A second model for /v1/embeddings beside a chat model: InternVL-C or -G, or a vision tower."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    dtype: DtypeName = "float32"
    """What the weights are computed in."""
    quantization: Annotated[SchemeName | None, arg(aliases=["--quantize"], help_behavior_hint="")] = None
    """Pack the weights for the CPU: int8, int4 (faster, smaller), bfloat16 (exact for published models)."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""
    chat_template: Word = None
    """The chat template, where the checkpoint names none."""
    engine: OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    max_num_queued_reqs: Annotated[int, arg(metavar="N")] = 64
    """Requests that may wait; others are answered with 429."""
    request_timeout: Annotated[float | None, arg(metavar="SECONDS", help_behavior_hint="")] = None
    """Most time of an answer, from the arrival of its request; no limit by default."""
    default_max_tokens: Annotated[int, arg(metavar="N")] = 1024
    """Length of answers to requests that name none."""
    allowed_local_media_path: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder whose files requests may name as file:///...; closed by default."""
    allowed_media_domains: Annotated[Words, arg(metavar="HOST", help_behavior_hint="")] = ()
    """Host that pictures are fetched from; may be repeated; closed by default. HOST:PORT, .example.org, *."""
    allow_private_media_hosts: Flag = False
    """Let allowed hosts have addresses of a private network."""
    limit_mm_per_prompt: Annotated[int, arg(metavar="N")] = 64
    """Pictures, videos and documents of one request."""
    max_media_mb: Annotated[int, arg(metavar="N")] = 32
    """Most megabytes of one medium; a whole request may have twice as many."""
    media_timeout: Annotated[float, arg(metavar="SECONDS")] = 20.0
    """Time to fetch and decode one medium."""
    media_workers: Annotated[int, arg(metavar="N")] = 2
    """Processes that decode media."""
    files_path: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where uploaded files are kept; without it they go when the server ends."""
    allowed_origins: Annotated[Words, arg(metavar="ORIGIN", help_behavior_hint="")] = ()
    """Web page that browsers may call from (CORS); may be repeated, or a JSON list; none by default."""
    shutdown_timeout: Annotated[int, arg(metavar="SECONDS")] = 30
    """Time for running requests after SIGTERM."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """What is logged."""
    json: Flag = False
    """Print one JSON document when requests are taken: model, url."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "serve")
    _check(options)
    try:
        from internvl.serving.app import make_app
        from internvl.serving.listen import listen
    except ImportError as reason:
        raise InternVLError(
            f"serving needs more packages ({reason}): pip install 'internvl[serve]'"
        ) from reason
    with ExitStack() as stack:
        model, second, backend = _load(options, stack)
        app = make_app(model, _settings(options), embedding_model=second, backend=backend)
        has_started = listen(
            app,
            options.host,
            options.port,
            shutdown_seconds=options.shutdown_timeout,
            log_level=options.log_level,
            on_start=partial(_announce, options),
        )
    return 0 if has_started else 1


def _load(options: Options, stack: ExitStack) -> tuple[Model, Model | None, EngineProcess | None]:
    """The model, the one for vectors beside it, and what answers for a chat model: a process that runs until
    `stack` is closed. The chat model itself has no weights here."""
    options_of = partial(
        ModelOptions,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantization,
        threads=options.threads,
    )
    named = options_of(model=options.model)
    named.use_threads()
    template = options.chat_template or template_of(options.model)
    path = find(options.model)
    outline = load_outline(path, dtype=options.dtype, template=template)
    second = None
    if options.embedding_model is not None:
        second = load_any(options_of(model=options.embedding_model))
        if isinstance(second, ChatModel) or outline is None:
            raise InputError("--embedding-model is a model for vectors (nano-c) beside a chat model")
    if outline is None:
        return load_any(named, template=template), None, None
    with output.status(f"loading {options.model}"):
        return outline, second, stack.enter_context(_engine_process(options, path, template, outline))


def _engine_process(options: Options, path: Path, template: str | None, outline: ChatModel) -> EngineProcess:
    from internvl.serving.engine_process import EngineProcess

    settings = _settings(options)
    source = EngineSource(
        path=path,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantization,
        threads=options.threads,
        template=template,
        settings=settings.engine,
        cache_part=options.engine.cache_max_entry_count,
        adapters=settings.adapters,
    )
    plan_with = partial(make_intake, outline, settings.adapter_names)
    return EngineProcess(source, plan_with, stall_seconds=settings.stall_seconds)


def _announce(options: Options, port: int) -> None:
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{port}/v1"
    if options.json:
        output.write_json({"model": options.model, "url": url})
    else:
        output.note(f"{options.model} answers at {url}")


def _check(options: Options) -> None:
    at_least = {
        "port": 0, "max_num_queued_reqs": 0, "default_max_tokens": 1,
        "limit_mm_per_prompt": 0, "max_media_mb": 1, "media_workers": 1, "shutdown_timeout": 1,
    }  # fmt: skip
    for name, least in at_least.items():
        if getattr(options, name) < least:
            raise InputError(
                f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}"
            )
    if options.port > LAST_PORT:
        raise InputError(f"--port must be at most {LAST_PORT}, got {options.port}")
    options.engine.check()
    if not options.media_timeout > 0:
        raise InputError(f"--media-timeout must be above 0, got {options.media_timeout}")
    if options.request_timeout is not None and not options.request_timeout > 0:
        raise InputError(f"--request-timeout must be above 0, got {options.request_timeout}")
    if options.api_key_file is not None and not options.api_key_file.is_file():
        raise InputError(f"--api-key-file {options.api_key_file} is not a file")
    if options.max_reqs_per_key is not None and (options.max_reqs_per_key < 1 or not _keys(options)):
        raise InputError("--max-reqs-per-key is at least 1 and needs --api-key or --api-key-file")
    if not all(key.strip() for key in [*options.api_key, os.environ.get(KEY_VARIABLE, "unset")]):
        raise InputError(
            f"--api-key or {KEY_VARIABLE} is empty, so that anyone might ask: leave it out, or give a key"
        )
    if options.api_key_file is not None and not _keys(options):
        raise InputError(f"--api-key-file {options.api_key_file} has no keys, so that anyone might ask")
    _origins(options.allowed_origins)
    folder = options.allowed_local_media_path
    if folder is not None and not folder.is_dir():
        raise InputError(f"--allowed-local-media-path {folder} is not a folder")


def _settings(options: Options) -> Settings:
    from internvl.serving.media import MediaPolicy
    from internvl.serving.settings import BYTES_INSIDE, Settings

    media = MediaPolicy(
        allowed_domains=options.allowed_media_domains,
        allowed_local_path=options.allowed_local_media_path,
        allow_private_hosts=options.allow_private_media_hosts,
        max_media=options.limit_mm_per_prompt,
        max_bytes=options.max_media_mb * MEGABYTE,
        seconds=options.media_timeout,
    )
    return Settings(
        served_names=options.served_model_name or (served_name(options.model),),
        embedding_names=(served_name(options.embedding_model or "embeddings"),),
        api_keys=_keys(options),
        max_per_key=options.max_reqs_per_key,
        allowed_origins=_origins(options.allowed_origins),
        adapters=options.engine.adapters,
        engine=options.engine.settings(options.device, options.max_num_queued_reqs),
        request_seconds=options.request_timeout,
        default_new_tokens=options.default_max_tokens,
        max_num_queued=options.max_num_queued_reqs,
        max_body_bytes=2 * media.max_bytes,
        max_bytes_inside=max(BYTES_INSIDE, 4 * media.max_bytes),  # two of the largest
        media=media,
        media_workers=options.media_workers,
        files_path=options.files_path,
    )


def _keys(options: Options) -> tuple[str, ...]:
    """All keys, each once."""
    found = [*options.api_key, *filter(None, [os.environ.get(KEY_VARIABLE)])]
    if options.api_key_file is not None:
        try:
            text = options.api_key_file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as reason:
            raise InputError(f"--api-key-file {options.api_key_file} cannot be read: {reason}") from reason
        found += filter(None, map(str.strip, text.splitlines()))
    return tuple(dict.fromkeys(found))


def _origins(words: Sequence[str]) -> tuple[str, ...]:
    """vLLM takes a JSON list; words are taken as they are."""
    found: list[str] = []
    for word in words:
        try:
            listed = json.loads(word) if word.startswith("[") else [word]
        except ValueError as reason:
            raise InputError(f"--allowed-origins {word} is no JSON list: {reason}") from reason
        if not all(isinstance(one, str) for one in listed):
            raise InputError(f"--allowed-origins {word} is no list of texts")
        found += listed
    return tuple(found)
