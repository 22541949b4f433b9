"""`internvl explain`: what a question would run, from configuration and tokenizer alone.

No weights are loaded. Where only the zoo's row of a model is at hand, there is no tokenizer: tiles, vision
tokens and memory are told, the prompt is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from tyro.conf import OmitArgPrefixes, Positional, arg

from internvl import zoo
from internvl.api.explanation import (
    Explanation,
    PictureExplanation,
    explain,
    explain_inputs,
    explain_picture,
)
from internvl.api.request import Request, read_request
from internvl.checkpoints.configs import describe
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.read import read_tensors
from internvl.checkpoints.shards import num_bytes
from internvl.cli import media, output
from internvl.cli.arguments import DtypeName, Flag, MediaOptions, Word, parse
from internvl.cli.chat import split
from internvl.config import IMG_CONTEXT, ChatConfig
from internvl.errors import ContextOverflowError, HubError, InputError, UnknownNameError
from internvl.generation.prompt import context_limit
from internvl.generation.sampling import Sampling
from internvl.processing.conversation import Conversation, Picture
from internvl.processing.image import ImageLimits
from internvl.processing.processor import Processor
from internvl.processing.tiling import plan, split_budget
from internvl.processing.tiling import resolve as resolve_tiling
from internvl.processing.tokenizer import load_tokenizer
from internvl.zoo import template_of

VALUE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
REPEATED = re.compile(rf"(?:{re.escape(IMG_CONTEXT)}){{2,}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Show the grid, tiles and vision tokens of every picture, the prompt, and the memory of an answer.

    Files and question are given as to `internvl chat`. Nothing is run and no weights are loaded; of a
    model of the zoo that is not on this disk the tiles and memory are shown, not the prompt.
    """

    words: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[FILE ...] [QUESTION]", help_behavior_hint="")
    ] = ()
    """What to look at, and what to ask."""
    model: str = "nano"
    """A directory, or a name of the zoo."""
    dtype: DtypeName = "float32"
    """What the weights would be computed in."""
    media: OmitArgPrefixes[MediaOptions] = field(default_factory=MediaOptions)
    system: Word = None
    """System message instead of the model's own."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = Sampling().max_new_tokens
    """Length of the answer to make room for."""
    template: Word = None
    """The chat template, where the checkpoint names none."""
    json: Flag = False
    """Print one JSON document, with the whole prompt and its ids."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "explain", rest="words")
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {options.max_new_tokens}")
    sources, question = split(options.words)
    if not options.words:
        raise InputError("there is nothing to explain: name files, a question, or both")
    shown = media.read(sources, options.media)
    arguments = {**shown.arguments(), **options.media.arguments(), "system": options.system}
    images = arguments.pop("images", ())
    explanation = explain_request(read_request(question or "", images, arguments, ImageLimits()), options)
    if options.json:
        output.write_json({"model": options.model, **as_json(explanation)})
    else:
        _show(options, explanation)
    return 0


def explain_request(request: Request, options: Options) -> Explanation:
    """From the checkpoint's configuration and tokenizer, or from the zoo's row."""
    folder = _on_disk(options.model)
    value_bytes = VALUE_BYTES[options.dtype]
    if folder is None:
        config = _chat_config(zoo.find(options.model).config, options.model)
        return explain_row(config, request, options.max_new_tokens, value_bytes)
    template = options.template or template_of(options.model)
    description = describe(folder, template=template)
    config = _chat_config(description.config, options.model)
    processor = Processor(config, load_tokenizer(folder))
    _check_text(request.conversation, processor)
    inputs = processor(request.conversation, total_tiles=request.total_tiles)
    tokens = [processor.tokenizer.token(id) or "" for id in inputs.ids]
    explained = explain_inputs(config, inputs, tokens, options.max_new_tokens, value_bytes)
    if description.packing is None:
        return explained
    mapped = sum(num_bytes(tensor) for tensor in read_tensors(folder).values())
    return replace(explained, weight_bytes=mapped, packed=description.packing.summary)


def _check_text(conversation: Conversation, processor: Processor) -> None:
    """Raises for far too long a text, of which reading all of it as tokens takes minutes. What pictures make
    too long is explained."""
    text = processor.render(conversation, [0] * len(conversation.pictures)).text
    least, limit = processor.tokenizer.least(text), context_limit(processor.config.text)
    if least > limit:
        raise ContextOverflowError(
            f"the text has at least {least} tokens and the model has {limit} positions: shorten the text"
        )


