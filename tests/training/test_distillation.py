"""A tower that learns what a teacher's feature maps say, against the same sums written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, softmax

from internvl.config import ProjectorConfig, VisionConfig
from internvl.errors import InputError
from internvl.models.vit import VisionTower
from internvl.training.distillation import DistillationBatch, Student, Teaching, distillation, spread

FEATURES, CLASSES, WORDS = 6, 5, 3
TINY = VisionConfig(image_size=56, width=24, num_layers=2, num_heads=3, mlp_width=40)


def teacher(tiles_N3HW: Tensor) -> Tensor:
    """A map of 4x4 places: colours of every 14x14 patch, and their squares."""
    colours_N3GG = torch.nn.functional.avg_pool2d(tiles_N3HW, 14)
    return torch.cat([colours_N3GG, colours_N3GG**2], 1).permute(0, 2, 3, 1)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth ones, so that there is something to tell: noise of 4x4 made large."""
    noise_N344 = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise_N344, size=56, mode="nearest")


def batch(count: int, seed: int = 0) -> DistillationBatch:
    tiles_N3HW = pictures(count, seed)
    return DistillationBatch(tiles_N3HW=tiles_N3HW, teacher_NGGF=teacher(tiles_N3HW), keys=("a",))


def student(*, classifies: bool = True, num_words: int = 0) -> Student:
    torch.manual_seed(0)
    mean_F, std_F = spread(teacher(pictures(64, seed=9)))
    classifier = (torch.randn(CLASSES, FEATURES), torch.randn(CLASSES)) if classifies else None
    teaching = Teaching(mean_F=mean_F, std_F=std_F, classifier=classifier, num_words=num_words)
    return Student(VisionTower(TINY), ProjectorConfig(), teaching)


