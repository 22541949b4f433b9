"""Checkpoints of a run: what it needs to go on, written beside the training, complete or not there at all.

    step-00000200/
        shard-*.safetensors    trained parameters, moments of the optimiser, averaged weights
        checkpoint.json        step, facts, and the size of every file
    best.json                  the step that measured best

Tensors go through `torch.distributed.checkpoint` in its safetensors format, so a run continues on another
number of processes, and nothing in a checkpoint is code (no pickle). Knows no recipe, no data and no loop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from internvl.errors import TrainingError
from internvl.training.shards import Averages, inventory, read, start_writing, written
from internvl.training.world import World

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

FORMAT = 1
INDEX = "checkpoint.json"
BEST = "best.json"
REPLACED = ".replaced.partial"
MAX_JSON_BYTES = 64 * 1024 * 1024
"""Of a JSON file that is read: a checkpoint comes from another machine at times."""

_FOLDER = re.compile(r"step-(\d{1,18})")


class Saves:
    """The checkpoints in `folder`: the last `keep` and the best. All processes make it and call it together;
    `folder` must be the same place for all of them.
    """

    def __init__(self, folder: Path, world: World, *, keep: int) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self.latest_step: int | None = None
        """The step last saved or loaded by this object."""
        # Writing talks between processes while training does: it needs channels of its own.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if world.is_main:
            self._put_back()
        world.barrier()

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        facts: Mapping[str, JSON],
        *,
        ema: Averages | None = None,
        wait: bool = False,
    ) -> None:
        """Copies the state and returns; the copy is written meanwhile, and then takes its place by a rename.

        Waits for the checkpoint before it. A step saved twice is replaced. Raises TrainingError when the one
        before, or with `wait` this one, could not be written, and where a later step lies in the folder.
        """
        self.wait()
        later = [found for found in self._complete_steps() if found > step]
        if later:
            raise TrainingError(
                f"{self.folder} already has step {later[-1]}, and step {step} is about to be saved there: "
                "resume from it, remove it, or train in another folder"
            )
        self.world.barrier()
        if self.world.is_main:
            self._remove_unfinished()
        self.world.barrier()
        index = json.dumps({"format": FORMAT, "step": step, "facts": dict(facts)})
        partial = self.folder / f"{_name(step)}.partial"
        files = start_writing(partial, model, optimizer, ema, self._group)
        self._pending = self._pool.submit(self._complete, files, partial, index)
        self.latest_step = step
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when the checkpoint being written is complete, on all processes."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        problem = ""
        try:
            pending.result()
        except (TrainingError, OSError, RuntimeError) as error:
            problem = str(error)
        if self.world.any(bool(problem)):
            raise TrainingError(
                f"the checkpoint of step {self.latest_step} in {self.folder} was not written: "
                f"{problem or 'another process failed'}. "
                "Look at the space left; the checkpoints before it are unharmed"
            )

    def close(self) -> None:
        """Lets what is being written come to its end, whatever ended the run; says nothing to other
        processes."""
        self._pool.shutdown()

    def latest(self) -> Path | None:
        """The complete checkpoint of the highest step."""
        found = self._complete_steps()
        return self.folder / _name(found[-1]) if found else None

    def refuse_damaged(self) -> None:
        """Raises TrainingError where there are checkpoints and none is complete."""
        if not self._complete_steps():
            for path in sorted(self.folder.glob("step-*")):
                if _FOLDER.fullmatch(path.name):
                    _read_index(path)

    def load(
        self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Averages | None = None
    ) -> dict[str, Any]:
        """Restores, in place, what `save` was given; returns the facts.

        Raises TrainingError for a checkpoint that is damaged, or of another recipe.
        """
        index = _read_index(path)
        read(path, model, optimizer, ema, self._group)
        self.latest_step = index["step"]
        facts: dict[str, Any] = index["facts"]
        return facts

    def keep_best(self, step: int) -> None:
        """Keeps the checkpoint of `step` until another one is the best. Raises TrainingError if it is not
        there."""
        self.wait()
        if not (self.folder / _name(step) / INDEX).is_file():
            raise TrainingError(f"step {step} has no checkpoint in {self.folder}: save it before keeping it")
        if self.world.is_main:
            _write_json(self.folder / BEST, json.dumps({"step": step}))
        self.world.barrier()

    def best(self) -> Path | None:
        """The checkpoint that `keep_best` chose last."""
        step = self._best_step()
        return None if step is None else self.folder / _name(step)

    def _best_step(self) -> int | None:
        path = self.folder / BEST
        if not path.is_file():
            return None
        step = _read_json(path).get("step")
        return step if isinstance(step, int) and (self.folder / _name(step)).is_dir() else None

    def _complete(self, files: Future[Any], partial: Path, index: str) -> None:
        """In the writing thread: when all processes have written, process 0 makes the checkpoint count."""
        written(files)
        if not self.world.is_main:
            return
        inventory(partial)
        _write_json(partial / INDEX, json.dumps({**json.loads(index), "files": _sizes(partial)}))
        _sync(partial)
        final = partial.with_suffix("")
        if final.exists():
            final.rename(self.folder / f"{final.name}{REPLACED}")
        partial.rename(final)
        _sync(self.folder)
        for step in self._complete_steps()[: -self.keep]:
            if step != self._best_step():
                _remove(self.folder / _name(step))
        self._remove_unfinished()

    def _complete_steps(self) -> list[int]:
        """Ascending. A folder whose files are not all there and of their size does not count."""
        steps = []
        for path in self.folder.glob("step-*"):
            match = _FOLDER.fullmatch(path.name)
            if match is not None and _is_complete(path):
                steps.append(int(match[1]))
        return sorted(steps)

    def _put_back(self) -> None:
        """A checkpoint that was about to be replaced by its like when the run was killed."""
        for path in self.folder.glob(f"step-*{REPLACED}"):
            final = path.with_name(path.name.removesuffix(REPLACED))
            if not final.exists():
                path.rename(final)

    def _remove_unfinished(self) -> None:
        """What a killed run left; called only while nothing is being written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("step-*.partial"):
            shutil.rmtree(path)


