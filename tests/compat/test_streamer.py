"""Reading an answer in one thread while another writes it."""

from __future__ import annotations

import time
from queue import Empty
from threading import Thread

import pytest
import transformers

from internvl.compat import InternVLChatModel, TextIteratorStreamer, Tokenizer
from internvl.compat.streamer import writing
from internvl.errors import ContextOverflowError, InputError, PromptError


def test_pieces_come_in_order() -> None:
    streamer = TextIteratorStreamer(None, timeout=5)
    with streamer:
        for piece in ("one ", "", "two"):
            streamer.on_finalized_text(piece)
    assert list(streamer) == ["one ", "two"]
    assert list(streamer) == []


def test_it_may_be_used_again() -> None:
    streamer = TextIteratorStreamer(None, timeout=5)
    for text in ("first", "second"):
        with streamer:
            streamer.on_finalized_text(text)
        assert "".join(streamer) == text


def test_nobody_writes() -> None:
    with pytest.raises(Empty):
        next(TextIteratorStreamer(None, timeout=0.05))


def test_a_slow_prompt_is_not_cut_off() -> None:
    streamer = TextIteratorStreamer(None, timeout=0.05)

    def write() -> None:
        with streamer:
            time.sleep(0.3)
            streamer.on_finalized_text("late")

    thread = Thread(target=write)
    with streamer:
        thread.start()
        assert next(streamer) == "late"
    thread.join()


@pytest.mark.parametrize(
    ("question", "settings", "error"),
    [
        ("<image> without a picture", {}, PromptError),
        ("hi", {"max_new_tokens": 100_000}, ContextOverflowError),
        ("hi", {"num_beams": 2, "max_new_tokens": 4}, InputError),
        ("hi", {"unknown_setting": 4}, InputError),
    ],
)
def test_an_error_reaches_the_reader(model: InternVLChatModel, question, settings, error) -> None:
    streamer = TextIteratorStreamer(None, timeout=5)
    failures = []

    def ask() -> None:
        try:
            model.chat(None, None, question, {**settings, "streamer": streamer})
        except error as failure:
            failures.append(failure)

    thread = Thread(target=ask)
    thread.start()
    with pytest.raises(error):
        list(streamer)
    thread.join()
    assert len(failures) == 1


def test_streamers_of_transformers(model: InternVLChatModel, tokenizer: Tokenizer) -> None:
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    settings = {"max_new_tokens": 6, "streamer": streamer}
    answer = model.chat(tokenizer, None, "Hello, who are you?", settings)
    assert "".join(streamer).strip() == answer


def test_what_is_no_streamer() -> None:
    with pytest.raises(InputError, match="on_finalized_text"):
        writing({"streamer": object()})
    with pytest.raises(InputError, match="unknown option"):
        TextIteratorStreamer(None, colour="red")
