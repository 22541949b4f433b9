"""A run of the tiny golden model on a few generated records, and ways to end it early.

As a program (`python -m ... RECIPE OUT [HOW STEP RANK]`) it carries out a recipe file and goes on with what
it finds; HOW is "ask", "kill" or "fail" (see `Ending`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from internvl.data.spec import Batching, DataSpec
from internvl.training import recipe_file
from internvl.training.progress import Progress
from internvl.training.recipe import AdamW, Execution, ModelSpec, Recipe, Saving, Schedule
from internvl.training.run import run

STEPS = 20
WORDS = ("red", "green", "blue", "grey", "a square", "two pictures", "nothing")


def write_records(folder: Path) -> Path:
    """Twenty conversations: with a picture, with two, and of text alone; of different lengths."""
    lines = []
    for index in range(20):
        images = [f"{index}-{number}.png" for number in range((1, 0, 1, 2)[index % 4])]
        for number, name in enumerate(images):
            colour = (index * 12 % 256, 80 * number, 255 - index * 9)
            Image.new("RGB", (60 + 3 * index, 60), colour).save(folder / name)
        marks = "".join("<image>\n" for _ in images)
        answer = " ".join(WORDS[(index + word) % len(WORDS)] for word in range(1 + index % 5))
        turns = [{"from": "human", "value": f"{marks}What is it?"}, {"from": "gpt", "value": answer}]
        row: dict[str, Any] = {"id": index, "conversations": turns}
        if images:
            row["image"] = images if len(images) > 1 else images[0]
        lines.append(json.dumps(row))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def make_recipe(
    checkpoint: Path, data: Path, *, drop_path: float = 0.0, examples: int = 4, **execution: Any
) -> Recipe:
    """Everything is trained but the token embeddings; a checkpoint every five steps."""
    return Recipe(
        name="tiny",
        model=ModelSpec(checkpoint=str(checkpoint), drop_path=drop_path, max_tiles=2),
        data=DataSpec(meta=str(data), max_length=2048, batching=Batching(examples=examples)),
        params=((r"llm\.embed\..*", None), (".*", AdamW(lr=2e-4, weight_decay=0.01, layer_decay=0.9))),
        schedule=Schedule(kind="cosine", warmup=3),
        steps=STEPS,
        ema=0.9,
        log_every=1,
        saving=Saving(every=5, keep=2),
        execution=Execution(**execution),
    )


class Ending:
    """Ends the run in this process: "ask" sends SIGTERM when `step` is logged, "fail" raises an error then;
    "kill" sends SIGKILL while the checkpoint of `step` is being written."""

    def __init__(self, out: Path, how: str, step: int) -> None:
        self.partial = out / "checkpoints" / f"step-{step:08d}.partial"
        self.how, self.step = how, step

    def __enter__(self) -> None:
        update, fsync = Progress.update, os.fsync

        def asking(progress: Progress, step: int, row: Mapping[str, Any]) -> None:
            if step == self.step:
                signal.raise_signal(signal.SIGTERM)
            update(progress, step, row)

        def failing(progress: Progress, step: int, row: Mapping[str, Any]) -> None:
            if step == self.step:
                raise OSError(f"no disk in step {step}")
            update(progress, step, row)

        def killing(descriptor: int) -> None:
            if self.partial.is_dir():
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        patches: dict[str, Callable[[], Any]] = {
            "ask": lambda: patch.object(Progress, "update", asking),
            "fail": lambda: patch.object(Progress, "update", failing),
            "kill": lambda: patch("os.fsync", killing),
        }
        self.patch = patches[self.how]()
        self.patch.start()

    def __exit__(self, *error: object) -> None:
        self.patch.stop()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every logged step, the last word on each."""
    found = {
        row["step"]: (row["step"], row["loss"], row["grad_norm"]) for row in rows(out) if "grad_norm" in row
    }
    return [found[step] for step in sorted(found)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, folder = recipe_file.read(Path(sys.argv[1])), Path(sys.argv[2])
    if len(sys.argv) > 3 and int(sys.argv[5]) == int(os.environ.get("RANK", "0")):
        with Ending(folder, sys.argv[3], int(sys.argv[4])):
            run(recipe, folder, resume=True)
    else:
        run(recipe, folder, resume=True)
