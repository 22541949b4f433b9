"""The line on the terminal: what it says, and that it says nothing elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from internvl.training.progress import Progress, summary

ROW = {"step": 3, "loss": 1.23456, "tokens_per_second": 1234.5, "tiles_per_second": 2.0, "data_wait": 0.125}


def run(console: Console) -> None:
    with Progress(10, 2, console) as progress:
        progress.update(3, ROW)
        progress.message("saved [step-3]")
        progress.update(4)


def test_a_terminal_sees_steps_numbers_and_messages() -> None:
    screen = io.StringIO()
    run(Console(file=screen, force_terminal=True, width=160, no_color=True))
    text = screen.getvalue()
    assert "saved [step-3]\n" in text
    assert "4/10" in text
    assert "loss 1.2346  1,234 tokens/s  2.0 tiles/s  data wait 12%" in text


def test_a_file_sees_nothing() -> None:
    screen = io.StringIO()
    run(Console(file=screen, force_terminal=False))
    assert screen.getvalue() == ""


def test_a_row_shows_what_it_has() -> None:
    assert summary({"step": 1, "loss": 0.5}) == "loss 0.5000"
    assert summary({"loss": "nan"}) == ""
