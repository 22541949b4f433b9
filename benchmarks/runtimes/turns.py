"""Sides in processes of their own, asked in turns, with the machine's limits measured between turns.

A warm-up comes first; its outputs are compared, and a side that does not compute the same is not timed.
"""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import limits
from runtimes.files import Files, environment
from runtimes.limits import Limits
from runtimes.rows import Row
from runtimes.sides import SIDES

PATIENCE = 1800
"""Seconds until an answer is given up, loading and compiling included."""
LEAST_COSINE = {4: 0.9999, 2: 0.999, 1: 0.98}
"""By bytes of a weight; 0.8 below."""


class SideError(Exception):
    """A side that cannot be asked, with the reason."""


class Process:
    """One side at work."""

    def __init__(self, name: str, files: Files, threads: int) -> None:
        for need in SIDES[name].needs:
            try:
                files.ensure(need)
            except RuntimeError as error:
                raise SideError(str(error)) from error
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtimes.worker", name, str(files.folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            env=environment(OMP_NUM_THREADS=str(threads)),
        )  # fmt: skip

    def ask(self, call: str, arguments: Mapping[str, Any], save: Path | None = None) -> dict[str, Any]:
        """Seconds, numbers and peak memory of one call. Raises SideError."""
        asked = {"call": call, "arguments": dict(arguments), "save": str(save) if save else None}
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SideError(self._last_words()) from None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise SideError(f"no answer within {PATIENCE} s")
        line = self.process.stdout.readline()
        if not line:
            raise SideError(self._last_words())
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise SideError(found["error"])
        return found

    def first(self, row: Row) -> tuple[dict[str, Any], Any]:
        """Loads, warms up, and gives the output too."""
        with tempfile.TemporaryDirectory(prefix="internvl-peers-") as folder:
            saved = Path(folder) / "output.npy"
            return self.ask(row.call, {**row.arguments, "turn": 0}, saved), np.load(saved)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def _last_words(self) -> str:
        self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return f"ended with {self.process.returncode}: {lines[-1][:300] if lines else 'no word'}"


def take_turns(
    row: Row, names: Sequence[str], files: Files, threads: int, repeat: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What every side gave ("first", "answers", "limits", "agreement"), and why others gave nothing.

    The reference is asked once, and ended where it is not one of `names`: memory is dear.
    """
    sides, found, reasons = dict[str, Process](), dict[str, dict[str, Any]](), dict[str, str]()
    try:
        expected: Any = None
        for name in dict.fromkeys((row.reference, *names)):
            try:
                sides[name] = Process(name, files, threads)
                first, output = sides[name].first(row)
                expected = output if expected is None else expected
                found[name] = {"first": first, "agreement": compare(name, output, expected)}
                found[name] |= {"answers": [], "limits": []}
            except SideError as error:
                reasons[name] = f"{error}{remedy(name, error)}"
            if name in sides and (name not in found or name not in names):
                sides.pop(name).end()
                found.pop(name, None)
        for turn in range(1, repeat + 1):
            for name in list(found):
                try:
                    found[name]["limits"].append(limits.measure())
                    found[name]["answers"].append(sides[name].ask(row.call, {**row.arguments, "turn": turn}))
                except SideError as error:
                    reasons[name] = str(error)
                    del found[name]
    finally:
        for process in sides.values():
            process.end()
    return found, reasons


def remedy(name: str, error: SideError) -> str:
    return f"; pip install {SIDES[name].packages}" if "ModuleNotFoundError" in str(error) else ""


def compare(name: str, output: Any, expected: Any) -> dict[str, float]:
    """How far an output is from that of the first side. Raises SideError where it is another computation.

    Later ids may differ, since random weights decide by little and some keep keys and values in 8 bits; so
    may all ids of packed weights. How many are equal is reported.
    """
    size = SIDES[name].format.block_bytes
    if np.issubdtype(output.dtype, np.integer) and np.issubdtype(expected.dtype, np.integer):
        same_shape = output.shape == expected.shape
        if size >= 2 and not same_shape:
            raise SideError(f"gave ids of shape {output.shape}, not {expected.shape}")
        if size >= 2 and output.flat[0] != expected.flat[0]:
            raise SideError(f"its first id is {output.flat[0]}, not {expected.flat[0]}")
        equal = float((output == expected).mean()) if same_shape else 0.0
        return {"equal ids": round(equal, 3)}
    if output.size == 1:
        return {"equal ids": float(output.item() == expected.argmax())}
    a, b = output.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    a, b = a[: min(len(a), len(b))], b[: min(len(a), len(b))]
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    if not cosine >= LEAST_COSINE.get(int(size), 0.8):
        raise SideError(f"it does not compute the same: the cosine is {cosine:.4f}")
    return {"cosine": round(cosine, 6)}


def middle(values: Sequence[Limits]) -> Limits:
    """The medians."""
    return Limits(*(statistics.median(rates) for rates in zip(*map(astuple, values), strict=True)))
