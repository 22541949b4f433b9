"""Everything the operator of a server decides, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from internvl.engine.settings import EngineSettings
from internvl.errors import InputError
from internvl.serving.media import MediaPolicy

BYTES_INSIDE = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`served_names`: what requests may call the model; the first is what answers say. `embedding_names` are
    those of a second model, which makes vectors. `adapters` are names and PEFT directories of the chat
    model's, each a model of its own to requests.

    Without `api_keys` anyone may ask. Requests of different keys take turns, and one key may have
    `max_per_key` of them running or waiting. `engine` says how many answers are computed at once;
    `max_num_queued` more requests may wait, others are sent away with 429. A step of more than
    `stall_seconds` counts as an engine that has stopped. `request_seconds` is the most that an answer may
    take from the arrival of its request; rows of batches may take longer. `body_seconds` is the time in which
    a request has to arrive, `send_seconds` that in which a client has to take the next piece of its answer,
    `max_bytes_inside` the size of all that are being read or answered. `max_pixels_inside` are those of all
    pictures that are read and not yet cut into tiles, 3 bytes each: a request waits until its own have room.
    Uploaded files are kept in `files_path`; without one, in a folder that goes when the server ends.
    """

    served_names: tuple[str, ...] = ("internvl",)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    embedding_names: tuple[str, ...] = ("embeddings",)
    adapters: tuple[tuple[str, Path], ...] = ()
    allowed_origins: tuple[str, ...] = ()
    engine: EngineSettings = field(default_factory=lambda: EngineSettings(max_running=8))
    stall_seconds: float = 300.0
    request_seconds: float | None = None
    default_new_tokens: int = 1024
    max_num_queued: int = 64
    max_per_key: int | None = None
    max_body_bytes: int = 64 * 2**20
    max_bytes_inside: int = BYTES_INSIDE
    max_pixels_inside: int = 480_000_000
    body_seconds: float = 60.0
    send_seconds: float = 120.0
    media: MediaPolicy = field(default_factory=MediaPolicy)
    media_workers: int = 2
    files_path: Path | None = None

    def __post_init__(self) -> None:
        if self.max_per_key is not None and (self.max_per_key < 1 or not self.api_keys):
            raise InputError(
                f"a limit of requests for each key is at least 1 and needs keys, got {self.max_per_key} for "
                f"{len(self.api_keys)} keys"
            )
        if self.max_pixels_inside < self.media.max_total_pixels:
            raise InputError(
                f"max_pixels_inside={self.max_pixels_inside} is less than one request may have "
                f"({self.media.max_total_pixels}): raise it"
            )
        names = [*self.served_names, *self.embedding_names, *self.adapter_names]
        doubled = [name for name in self.adapter_names if names.count(name) > 1]
        if doubled:
            raise InputError(
                f"names of adapters must be names of nothing else, got {', '.join(map(repr, doubled))}"
            )

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.adapters)
