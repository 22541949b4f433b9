"""What happened in a run, for people: `report.md` and `loss.png`, made of `log.jsonl` and the recipe.

Can be made again from a run's folder at any time. Knows no model and no data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from internvl.data.bad_samples import read_kinds
from internvl.training import recipe_file
from internvl.training.log import NAME as LOG
from internvl.training.log import Row, read_rows
from internvl.training.recipe import Recipe

REPORT, PLOT = "report.md", "loss.png"
BAD_SAMPLES = "bad_samples.jsonl"
FAILED = "failed:"
"""How the reason of a process that failed begins."""
SHOWN_REASONS = 10
SHOWN_ROWS = 20
DOTS_PER_INCH = 120
FEW_POINTS = 50
"""Up to so many are drawn as points too."""


def write_report(folder: Path, recipe: Recipe, facts: Mapping[str, object]) -> Path:
    """Writes `folder/report.md` and, where matplotlib is installed (extra [train]), `folder/loss.png`.

    `facts` are names and values for the table at the top. Raises InputError for a damaged log.
    """
    rows = read_rows(folder)
    parts = [
        f"# Run `{recipe.name}`",
        _table(("", ""), [(name, _shown(value)) for name, value in (*facts.items(), *_totals(rows).items())]),
        "## Loss",
        _loss(rows),
        _picture(folder, rows),
        *_measured(rows),
        *_events(folder, rows),
        *_bad_samples(folder),
        "## Recipe",
        f"```json\n{json.dumps(recipe_file.dump(recipe), indent=2, ensure_ascii=False)}\n```",
    ]
    _write(folder / REPORT, "\n\n".join(part for part in parts if part) + "\n")
    return folder / REPORT


def _totals(rows: Sequence[Row]) -> dict[str, object]:
    """Steps, and the time and tokens that are in the log's rows."""
    trained = _trained(rows)
    seconds = sum(row.get("seconds", 0.0) for row in trained)
    if not seconds:
        return {}
    totals: dict[str, object] = {"hours of training": f"{seconds / 3600:.2f}"}
    for name in ("tokens_per_second", "tiles_per_second"):
        count = sum(row.get(name, 0.0) * row.get("seconds", 0.0) for row in trained)
        totals[name.replace("_per_second", " a second")] = f"{count / seconds:,.1f}"
    wait = sum(row.get("data_wait", 0.0) * row.get("seconds", 0.0) for row in trained)
    return {**totals, "time spent waiting for data": f"{wait / seconds:.1%}"}


def _loss(rows: Sequence[Row]) -> str:
    losses = _points(rows, "loss")
    if not losses:
        return "No step was logged."
    last = losses[-max(1, len(losses) // 10) :]
    mean = sum(value for _, value in last) / len(last)
    return (
        f"{losses[0][1]:.4f} at step {losses[0][0]}, {losses[-1][1]:.4f} at step {losses[-1][0]}; "
        f"{mean:.4f} on average over the last {len(last)} logged rows."
    )


def _picture(folder: Path, rows: Sequence[Row]) -> str:
    if not _points(rows, "loss"):
        return ""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return 'No plot: matplotlib is not installed (`pip install "internvl[train]"`).'
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    losses = _points(rows, "loss")
    marker = "." if len(losses) <= FEW_POINTS else ""  # a single point has no line
    axes.plot(*zip(*losses, strict=True), linewidth=1, marker=marker, label="training")
    held_out = _names(rows, "val_loss")
    for name in held_out[:1] if len(held_out) == 2 else held_out:  # of one data set the mean is the same
        axes.plot(*zip(*_points(rows, name), strict=True), marker="o", markersize=3, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    partial = folder / f"{PLOT}.partial"
    figure.savefig(partial, dpi=DOTS_PER_INCH, format="png")
    partial.replace(folder / PLOT)
    return f"![loss over steps]({PLOT})"


def _measured(rows: Sequence[Row]) -> tuple[str, ...]:
    """A table of the held-out measurements: the last ones, where there are many."""
    names = _names(rows, "val_")
    measured = [row for row in rows if any(name in row for name in names)]
    if not measured:
        return ()
    cells = [(str(row["step"]), *(_shown(row.get(name, "")) for name in names)) for row in measured]
    left_out = len(cells) - SHOWN_ROWS
    note = f"The first {left_out} are in the log." if left_out > 0 else ""
    return "## Held-out records", _table(("step", *names), cells[-SHOWN_ROWS:]), note


def _events(folder: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    """Those of the main process, and why others failed."""
    lines = [f"* {_event(row)}" for row in rows if "event" in row]
    for log in sorted(folder.glob(f"rank-*/{LOG}")):
        failures = [row for row in read_rows(log.parent) if str(row.get("event")).startswith(FAILED)]
        lines += [f"* {log.parent.name}, {_event(row)}" for row in failures]
    return ("## Events", "\n".join(lines)) if lines else ()


def _event(row: Row) -> str:
    return f"step {row.get('step', '?')}: {_cell(str(row['event']))}"


def _bad_samples(folder: Path) -> tuple[str, ...]:
    """Distinct records, however often each came."""
    kinds = Counter(read_kinds(folder / BAD_SAMPLES).values())
    if not kinds:
        return ()
    rows = [(kind, str(count)) for kind, count in kinds.most_common(SHOWN_REASONS)]
    text = f"{kinds.total()} records could not be used; each is in `{BAD_SAMPLES}`."
    return "## Bad samples", text, _table(("error", "records"), rows)


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "loss" in row and "event" not in row]


def _points(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever the value is a number."""
    return [
        (row["step"], float(row[name]))
        for row in rows
        if "event" not in row and isinstance(row.get(name), int | float) and isinstance(row.get("step"), int)
    ]


def _names(rows: Sequence[Row], prefix: str) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    return [name for name in names if _points(rows, name)]


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
