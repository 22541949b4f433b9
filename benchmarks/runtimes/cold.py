"""`internvl chat` as a user calls it: a new process, from nothing to the whole answer at its reader's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runtimes.files import Files, environment

PHOTO = Path(__file__).parents[2] / "examples" / "images" / "astronaut.jpg"


class Side:
    def __init__(self, files: Files, variant: str, threads: int) -> None:
        self.options = ["--json", "--threads", str(threads)]
        if variant:
            self.options += ["--model", str(files.path(variant))]

    def chat(self, turn: int) -> tuple[float, Any, dict[str, float]]:
        """The output is the answer's bytes: they have to be the same every time."""
        words = [str(PHOTO), "Describe this photo.", *self.options]
        command = [sys.executable, "-m", "internvl", "chat", *words]
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
        ) as made:
            assert made.stdout
            lines = []
            while not lines or lines[-1] not in (b"", b"}\n"):  # the end of a document, or of the process
                lines.append(made.stdout.readline())
            seconds = time.perf_counter() - start
        found = json.loads(b"".join(lines))
        return seconds, list(found["text"].encode()), {"new tokens": found["usage"]["new_tokens"]}
