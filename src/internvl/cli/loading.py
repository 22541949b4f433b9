"""A model by the name on the command line, with its download shown and the wrong kind refused."""

from __future__ import annotations

from pathlib import Path

from internvl.api.chat import ChatModel
from internvl.api.contrastive import ContrastiveModel
from internvl.api.load import load
from internvl.api.vision import VisionModel
from internvl.checkpoints.locate import resolve
from internvl.cli import output
from internvl.cli.arguments import ModelOptions
from internvl.errors import InputError
from internvl.zoo import template_of


def find(name: str) -> Path:
    """Where the model lies; fetched first if it is not on this disk."""
    with output.progress("", is_bytes=True) as advance:
        return resolve(name, progress=advance)


def load_any(
    options: ModelOptions, *, template: str | None = None, vision_path: str | None = None
) -> ChatModel | ContrastiveModel | VisionModel:
    """Whatever model this is, on the device and in the dtype asked for."""
    options.use_threads()
    path = find(options.model)
    with output.status(f"loading {options.model}"):
        return load(
            path,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            template=template or template_of(options.model),
            vision_path=vision_path,
        )


def load_chat(
    options: ModelOptions, *, template: str | None = None, vision_path: str | None = None
) -> ChatModel:
    """A chat model on the device and in the dtype asked for. Raises InputError for a vision tower."""
    model = load_any(options, template=template, vision_path=vision_path)
    if isinstance(model, ContrastiveModel):
        raise InputError(
            f"{options.model} compares pictures and texts and does not chat: try classify, search"
        )
    if not isinstance(model, ChatModel):
        raise InputError(f"{options.model} is a vision tower and does not chat: try `internvl features`")
    return model


def load_contrastive(options: ModelOptions) -> ContrastiveModel:
    """A model that compares pictures and texts. Raises InputError for any other."""
    options.use_threads()
    path = find(options.model)
    with output.status(f"loading {options.model}"):
        model = load(path, device=options.device, dtype=options.dtype, quantize=options.quantize)
    if not isinstance(model, ContrastiveModel):
        kind = "a chat model" if isinstance(model, ChatModel) else "a vision tower"
        raise InputError(f"{options.model} is {kind}; this command takes InternVL-C or -G")
    return model
