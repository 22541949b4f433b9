"""Pictures and videos as vectors of InternVL-C or -G, a few at a time; what cannot be read is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor
from tyro.conf import arg

from internvl.api.contrastive import ContrastiveModel, Mode
from internvl.cli import output
from internvl.cli.arguments import ContrastiveOptions, DtypeName, SchemeName, Whole
from internvl.cli.loading import load_contrastive
from internvl.cli.media import IMAGE_LIMITS, VIDEO_LIMITS, VIDEO_SUFFIXES
from internvl.errors import InputError
from internvl.evaluation.video import mean_of_frames
from internvl.processing.crop import Fit
from internvl.processing.image import load_image
from internvl.processing.video import is_folder, load_frames

SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptions:
    """How the model runs and looks."""

    mode: Mode = "C"
    """Pictures as InternVL-C or as InternVL-G sees them."""
    frames: Annotated[int, arg(metavar="N")] = 8
    """Frames of a video, evenly spread; its vector is their mean."""
    batch: Annotated[int, arg(metavar="N")] = 8
    """Pictures or videos computed together."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    dtype: DtypeName = "float32"
    """What the weights are computed in."""
    quantize: Annotated[SchemeName | None, arg(help_behavior_hint="")] = None
    """Pack the weights for the CPU: int8, int4 (faster, smaller), bfloat16 (exact for published models)."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""

    def __post_init__(self) -> None:
        for name, count in {"--frames": self.frames, "--batch": self.batch}.items():
            if count < 1:
                raise InputError(f"{name} counts from 1, got {count}")

    def load(self, model: str) -> ContrastiveModel:
        """The model where and as it is to run."""
        return load_contrastive(
            ContrastiveOptions(
                model=model,
                device=self.device,
                dtype=self.dtype,
                quantize=self.quantize,
                threads=self.threads,
            )
        )


@dataclass(slots=True, kw_only=True)
class FileVectors:
    """`vectors` (I, E) of the files at the places `kept`; the others failed, each with the reason."""

    vectors: Tensor
    kept: list[int]
    num_videos: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def tell(self, total: int) -> None:
        """What could not be read, to stderr."""
        for key, reason in self.failed[:SHOWN]:
            output.note(f"{key}: {reason}")
        if self.failed:
            output.note(f"{len(self.failed)} of {total} could not be read")


def embed_files(
    model: ContrastiveModel,
    keys: Sequence[str],
    media: Callable[[int], Any],
    options: ComputeOptions,
    fit: Fit,
) -> FileVectors:
    """Vectors before the final normalisation, in float32. Raises InputError if nothing can be read."""
    found = FileVectors(vectors=torch.empty(0), kept=[])
    parts: list[Tensor] = []
    waiting: list[list[Image.Image]] = []

    def compute() -> None:
        frames = [frame for one in waiting for frame in one]
        vectors_FE = model.embed_images(frames, options.mode, fit=fit, batch=options.batch)
        parts.append(mean_of_frames(vectors_FE.float().cpu(), list(map(len, waiting))))
        waiting.clear()

    with output.progress("pictures") as advance:
        for place, key in enumerate(keys):
            try:
                source = media(place)
                frames = _read(source, options.frames)
            except InputError as reason:
                found.failed.append((key, str(reason)))
                continue
            found.num_videos += _is_video(source)
            found.kept.append(place)
            waiting.append(frames)
            if len(waiting) == options.batch:
                compute()
            advance("", place + 1, len(keys))
        if waiting:
            compute()
    found.tell(len(keys))
    if not parts:
        raise InputError("not one picture could be read")
    found.vectors = torch.cat(parts)
    return found


def _read(source: Any, num_frames: int) -> list[Image.Image]:
    if _is_video(source):
        return load_frames(source, num_segments=num_frames, limits=VIDEO_LIMITS)
    return [load_image(source, IMAGE_LIMITS)]


def _is_video(source: Any) -> bool:
    """A file with a video's suffix, or a folder of frames."""
    if not isinstance(source, str | Path):
        return False
    return Path(source).suffix.lower() in VIDEO_SUFFIXES or is_folder(source)
