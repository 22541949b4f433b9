"""Distillation of a vision tower: its tokens learn to tell what another network's feature map tells.

The tower sees a picture at its own size, the teacher the same picture at another; both end in a square grid,
and each vision-token cell of the tower (2x2 patches) predicts the teacher's features at its place. The class
token predicts their mean. A classifier of the teacher, where it has one, adds the divergence between its
answer to the teacher's mean and to the predicted one. Where pictures have captions, the cells also predict
their words (Joulin et al., arXiv 1511.02251), each where it is seen best. Knows no files and no particular
teacher. Shape letters: N pictures, P patches, G cells a side, F teacher features, K classes, C vision width,
W words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internvl.config import ProjectorConfig
from internvl.errors import InputError
from internvl.models.projector import unshuffle
from internvl.models.vit import VisionTower
from internvl.training.loss import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationBatch:
    """Pictures as the tower wants them, the teacher's map of each and, of pictures with captions, how their
    words are spread: every row sums to one."""

    tiles_N3HW: Tensor
    teacher_NGGF: Tensor
    words_NW: Tensor | None = None
    keys: tuple[str, ...] = ()

    def to(self, device: torch.device) -> DistillationBatch:
        tiles_N3HW, teacher_NGGF = self.tiles_N3HW.to(device), self.teacher_NGGF.to(device)
        words_NW = None if self.words_NW is None else self.words_NW.to(device)
        return replace(self, tiles_N3HW=tiles_N3HW, teacher_NGGF=teacher_NGGF, words_NW=words_NW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """How a teacher's features are read: their spread, and the classifier on their mean (K, F), (K,). And how
    many words captions are read by."""

    mean_F: Tensor
    std_F: Tensor
    classifier: tuple[Tensor, Tensor] | None = None
    num_words: int = 0


class Student(nn.Module):
    """A tower with the linear heads that predict standardised teacher features and words; they are thrown
    away later."""

    def __init__(self, vit: VisionTower, projector: ProjectorConfig, teaching: Teaching) -> None:
        super().__init__()
        width, features = vit.config.width, len(teaching.mean_F)
        self.vit, self.projector, self.teaching = vit, projector, teaching
        cell = projector.cells * width
        self.cell_head = nn.Sequential(nn.LayerNorm(cell), nn.Linear(cell, features))
        self.word_head = None
        if teaching.num_words:
            self.word_head = nn.Sequential(nn.LayerNorm(cell), nn.Linear(cell, teaching.num_words))
        self.class_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features))

    def forward(self, tiles_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predictions for the cells, (N, G*G, F), for their mean, (N, F), and of words, if any, (N, W)."""
        features_NPC = self.vit(tiles_N3HW)
        cells_NPC = unshuffle(features_NPC[:, 1:], self.projector)
        cells_NPF: Tensor = self.cell_head(cells_NPC)
        mean_NF: Tensor = self.class_head(features_NPC[:, 0])
        words_NW = None if self.word_head is None else self.word_head(cells_NPC).logsumexp(1)
        return cells_NPF, mean_NF, words_NW


def distillation(model: Student, batch: DistillationBatch) -> Loss:
    """Sums over pictures: squared error of cells and of their mean, divergence of the classifier's answers,
    cross entropy of the words of captions."""
    teaching = model.teaching
    cells_NPF, mean_NF, words_NW = model(batch.tiles_N3HW)
    cells_NPF, mean_NF = cells_NPF.float(), mean_NF.float()
    target_NPF = (_pooled(batch.teacher_NGGF, cells_NPF.shape[1]) - teaching.mean_F) / teaching.std_F
    cell = (cells_NPF - target_NPF).square().mean((1, 2)).sum()
    mean = (mean_NF - target_NPF.mean(1)).square().mean(1).sum()
    divergence = _divergence(teaching, cells_NPF.mean(1), target_NPF.mean(1))
    metrics = {
        "cell": float(cell.detach()),
        "mean": float(mean.detach()),
        "classes": float(divergence.detach()),
    }
    total = cell + mean + divergence
    if words_NW is not None and batch.words_NW is not None:
        total = total + (words := F.cross_entropy(words_NW.float(), batch.words_NW, reduction="sum"))
        metrics["words"] = float(words.detach())
    return Loss(total=total, weight=float(len(cells_NPF)), metrics=metrics)


def _pooled(teacher_NGGF: Tensor, cells: int) -> Tensor:
    """The teacher's map averaged down to as many cells as the student has, (N, cells, F)."""
    side, grid = round(cells**0.5), teacher_NGGF.shape[1]
    if side**2 != cells or grid % side:
        raise InputError(f"a teacher's map of {grid}x{grid} does not divide into the student's {cells} cells")
    map_NFGG = teacher_NGGF.float().permute(0, 3, 1, 2)
    return F.avg_pool2d(map_NFGG, grid // side).flatten(2).transpose(1, 2)


def _divergence(teaching: Teaching, predicted_NF: Tensor, target_NF: Tensor) -> Tensor:
    if teaching.classifier is None:
        return predicted_NF.new_zeros(())
    weight_KF, bias_K = teaching.classifier
    theirs, ours = (
        F.log_softmax(F.linear(x * teaching.std_F + teaching.mean_F, weight_KF, bias_K), dim=-1)
        for x in (target_NF, predicted_NF)
    )
    return F.kl_div(ours, theirs, log_target=True, reduction="sum")


@torch.no_grad()
def spread(maps_NGGF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over pictures and places; constant ones count as spread
    1."""
    flat = maps_NGGF.flatten(0, 2).float()
    std_F = flat.std(0)
    return flat.mean(0), torch.where(std_F > 1e-4, std_F, torch.ones_like(std_F))
