"""What frozen features tell apart: nearest neighbours and a closed-form linear classifier.

Pure functions of features and labels: no pictures, no tower, nothing is trained by steps.
Shape letters: N training examples, M others, F features, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from internvl.errors import InputError

TEMPERATURE = 0.07
CHUNK = 1024
"""Examples compared with all training examples at a time."""

PENALTIES: tuple[float, ...] = tuple(10.0**power for power in range(-4, 3))
"""Of ridge regression, per training example; features are scaled to unit variance first."""


def nearest_neighbours(
    train_NF: Tensor, labels_N: Tensor, features_MF: Tensor, k: int, temperature: float = TEMPERATURE
) -> Tensor:
    """The labels (M) that the k nearest training examples vote for.

    By cosine similarity; a vote weighs exp(similarity / temperature), as in DINO (arXiv 2104.14294).
    Raises InputError for shapes that do not fit, and for a k that is not 1 to N.
    """
    train_NF, features_MF = _checked(train_NF, labels_N, features_MF)
    if not 1 <= k <= len(train_NF):
        raise InputError(f"k must be 1 to {len(train_NF)}, the number of training examples; got {k}")
    classes_Y, targets_N = labels_N.unique(return_inverse=True)
    train_NF = normalize(train_NF, dim=1)
    predicted = []
    for some_MF in features_MF.split(CHUNK):
        nearest = (normalize(some_MF, dim=1) @ train_NF.T).topk(k, dim=1)
        votes_MY = torch.zeros(len(some_MF), len(classes_Y), dtype=train_NF.dtype)
        votes_MY.scatter_add_(1, targets_N[nearest.indices], ((nearest.values - 1) / temperature).exp())
        predicted.append(classes_Y[votes_MY.argmax(1)])
    return torch.cat(predicted)


def ridge(
    train_NF: Tensor, labels_N: Tensor, features_MF: Tensor, penalties: Sequence[float] = PENALTIES
) -> Tensor:
    """The labels (M) of a linear classifier: ridge regression on indicators of the classes.

    Features are standardised by the training examples; the intercept is not penalised. Of several penalties
    (per training example) the one with the least squared error on left-out training examples is taken, so
    that what is measured chooses nothing. Raises InputError for shapes that do not fit, no penalty, or one
    that is not positive.
    """
    train_NF, features_MF = _checked(train_NF, labels_N, features_MF)
    if not penalties or min(penalties) <= 0:
        raise InputError(f"ridge regression needs positive penalties, got {tuple(penalties)}")
    classes_Y, targets_N = labels_N.unique(return_inverse=True)
    mean_F, std_F = train_NF.mean(0), train_NF.std(0, correction=0)
    std_F = torch.where(std_F > 0, std_F, 1)
    share_NY = one_hot(targets_N).to(train_NF)
    offset_Y = share_NY.mean(0)
    left, sizes, right = torch.linalg.svd((train_NF - mean_F) / std_F, full_matrices=False)
    energy, inner = sizes.square(), left.T @ (share_NY - offset_Y)

    def left_out_error(penalty: float) -> float:
        shrink = energy / (energy + penalty * len(train_NF))
        error_NY = share_NY - offset_Y - left @ (shrink[:, None] * inner)
        leverage_N = left.square() @ shrink + 1 / len(train_NF)
        return float((error_NY / (1 - leverage_N)[:, None]).square().mean())

    penalty = min(penalties, key=left_out_error) if len(penalties) > 1 else penalties[0]
    weight_FY = right.T @ ((sizes / (energy + penalty * len(train_NF)))[:, None] * inner)
    predicted_M: Tensor = classes_Y[((features_MF - mean_F) / std_F @ weight_FY + offset_Y).argmax(1)]
    return predicted_M


def accuracy(predicted_M: Tensor, labels_M: Tensor) -> float:
    """The share of right labels, 0 to 1. Raises InputError for none, and for unequal numbers."""
    if predicted_M.shape != labels_M.shape or not len(labels_M):
        raise InputError(
            f"labels {tuple(predicted_M.shape)} and {tuple(labels_M.shape)}: one for each example"
        )
    return float((predicted_M == labels_M).double().mean())


def _checked(train_NF: Tensor, labels_N: Tensor, features_MF: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets of features in float64."""
    shapes = [tuple(one.shape) for one in (train_NF, labels_N, features_MF)]
    if [len(shape) for shape in shapes] != [2, 1, 2] or not len(train_NF):
        raise InputError(f"features are (N, F), (M, F) and labels (N); got {shapes}")
    if train_NF.shape[1] != features_MF.shape[1] or len(train_NF) != len(labels_N):
        raise InputError(f"{shapes[0]} features, {shapes[1]} labels and {shapes[2]} features do not fit")
    if not (train_NF.isfinite().all() and features_MF.isfinite().all()):
        raise InputError("some features are NaN or infinite")
    return train_NF.double(), features_MF.double()
