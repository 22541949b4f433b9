"""`internvl chat`: one question and its answer, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from tyro.conf import OmitArgPrefixes, Positional, arg

from internvl import zoo
from internvl.api.chat import ChatModel
from internvl.api.reply import Reply
from internvl.cli import media, output
from internvl.cli.answers import write_answer
from internvl.cli.arguments import File, Flag, MediaOptions, ModelOptions, SamplingOptions, Word, parse
from internvl.cli.loading import load_chat
from internvl.cli.session import Session
from internvl.errors import InputError, PromptError, UnknownNameError
from internvl.processing.grounding import draw_boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Ask about pictures, videos and documents.

    The last word is the question, "-" reads it from stdin, and files, folders of frames or web addresses
    stand before it. The folder of a checkpoint, or a name of the zoo, may come first instead of --model.
    Without a question a conversation begins; /help there says what it understands.
    """

    words: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[MODEL] [FILE ...] [QUESTION]", help_behavior_hint="")
    ] = ()
    """What to look at, and what to ask. `<image>` marks in the question say where pictures go."""
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    media: OmitArgPrefixes[MediaOptions] = field(default_factory=MediaOptions)
    sampling: OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)
    system: Word = None
    """System message instead of the model's own."""
    template: Word = None
    """The chat template, where the checkpoint names none or the wrong one."""
    vision: File = None
    """The vision tower's checkpoint, where the model's own has none inside."""
    stream: bool = True
    """Show the answer as it is written."""
    tags: Flag = False
    """Leave <ref> and <box> marks in the text."""
    draw: File = None
    """Write the last picture with the answer's boxes on it to this file."""
    json: Flag = False
    """Print one JSON document: text, boxes, usage, finish_reason, model."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = with_model(parse(Options, words, "chat", rest="words"))
    sources, question = split(options.words)
    if question == "-":
        question = sys.stdin.read().strip()
        if not question:
            raise PromptError("stdin holds no question")
    _check(options, question)
    shown = media.read(sources, options.media)
    if options.draw and not shown:
        raise InputError("--draw needs a picture to draw on")
    model = load_chat(options.model, template=options.template, vision_path=options.vision)
    if question is None:
        return _converse(model, shown, options)
    return _answer(model, question, shown, options)


def with_model(options: Options) -> Options:
    """The options with the model taken from the words, if it is the first of them and --model names none."""
    if options.model.model != ModelOptions().model or not options.words:
        return options
    first, *others = options.words
    if not _is_model(first, has_others=bool(others)):
        return options
    return replace(options, words=tuple(others), model=replace(options.model, model=first))


def _is_model(word: str, *, has_others: bool) -> bool:
    """A name alone is a question."""
    path = Path(word).expanduser()
    try:
        if path.exists():
            return (path / "config.json").is_file()
        zoo.find(word)
    except (UnknownNameError, OSError, ValueError):  # a question is a path too long, if one at all
        return False
    return has_others


def split(words: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Files, and the question after them; None where the last word names a file."""
    if not words or media.is_source(words[-1]):
        return tuple(words), None
    return tuple(words[:-1]), words[-1]


def _check(options: Options, question: str | None) -> None:
    """What can be known to be wrong before anything is read or loaded."""
    if question is None and (options.json or options.draw):
        raise InputError("--json and --draw need a question: the last word, after the files")
    if options.draw and Path(options.draw).suffix.lower() not in Image.registered_extensions():
        raise InputError(f"--draw {options.draw}: the ending names no picture format; try .png")
    if options.draw and not Path(options.draw).parent.is_dir():
        raise InputError(f"--draw {options.draw}: there is no directory {Path(options.draw).parent}")


def _arguments(options: Options) -> dict[str, Any]:
    return {**options.media.arguments(), **options.sampling.arguments()}


def _streams(options: Options) -> bool:
    return options.stream and (options.sampling.num_beams or 1) == 1


def _converse(model: ChatModel, shown: media.Media, options: Options) -> int:
    session = Session(
        model,
        name=options.model.model,
        reading=options.media,
        arguments=_arguments(options),
        system=options.system,
        streams=_streams(options),
        keeps_tags=options.tags,
    )
    return session.run(shown)


def _answer(model: ChatModel, question: str, shown: media.Media, options: Options) -> int:
    arguments = {**shown.arguments(), **_arguments(options), "system": options.system}
    if options.json:
        reply = model.chat(question, **arguments)
        output.write_json({"model": options.model.model, **reply.as_json()})
    else:
        reply = write_answer(model, question, arguments, streams=_streams(options), keeps_tags=options.tags)
    if reply.finish_reason == "cancelled":
        raise KeyboardInterrupt
    return _draw(reply, options.draw) if options.draw else 0


def _draw(reply: Reply, path: str) -> int:
    """Boxes refer to the last picture. Fails where the answer holds none."""
    if not reply.boxes:
        output.note(f"internvl chat: the answer holds no boxes, so {path} was not written")
        return 1
    picture = reply.history.pictures[-1].source
    if not isinstance(picture, Image.Image):
        raise InputError("the boxes refer to tiles, not to a picture")
    draw_boxes(picture, reply.boxes).save(path)
    output.note(f"{len(reply.boxes)} boxes drawn: {path}")
    return 0