def test_the_loss_is_the_sum_over_pictures_of_three_parts() -> None:
    model, data = student(), batch(3)
    loss = distillation(model, data)
    assert loss.weight == 3.0
    with torch.no_grad():
        cells_NPF, mean_NF, _ = model(data.tiles_N3HW)
    teaching, cell, mean, classes = model.teaching, 0.0, 0.0, 0.0
    assert teaching.classifier is not None
    for picture in range(3):
        raw_44F = data.teacher_NGGF[picture]
        target_PF = torch.stack(
            [raw_44F[y : y + 2, x : x + 2].mean((0, 1)) for y in (0, 2) for x in (0, 2)]
        )  # 2x2 cells of 2x2 places, row by row
        target_PF = (target_PF - teaching.mean_F) / teaching.std_F
        cell += float((cells_NPF[picture] - target_PF).square().mean())
        mean += float((mean_NF[picture] - target_PF.mean(0)).square().mean())
        theirs, ours = (
            softmax(linear(x * teaching.std_F + teaching.mean_F, *teaching.classifier), -1)
            for x in (target_PF.mean(0), cells_NPF[picture].mean(0))
        )
        classes += float((theirs * (theirs / ours).log()).sum())
    assert loss.metrics == pytest.approx({"cell": cell, "mean": mean, "classes": classes}, rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(cell + mean + classes, rel=1e-4)


def test_without_a_classifier_two_parts_are_left() -> None:
    loss = distillation(student(classifies=False), batch(2))
    assert loss.metrics["classes"] == 0.0
    assert float(loss.total.detach()) == pytest.approx(loss.metrics["cell"] + loss.metrics["mean"])


def test_a_teacher_that_was_learnt_leaves_nothing() -> None:
    """Of a student that predicts the truth, whatever its tower does."""

    class Knows(Student):
        def forward(self, tiles_N3HW: Tensor) -> tuple[Tensor, Tensor, None]:
            cells_NPF = (
                teacher(tiles_N3HW).unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean((2, 4)).flatten(1, 2)
            )
            cells_NPF = (cells_NPF - self.teaching.mean_F) / self.teaching.std_F
            return cells_NPF, cells_NPF.mean(1), None

    model = student()
    loss = distillation(Knows(model.vit, model.projector, model.teaching), batch(2))
    assert float(loss.total) == pytest.approx(0.0, abs=1e-6)


def test_a_student_learns() -> None:
    model = student()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    held_out = batch(16, seed=1)
    before = float(distillation(model, held_out).total.detach())
    for step in range(60):
        optimizer.zero_grad()
        distillation(model, batch(16, seed=2 + step)).total.backward()
        optimizer.step()
    assert float(distillation(model, held_out).total.detach()) < 0.5 * before
    assert all(p.grad is not None for p in model.vit.parameters())


def test_only_tower_and_heads_are_parameters() -> None:
    names = {name.split(".")[0] for name, _ in student().named_parameters()}
    assert names == {"vit", "cell_head", "class_head"}
    names = {name.split(".")[0] for name, _ in student(num_words=WORDS).named_parameters()}
    assert names == {"vit", "cell_head", "class_head", "word_head"}


def brightest(tiles_N3HW: Tensor) -> Tensor:
    """Which colour the brightest of the four cells has most of, as captions that all say it."""
    cells_N3P = torch.nn.functional.avg_pool2d(tiles_N3HW, 28).flatten(2)
    place_N = cells_N3P.amax(1).argmax(1)
    chosen_N3 = cells_N3P[torch.arange(len(place_N)), :, place_N]
    return torch.nn.functional.one_hot(chosen_N3.argmax(1), WORDS).float()


def test_words_of_captions_add_their_cross_entropy() -> None:
    """A word's score is the sum, among probabilities, over all cells."""
    model, data = student(num_words=WORDS), batch(3)
    words_NW = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    without = distillation(model, data)
    loss = distillation(model, replace(data, words_NW=words_NW))
    assert model.word_head is not None
    with torch.no_grad():
        patches_NYXC = model.vit(data.tiles_N3HW)[:, 1:].unflatten(1, (4, 4))
        cells_NPC = patches_NYXC.unflatten(1, (2, 2)).unflatten(3, (2, 2)).permute(0, 1, 3, 2, 4, 5)
        scores_NPW = model.word_head(cells_NPC.flatten(3).flatten(1, 2))
    expected = 0.0
    for picture in range(3):
        shares_W = scores_NPW[picture].exp().sum(0)
        expected -= float((words_NW[picture] * (shares_W / shares_W.sum()).log()).sum())
    assert loss.metrics["words"] == pytest.approx(expected, rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(float(without.total.detach()) + expected, rel=1e-4)
    assert "words" not in without.metrics


def test_a_student_learns_words() -> None:
    model = student(num_words=WORDS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(100):
        optimizer.zero_grad()
        data = batch(16, seed=2 + step)
        distillation(model, replace(data, words_NW=brightest(data.tiles_N3HW))).total.backward()
        optimizer.step()
    unseen_N3HW = pictures(64, seed=1)
    with torch.no_grad():
        guessed_N = model(unseen_N3HW)[2].argmax(1)
    assert float((guessed_N == brightest(unseen_N3HW).argmax(1)).float().mean()) > 0.6


@pytest.mark.parametrize("grid", [3, 1])
def test_a_map_that_does_not_divide_is_refused(grid: int) -> None:
    data = DistillationBatch(tiles_N3HW=pictures(1), teacher_NGGF=torch.zeros(1, grid, grid, FEATURES))
    with pytest.raises(InputError, match=f"map of {grid}x{grid} does not divide into the student's 4 cells"):
        distillation(student(), data)


def test_spread_of_every_feature() -> None:
    maps_NGGF = torch.randn(5, 3, 3, 4) * torch.tensor([1.0, 2.0, 0.0, 3.0]) + 7
    mean_F, std_F = spread(maps_NGGF)
    flat = maps_NGGF.view(-1, 4)
    torch.testing.assert_close(mean_F, flat.mean(0))
    torch.testing.assert_close(std_F[[0, 1, 3]], flat.std(0)[[0, 1, 3]])
    assert float(std_F[2]) == 1.0
    assert float(mean_F[2]) == 7.0


def test_a_batch_moves_with_its_keys() -> None:
    moved = batch(1).to(torch.device("meta"))
    assert moved.tiles_N3HW.is_meta
    assert moved.teacher_NGGF.is_meta
    assert moved.keys == ("a",)