def explain_row(config: ChatConfig, request: Request, max_new_tokens: int, value_bytes: int) -> Explanation:
    """Tiles, vision tokens and memory by a configuration alone; the text of the prompt is not counted."""
    pictures = request.conversation.pictures
    budget = split_budget(request.total_tiles, len(pictures)) if request.total_tiles and pictures else None
    explained = [_explain_picture(picture, config, budget) for picture in pictures]
    return explain(config, explained, "", (), (), max_new_tokens, value_bytes)


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Everything as plain values; `prompt`, `ids` and `prompt_tokens` are null where they are not known."""
    is_known = bool(explanation.ids)
    return {
        "pictures": [
            {
                "width": picture.size[0],
                "height": picture.size[1],
                "grid": [picture.grid.columns, picture.grid.rows],
                "tiles": picture.num_tiles,
                "vision_tokens": picture.vision_tokens,
            }
            for picture in explanation.pictures
        ],
        "tiles": sum(picture.num_tiles for picture in explanation.pictures),
        "vision_tokens": explanation.num_vision_tokens,
        "prompt_tokens": explanation.num_tokens if is_known else None,
        "max_new_tokens": explanation.max_new_tokens,
        "max_positions": explanation.max_positions,
        "packed": explanation.packed,
        "memory": {
            "weight_bytes": explanation.weight_bytes,
            "cache_bytes": explanation.cache_bytes,
            "activation_bytes": explanation.activation_bytes,
        },
        "prompt": explanation.text if is_known else None,
        "ids": list(explanation.ids) if is_known else None,
        "tokens": list(explanation.tokens) if is_known else None,
    }


def _on_disk(name: str) -> Path | None:
    """The checkpoint's directory, or None for a row of the zoo that was not pulled."""
    try:
        path = resolve(name, offline=True)
    except HubError:
        return None
    except UnknownNameError:
        zoo.find(name)  # its message knows names that are close
        raise
    return path if path.is_dir() else path.parent


def _chat_config(config: object, name: str) -> ChatConfig:
    if not isinstance(config, ChatConfig):
        raise InputError(
            f"{name} does not chat, so there is no prompt to explain: see `internvl info {name}`"
        )
    return config


def _explain_picture(picture: Picture, config: ChatConfig, budget: int | None) -> PictureExplanation:
    if not isinstance(picture.source, Image.Image):
        raise InputError("only pictures that were read can be explained")
    width, height = picture.source.size
    grid, has_thumbnail = plan(width, height, resolve_tiling(config.tiling, picture.choice, budget=budget))
    return explain_picture(config, (width, height), grid, grid.num_tiles + has_thumbnail)


def _show(options: Options, explanation: Explanation) -> None:
    if explanation.pictures:
        rows = [
            (number, f"{width} x {height}", f"{grid.columns} x {grid.rows}", num_tiles, num_tokens)
            for number, (width, height, grid, num_tiles, num_tokens) in enumerate(
                _cells(explanation), start=1
            )
        ]
        output.write_table("pictures", ("", "pixels", "grid", "tiles", "vision tokens"), rows)
    total = explanation.weight_bytes + explanation.cache_bytes + explanation.activation_bytes
    text_tokens = explanation.num_tokens - explanation.num_vision_tokens
    known = f"{explanation.num_tokens} ({explanation.num_vision_tokens} vision, {text_tokens} text)"
    counted = known if explanation.ids else f"{explanation.num_vision_tokens} vision tokens, and the text"
    sizes = ("weight_bytes", "cache_bytes", "activation_bytes")
    output.write_pairs(
        f"{options.model}, {explanation.packed or options.dtype}",
        [
            ("prompt tokens", counted),
            ("answer tokens", f"{explanation.max_new_tokens} at most"),
            ("context", _context(explanation)),
            *((name.replace("_bytes", ""), output.size(getattr(explanation, name))) for name in sizes),
            ("memory", output.size(total)),
        ],
    )
    if explanation.text:
        output.write(f"prompt\n{_shorten(explanation.text)}\n")
    else:
        output.note(f"the prompt needs the model's tokenizer: internvl pull {options.model}")


def _context(explanation: Explanation) -> str:
    needed = max(explanation.num_tokens, explanation.num_vision_tokens) + explanation.max_new_tokens
    verdict = "" if needed <= explanation.max_positions else f", but {needed} are needed: lower --max-tiles"
    return f"{explanation.max_positions} positions{verdict}"


def _cells(explanation: Explanation) -> list[tuple[int, int, Any, int, int]]:
    return [
        (*picture.size, picture.grid, picture.num_tiles, picture.vision_tokens)
        for picture in explanation.pictures
    ]


def _shorten(text: str) -> str:
    """Runs of slots by their number."""
    return REPEATED.sub(lambda run: f"{IMG_CONTEXT} x {len(run[0]) // len(IMG_CONTEXT)}", text)
