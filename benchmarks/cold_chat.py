"""How long a cold `internvl chat` process takes until its answer is whole, and until it has ended.

    python benchmarks/cold_chat.py [--model nano] [--runs 5]

Files are in the page cache, as after any use: a first run, which fetches the model if it must, is not
counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

PICTURE = Path(__file__).parents[1] / "examples/images/cat.jpg"
QUESTION = "Describe this photo."


def run_once(model: str) -> tuple[float, float, str]:
    """Seconds to the end of the answer and to the end of the process, and the answer."""
    command = [sys.executable, "-m", "internvl", "chat", "--model", model, str(PICTURE), QUESTION]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answer, answered = b"", start
        while piece := process.stdout.read1():
            answer, answered = answer + piece, time.perf_counter()
        status = process.wait()
    if status or not answer.strip():
        raise SystemExit(f"{' '.join(command)}: exit status {status}, answer {answer!r}")
    return answered - start, time.perf_counter() - start, answer.decode().strip()


def main(
    model: str = "nano", runs: Annotated[int, tyro.conf.arg(help="After one that is not counted.")] = 5
) -> None:
    """Prints medians as a JSON object."""
    run_once(model)
    answered, ended, answers = zip(*(run_once(model) for _ in range(runs)), strict=True)
    row = {
        "model": model,
        "answer": answers[0],
        "seconds_to_answer": round(statistics.median(answered), 3),
        "seconds_to_end": round(statistics.median(ended), 3),
        "runs": [round(seconds, 3) for seconds in answered],
    }
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
