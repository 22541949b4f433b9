"""Commands are found, errors become messages and statuses, and nothing heavy is imported for it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvl.cli.main import COMMANDS, DONE, FAILED, INTERRUPTED, WRONG_USE
from internvl.errors import ContextOverflowError, HubError, ImageError, InternVLError, UnknownNameError
from tests.cli.conftest import Run

EXPECTED = (
    "chat explain features caption classify embed index search info pull convert quantize train data eval "
    "merge serve run-batch bench"
)
HEAVY = ("torch", "tyro", "rich", "numpy", "PIL", "huggingface_hub")


def test_help_lists_what_exists(run: Run) -> None:
    finished = run("--help")
    assert finished.status == DONE
    listed = [
        line.split()[0] for line in finished.out.splitlines() if line[:2] == "  " and line[2:3].isalpha()
    ]
    assert listed == list(COMMANDS)
    assert " ".join(listed) == EXPECTED
    assert finished.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(run: Run, name: str) -> None:
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    finished = run(name, "--help")
    assert (finished.status, finished.err) == (DONE, "")
    assert finished.out.startswith(f"usage: internvl {name}")
    assert "--json" in finished.out


@pytest.mark.parametrize("words", [(), ("chta",), ("--moddel", "x"), ("info", "--jsno"), ("convert", "a")])
def test_wrong_use_is_status_2_and_says_so_on_stderr(run: Run, words: tuple[str, ...]) -> None:
    finished = run(*words)
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert finished.err


def test_a_mistyped_command_is_guessed(run: Run) -> None:
    assert "did you mean 'chat'" in run("chta").err
    assert "did you mean 'explain'" in run("explian", "--help").err
    assert "there are chat, explain" in run("zzz").err


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("internvl 0.")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageError("no such picture"), WRONG_USE),
        (ContextOverflowError("too long"), WRONG_USE),
        (UnknownNameError("no such model"), WRONG_USE),
        (HubError("unreachable"), FAILED),
        (InternVLError("something"), FAILED),
        (PermissionError(13, "Permission denied", "out.npz"), FAILED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_errors_become_statuses(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def fail(words: object) -> int:
        raise error

    monkeypatch.setattr("internvl.cli.info.run", fail)
    finished = run("info")
    assert (finished.status, finished.out) == (status, "")
    assert "Traceback" not in finished.err
    assert str(error) in finished.err


@pytest.mark.parametrize("words", [("--debug", "info", "nope"), ("info", "nope", "--debug")])
def test_debug_shows_the_traceback(run: Run, words: tuple[str, ...]) -> None:
    finished = run(*words)
    assert finished.status == WRONG_USE
    assert "Traceback" in finished.err
    assert "UnknownNameError" in finished.err


def test_debug_by_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_DEBUG", "1")
    assert "Traceback" in run("info", "nope").err
    monkeypatch.setenv("INTERNVL_DEBUG", "0")
    assert "Traceback" not in run("info", "nope").err


def test_errors_of_this_program_are_not_swallowed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("internvl.cli.info.run", fail)
    with pytest.raises(ZeroDivisionError):
        run("info")


@pytest.mark.parametrize("words", [["--help"], ["chta"], [], ["--version"]])
def test_nothing_heavy_is_imported_to_say_so(words: list[str]) -> None:
    code = (
        "import sys; from internvl.cli.main import main; main(sys.argv[1:]); "
        f"sys.stderr.write('HEAVY:' + ' '.join(set(sys.modules) & set({HEAVY})))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60
    )
    assert finished.stderr.rpartition("HEAVY:")[2] == ""
    assert finished.returncode == 0


@pytest.mark.parametrize(
    ("words", "given", "name", "then"),
    [
        ("--version", {}, "GOMP_SPINCOUNT", "10000"),
        ("--version", {"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT", "7"),
        ("--version", {"OMP_WAIT_POLICY": "ACTIVE"}, "GOMP_SPINCOUNT", "None"),
        ("info --help", {}, "THP_MEM_ALLOC_ENABLE", "None"),
        ("train --help", {}, "THP_MEM_ALLOC_ENABLE", "1"),
        ("train --help", {"THP_MEM_ALLOC_ENABLE": "0"}, "THP_MEM_ALLOC_ENABLE", "0"),
    ],
)
def test_settings_that_torch_reads_are_the_users_first(
    words: str, given: dict[str, str], name: str, then: str
) -> None:
    """Waiting threads leave processors to others; training has memory in large pages."""
    code = (
        f"import os, sys; sys.argv = ['internvl', *{words.split()}]; from internvl.cli.main import main; "
        f"main(); print(os.environ.get({name!r}))"
    )
    chosen = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE"}
    environment = {name: value for name, value in os.environ.items() if name not in chosen} | given
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert finished.stdout.split()[-1] == then


def test_as_a_module_and_into_a_closed_pipe() -> None:
    """The reader leaves after one line of many; no traceback follows."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "internvl", "info", "--models"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == FAILED
    assert process.stderr.read() == b""
    process.stderr.close()
