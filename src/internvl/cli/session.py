"""A conversation at the terminal or through a pipe: questions, `/` commands, history.

Prompts and remarks appear on stderr or at the terminal; stdout gets the answers. Ctrl-C ends an answer
and keeps the conversation, the end of input leaves.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from internvl.api.chat import ChatModel
from internvl.cli import output
from internvl.cli.answers import write_answer
from internvl.cli.arguments import MediaOptions
from internvl.cli.media import Media, read_one
from internvl.errors import InternVLError
from internvl.processing.conversation import Conversation

PROMPT = "> "

COMMANDS: Mapping[str, str] = {
    "/image": "PATH    show a picture, video, folder of frames, PDF or web address with the next question",
    "/system": "TEXT   another system message; without text the model's own",
    "/reset": "        forget the conversation and its pictures",
    "/help": "         this list",
    "/quit": "         leave (also Ctrl-D); Ctrl-C stops an answer",
}


class Session:
    """What has been said, and what is to be shown with the next question."""

    def __init__(
        self,
        model: ChatModel,
        *,
        name: str,
        reading: MediaOptions,
        arguments: Mapping[str, Any],
        system: str | None = None,
        streams: bool = True,
        keeps_tags: bool = False,
    ) -> None:
        self.model, self.name, self.reading = model, name, reading
        self.arguments, self.system = arguments, system
        self.streams, self.keeps_tags = streams, keeps_tags
        self.waiting = Media()
        self.history: Conversation | None = None

    def run(self, shown: Media, read_line: Callable[[], str | None] | None = None) -> int:
        """Answer until the input ends or /quit; returns the exit status."""
        read_line = read_line or _read_line
        self.waiting = shown
        if sys.stdin.isatty():
            _edit_lines()
            output.note(f"{self.name}: ask, or /help")
        while True:
            try:
                line = read_line()
                if line is None or not self.take(line.strip()):
                    return 0
            except KeyboardInterrupt:
                output.note("\n(stopped; /quit or Ctrl-D leaves)")
            except (InternVLError, OSError) as error:
                output.note(f"{error}")

    def take(self, line: str) -> bool:
        """Act on one line; False when it says to leave."""
        if not line:
            return True
        if not line.startswith("/"):
            self._ask(line)
            return True
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        self._obey(command, rest.strip())
        return True

    def _ask(self, question: str) -> None:
        arguments = {
            **self.arguments,
            **self.waiting.arguments(),
            "history": self.history,
            "system": self.system,
        }
        reply = write_answer(
            self.model, question, arguments, streams=self.streams, keeps_tags=self.keeps_tags
        )
        self.history, self.waiting = reply.history, Media()
        if reply.finish_reason == "cancelled":
            output.note("(stopped)")
        elif reply.finish_reason == "length":
            output.note(f"(cut off at {reply.usage.new_tokens} tokens: --max-new-tokens)")

    def _obey(self, command: str, rest: str) -> None:
        if command == "/image" and rest:
            self.waiting += read_one(rest, self.reading)
            output.note(f"{rest} goes with the next question")
        elif command == "/image":
            output.note("/image needs a path or an address")
        elif command == "/system":
            self.system = rest or None
            output.note(f"system message: {rest or 'as the model has it'}")
        elif command == "/reset":
            self.history, self.waiting = None, Media()
            output.note("the conversation begins anew")
        else:
            unknown = "" if command == "/help" else f"there is no {command}:\n"
            output.note(unknown + "\n".join(f"{name} {text}" for name, text in COMMANDS.items()))


def _edit_lines() -> None:
    """`input` edits lines and remembers them once readline is imported; not every system has it."""
    with suppress(ImportError):
        importlib.import_module("readline")


def _read_line() -> str | None:
    """The next line; None at the end of input. At a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        return input(PROMPT)
    except EOFError:
        output.write("\n")
        return None
