"""A conversation: history, commands, errors that do not end it, and Ctrl-C."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import internvl
from internvl.api.chat import ChatModel
from internvl.cli.arguments import MediaOptions
from internvl.cli.main import DONE, INTERRUPTED
from internvl.cli.media import Media
from internvl.cli.session import COMMANDS, Session
from internvl.processing.conversation import Role
from tests.cli.conftest import Run


@pytest.fixture
def session(model: str) -> Session:
    loaded = internvl.load(model)
    assert isinstance(loaded, ChatModel)
    return Session(loaded, name="tiny", reading=MediaOptions(), arguments={"max_new_tokens": 6})


def questions(session: Session) -> list[str]:
    assert session.history is not None
    return [message.text for message in session.history.messages if message.role is Role.USER]


def test_history_grows_and_pictures_stay(session: Session, photo: str) -> None:
    session.take(f"/image {photo}")
    assert session.take("What is this?")
    session.take("And this?")
    assert questions(session) == ["<image>\nWhat is this?", "And this?"]
    assert session.history is not None
    assert len(session.history.pictures) == 1
    assert len(session.history.messages) == 4
    assert not session.waiting


def test_a_later_picture_joins_the_conversation(session: Session, photo: str) -> None:
    session.take("Hello")
    session.take(f"/image {photo}")
    session.take(f"/image {photo}")
    session.take("Compare them")
    assert session.history is not None
    assert len(session.history.pictures) == 2


def test_reset_forgets_all_but_the_system_message(session: Session, photo: str) -> None:
    session.take("/system Be brief.")
    session.take("One")
    session.take(f"/image {photo}")
    session.take("/reset")
    assert session.history is None
    assert not session.waiting
    session.take("Two")
    assert questions(session) == ["Two"]
    assert session.history is not None
    assert session.history.system == "Be brief."
    session.take("/system")
    assert session.system is None


def test_help_and_leaving(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.take("")
    assert session.take("/help")
    assert session.take("/nonsense")
    told = capsys.readouterr()
    assert told.out == ""
    assert all(name in told.err for name in COMMANDS)
    assert "there is no /nonsense" in told.err
    assert not session.take("/quit")
    assert not session.take("/exit")


def test_errors_keep_the_session(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    lines: Iterator[str | None] = iter(["/image missing.png", "/image", "<image>?", "Still there?", None])
    assert session.run(Media(), lambda: next(lines)) == 0
    told = capsys.readouterr().err
    assert "missing.png" in told
    assert "0 pictures" in told
    assert questions(session) == ["Still there?"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session.arguments = {"max_new_tokens": 100, "min_new_tokens": 100}
    shown: list[str] = []

    def interrupted(text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("internvl.cli.output.write", interrupted)
    session.take("Go on")
    assert "(stopped)" in capsys.readouterr().err
    assert session.history is not None
    assert session.history.messages[1].text == "".join(shown[:3]).strip()
    session.arguments = {"max_new_tokens": 4}
    session.take("More")
    assert questions(session) == ["Go on", "More"]


def test_ctrl_c_at_the_prompt_keeps_the_session(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    calls = iter(range(3))

    def read_line() -> str | None:
        if next(calls) == 0:
            raise KeyboardInterrupt
        return "Hello" if session.history is None else None

    assert session.run(Media(), read_line) == 0
    assert "/quit" in capsys.readouterr().err
    assert questions(session) == ["Hello"]


def test_lines_from_a_pipe(run: Run, model: str, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n\n/reset\nAgain?\n"))
    finished = run("chat", photo, "--model", model, "--max-new-tokens", "4", "--min-new-tokens", "4")
    assert finished.status == DONE
    assert "anew" in finished.err
    assert len(finished.out.splitlines()) >= 2
    assert "> " not in finished.out


@pytest.fixture
def endless(model: str) -> list[str]:
    """A command that would write for a long time."""
    length = ["--max-new-tokens", "1500", "--min-new-tokens", "1500"]
    return [sys.executable, "-u", "-m", "internvl", "chat", "--model", model, "--threads", "1", *length]


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that Ctrl-C reaches, even if whoever started the tests made them ignore it (as `nohup` and
    `&` of a shell do), and that does not outlive its test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def interrupt_when_it_writes(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)


@pytest.mark.timeout(120)
def test_a_real_ctrl_c_in_one_answer(endless: list[str]) -> None:
    pipe = subprocess.PIPE
    with started([*endless, "Go on"], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        interrupt_when_it_writes(process)
        _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert b"Traceback" not in err


@pytest.mark.timeout(120)
def test_a_real_ctrl_c_in_a_session(endless: list[str]) -> None:
    pipe = subprocess.PIPE
    with started(endless, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        process.stdin.write(b"Go on\n")
        process.stdin.flush()
        interrupt_when_it_writes(process)
        _, err = process.communicate(b"/reset\n/quit\n", timeout=60)
    assert process.returncode == DONE
    assert b"(stopped)" in err
    assert b"anew" in err


AT_A_TERMINAL = """
import fcntl, sys, termios
from internvl.cli.main import main
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C reaches a process through its controlling terminal
sys.exit(main())
"""


@pytest.mark.timeout(120)
def test_at_a_terminal(model: str) -> None:
    """A prompt, an answer, Ctrl-C typed into the next answer, and Ctrl-D at the prompt."""
    long = ["--max-new-tokens", "1200", "--min-new-tokens", "1200"]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", AT_A_TERMINAL, "chat", "--model", model, "--threads", "1", *long]
    with started(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        wait_for(ours, b"> ")
        os.write(ours, b"Go on\n")
        wait_for(ours, b"Go on\r\n")
        assert os.read(ours, 1)
        os.write(ours, b"\x03")
        wait_for(ours, b"(stopped)\r\n")
        wait_for(ours, b"> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == DONE
    os.close(ours)


def wait_for(terminal: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 1)
