"""`internvl COMMAND ...`: finds the command, runs it, and turns what goes wrong into exit statuses.

Imports nothing heavy: a command's module, and with it torch, is imported when that command is called.
Exit statuses: 0 done; 1 a failed run; 2 wrong use, that is, unknown options, names and unusable input;
130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from internvl.errors import InputError, InternVLError, UnknownNameError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

COMMANDS: Mapping[str, tuple[str, str]] = {
    "chat": ("internvl.cli.chat:run", "ask about pictures, videos and documents, once or in a conversation"),
    "explain": (
        "internvl.cli.explain:run",
        "show tiles, tokens, prompt and memory of a question; runs no model",
    ),
    "features": ("internvl.cli.features:run", "write what the vision tower makes of pictures to a file"),
    "caption": ("internvl.cli.caption:run", "write a sentence about each picture"),
    "classify": ("internvl.cli.classify:run", "tell which of your classes each picture shows"),
    "embed": ("internvl.cli.embed:run", "write the vectors of many pictures, as shards; resumable"),
    "index": ("internvl.cli.index:run", "make an index of vectors"),
    "search": ("internvl.cli.search:run", "find the pictures that are like a text or a picture"),
    "info": ("internvl.cli.info:run", "this installation and machine, or one model"),
    "pull": ("internvl.cli.pull:run", "download a model of the zoo, or finish a download"),
    "convert": ("internvl.cli.convert:run", "rewrite a checkpoint in another layout"),
    "quantize": ("internvl.cli.quantize:run", "write a copy of a model with packed weights, for the CPU"),
    "train": ("internvl.cli.train:run", "train a model by a recipe, or tell what that would take"),
    "data": ("internvl.cli.data:run", "check training data before a run: broken records, tokens, tiles"),
    "eval": ("internvl.cli.evaluate:run", "ask a model the questions of held-out data and score the answers"),
    "merge": ("internvl.cli.merge:run", "merge trained adapters into a copy of their base model"),
    "serve": ("internvl.cli.serve:run", "an OpenAI-compatible server for a model"),
    "run-batch": ("internvl.cli.run_batch:run", "answer the requests of a JSONL file; resumable"),
    "bench": ("internvl.cli.bench:run", "speed and memory of a model's shape on this machine"),
}
"""Name to `module:function` (arguments to exit status) and one line of help."""

Run = Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default) and return its exit status."""
    if argv is None:
        _share_processors()
    words, is_debugging = _take_debug(list(sys.argv[1:] if argv is None else argv))
    if not words:
        sys.stderr.write(_help())
        return WRONG_USE
    if words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return DONE
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"internvl {importlib.metadata.version('internvl')}\n")
        return DONE
    if words[0] not in COMMANDS:
        sys.stderr.write(_unknown(words[0]))
        return WRONG_USE
    if argv is None and words[0] == "train":
        _take_large_pages()
    return _guarded(words[0], words[1:], is_debugging)


def _share_processors() -> None:
    """Lets torch's threads spin only briefly while they wait for one another, unless the user has chosen.

    Read by GNU OpenMP when torch is imported. By its default they spin for long: an answer of `nano` took
    24 s instead of 1 s on two processors of which another program had one. Alone, 10,000 rounds cost
    nothing (43 tokens a second either way); no spinning at all costs a fifth.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _take_large_pages() -> None:
    """Lets torch ask for huge memory pages on a CPU, unless the user has chosen: a training step is a tenth
    faster.

    Read by torch before its first allocation. Small pages cost a fault for every four kilobytes of every
    temporary (1,616 against 1,411 ms for a step of three layers); the peak of memory stayed the same. Not for
    other commands: clearing large pages makes loading `nano` 0.7 s slower.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere before a bare `--`; INTERNVL_DEBUG=1 is the same."""
    end = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:end] if word != "--debug"]
    is_set = os.environ.get("INTERNVL_DEBUG", "0").lower() not in ("", "0", "false", "no")
    return [*options, *words[end:]], is_set or len(options) < end


def _guarded(name: str, words: Sequence[str], is_debugging: bool) -> int:
    try:
        status = _load(COMMANDS[name][0])(words)
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else DONE
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; what is buffered must not be written again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (InternVLError, OSError) as error:
        if is_debugging:
            traceback.print_exc()
        sys.stderr.write(f"internvl {name}: {error}\n")
        return WRONG_USE if isinstance(error, InputError | UnknownNameError) else FAILED
    return status


def _load(target: str) -> Run:
    """The command's function. What an import makes stays: the collector need not search it, then or later,
    which is a tenth of torch's import."""
    module, _, function = target.partition(":")
    gc.disable()
    try:
        run: Run = getattr(importlib.import_module(module), function)
    finally:
        gc.freeze()
        gc.enable()
    return run


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    rows = "".join(f"  {name:<{width}}{line}\n" for name, (_, line) in COMMANDS.items())
    return (
        "usage: internvl COMMAND [ARGUMENTS]\n\n"
        "The InternVL family: load any checkpoint and talk about a picture.\n\n"
        f"commands (internvl COMMAND --help says more):\n{rows}\n"
        "options:\n"
        "  -h, --help     this text\n"
        "  -V, --version  the version\n"
        "  --debug        with any command: show the traceback of an error (or INTERNVL_DEBUG=1)\n\n"
        "exit status: 0 done, 1 the run failed, 2 wrong use, 130 interrupted\n"
    )


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
    kind = "option before a command" if name.startswith("-") else "command"
    return f"internvl: no {kind} is called {name!r}: {hint} (internvl --help)\n"
