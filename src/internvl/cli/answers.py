"""One question put to a chat model, its answer on stdout as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvl.api.chat import ChatModel
from internvl.api.reply import Reply
from internvl.cli import output


def write_answer(
    model: ChatModel, question: str, arguments: Mapping[str, Any], *, streams: bool, keeps_tags: bool
) -> Reply:
    """Ask and write the answer. Ctrl-C while it streams ends the answer: the reply is what was written.

    Before the first word, and without streaming, KeyboardInterrupt goes through.
    """
    if not streams:
        reply = model.chat(question, **arguments)
        output.write(f"{reply.marked_text if keeps_tags else reply.text}\n")
        return reply
    stream = model.stream(question, keep_tags=keeps_tags, **arguments)
    try:
        for piece in stream:
            output.write(piece)
    except KeyboardInterrupt:
        stream.close()
    output.write("\n")
    return stream.reply
