"""The process a side lives in: one line of JSON asks, one answers. A side's own output goes to stderr.

`python -m runtimes.worker SIDE FOLDER THREADS`
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.files import Files
from runtimes.sides import SIDES


def main() -> None:
    name, folder, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print what they like
    spec = SIDES[name]
    side: Any = None
    for line in sys.stdin:
        try:
            if side is None:
                side = import_module(f"runtimes.{spec.module}").Side(
                    Files(Path(folder)), spec.variant, int(threads)
                )
            answers.write(json.dumps(answer(side, json.loads(line))) + "\n")
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the others go on
            reason = " ".join(str(error).split())[:300]
            answers.write(json.dumps({"error": f"{type(error).__name__}: {reason}"}) + "\n")


def answer(side: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Runs one method, which gives seconds, output and further numbers; the output is kept if `save` says."""
    call = getattr(side, asked["call"], None)
    if call is None:
        raise NotImplementedError(f"{asked['call']} is not something this runtime does")
    seconds, output, numbers = call(**asked["arguments"])
    if asked.get("save"):
        np.save(asked["save"], np.asarray(output))
    return {"seconds": seconds, "numbers": numbers, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (found,) = [line for line in lines if line.startswith("VmHWM")]
    return int(found.split()[1]) * 1024


if __name__ == "__main__":
    main()
