"""Draws what `peers` and `throughput` measured: docs/performance.svg, docs/performance-avx512.svg.

    scripts/bench plot

A drawing for each kind of machine. One picture a row, one bar a side: its time as a part of the best peer's,
in the same run. Of a row that was measured more than once the last run is drawn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runtimes.sides import SIDES

HERE = Path(__file__).parent
MACHINES = ("", "-avx512")
"""Endings of the names of results and drawings: AVX2, where they have none."""
TITLES = {
    "vision-1": "one tile",
    "prefill-296": "prompt, 296 tokens",
    "prefill-1832": "prompt, 1,832 tokens",
    "decode-float": "64 tokens, exact",
    "decode-packed": "64 tokens, 8 and 4 bits",
    "request": "a picture and 64 tokens",
    "1b-4": "4 requests at once",
    "1b-16": "16 requests at once",
    "1b-second-question": "second question, first token",
}
OURS, PEER, PACKED_PEER = "#1b5e8c", "#b9b9b9", "#8f8f8f"
COLUMNS = 3


def read_rows(machine: str) -> dict[str, list[dict[str, Any]]]:
    """The timed sides of the last complete run of every row."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("peers", "throughput"):
        path, lines = HERE / "results" / f"{name}{machine}.jsonl", list[dict[str, Any]]()
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            line = json.loads(text)
            if line.get("complete"):
                found[line["row"]] = [one for one in lines if "seconds" in one]
                lines = []
            else:
                lines.append(line)
    return found


def draw(axes: Axes, title: str, lines: list[dict[str, Any]]) -> None:
    peers = [line["seconds"] for line in lines if not SIDES[line["side"]].is_ours]
    best, lines = min(peers), sorted(lines, key=lambda line: -line["seconds"])
    parts = [line["seconds"] / best for line in lines]
    names = [line["side"] for line in lines]
    bars = axes.barh(names, parts, color=[colour(line["side"]) for line in lines], height=0.72)
    axes.bar_label(bars, [f"{part:.2f}" for part in parts], padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_xlim(0, max(parts) * 1.18)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7, length=0)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def colour(side: str) -> str:
    spec = SIDES[side]
    return OURS if spec.is_ours else PEER if spec.format.block_bytes == 4 else PACKED_PEER


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "internvl", "svg.fonttype": "none", "font.family": "sans-serif"})
    for machine in MACHINES:
        draw_machine(machine)


def draw_machine(machine: str) -> None:
    rows = read_rows(machine)
    chosen = [name for name in TITLES if name in rows]
    height = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(11, 2.3 * height), layout="constrained")
    for place, name in enumerate(chosen, start=1):
        draw(figure.add_subplot(height, COLUMNS, place), TITLES[name], rows[name])
    figure.savefig(HERE.parent / "docs" / f"performance{machine}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
