"""Distillation of a vision tower: its tokens learn to tell what another network's feature map tells.

The tower sees a picture at its own size, the teacher the same picture at another; both end in a square grid,
and each vision-token cell of the tower (2x2 patches) predicts the teacher's features at its place. The class
token predicts their mean. A classifier of the teacher, where it has one, adds the divergence between its
answer to the teacher's mean and to the predicted one. Knows no files and no particular teacher. Shape
letters: N pictures, P patches, G cells a side, F teacher features, K classes, C vision width.
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
    """Pictures as the tower wants them, and the teacher's map of each."""

    tiles_N3HW: Tensor
    teacher_NGGF: Tensor
    keys: tuple[str, ...] = ()

    def to(self, device: torch.device) -> DistillationBatch:
        tiles_N3HW, teacher_NGGF = self.tiles_N3HW.to(device), self.teacher_NGGF.to(device)
        return replace(self, tiles_N3HW=tiles_N3HW, teacher_NGGF=teacher_NGGF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """How a teacher's features are read: their spread, and the classifier on their mean (K, F), (K,)."""

    mean_F: Tensor
    std_F: Tensor
    classifier: tuple[Tensor, Tensor] | None = None


class Student(nn.Module):
    """A tower with the two linear heads that predict standardised teacher features; they are thrown away
    later."""

    def __init__(self, vit: VisionTower, projector: ProjectorConfig, teaching: Teaching) -> None:
        super().__init__()
        width, features = vit.config.width, len(teaching.mean_F)
        self.vit, self.projector, self.teaching = vit, projector, teaching
        self.cell_head = nn.Sequential(
            nn.LayerNorm(projector.cells * width), nn.Linear(projector.cells * width, features)
        )
        self.class_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features))

    def forward(self, tiles_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions for the cells, (N, G*G, F), and for their mean, (N, F)."""
        features_NPC = self.vit(tiles_N3HW)
        cells_NPF: Tensor = self.cell_head(unshuffle(features_NPC[:, 1:], self.projector))
        mean_NF: Tensor = self.class_head(features_NPC[:, 0])
        return cells_NPF, mean_NF


def distillation(model: Student, batch: DistillationBatch) -> Loss:
    """Sums over pictures: squared error of cells and of their mean, divergence of the classifier's
    answers."""
    teaching = model.teaching
    cells_NPF, mean_NF = (x.float() for x in model(batch.tiles_N3HW))
    target_NPF = (_pooled(batch.teacher_NGGF, cells_NPF.shape[1]) - teaching.mean_F) / teaching.std_F
    cell = (cells_NPF - target_NPF).square().mean((1, 2)).sum()
    mean = (mean_NF - target_NPF.mean(1)).square().mean(1).sum()
    divergence = _divergence(teaching, cells_NPF.mean(1), target_NPF.mean(1))
    metrics = {
        "cell": float(cell.detach()),
        "mean": float(mean.detach()),
        "classes": float(divergence.detach()),
    }
    return Loss(total=cell + mean + divergence, weight=float(len(cells_NPF)), metrics=metrics)


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