def _sizes(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))}


def _is_complete(path: Path) -> bool:
    try:
        _read_index(path)
    except TrainingError:
        return False
    return True


def _read_index(path: Path) -> dict[str, Any]:
    """The index of a checkpoint whose files are as it says."""
    if not (path / INDEX).is_file():
        raise _damaged(path, f"it has no {INDEX}")
    index = _read_json(path / INDEX)
    if index.get("format") != FORMAT:
        raise _damaged(path, f"its format is {index.get('format')!r}, this version reads {FORMAT}")
    files, step = index.get("files"), index.get("step")
    if not isinstance(files, dict) or not isinstance(index.get("facts"), dict) or not isinstance(step, int):
        raise _damaged(path, f"{INDEX} lacks step, facts or files")
    found = _sizes(path)
    if found != files:
        names = sorted(name for name in found.keys() | files.keys() if found.get(name) != files.get(name))
        first = names[0]
        raise _damaged(path, f"{first} has {found.get(first)} bytes, the index says {files.get(first)}")
    return index


def _damaged(path: Path, why: str) -> TrainingError:
    return TrainingError(
        f"{path} is no complete checkpoint: {why}. Remove it to go on from the one before, or to start again"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise TrainingError(f"{path} has {path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. Remove it") from error
    if not isinstance(value, dict):
        raise TrainingError(f"{path} holds no JSON object: remove it")
    return value


def _write_json(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _sync(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Never leaves a half of it under its name."""
    doomed = folder.with_name(f"{folder.name}.partial")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _name(step: int) -> str:
    return f"step-{step:08d}"
