"""Zero-shot classification: classes as ensembles of texts, and how often the right one comes first.

A class is the direction of the mean of its texts' directions, and a picture belongs to the class with the
largest cosine (A. Radford et al., CLIP, arXiv 2103.00020). Knows no model: texts are embedded by a function
that is handed over. Shape letters: B pictures, Y classes, S classes that compete, E embedding width.

Ranks are pessimistic: a wrong class that scores as high as the right one stands before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize

from internvl.errors import InputError
from internvl.evaluation.prompts import ClassPrompts
from internvl.evaluation.retrieval import TIE, rank_scores

SCALE = 100.0
"""Of the logits, as in the published evaluation; it changes no rank."""
CHUNK = 4096
"""Pictures ranked at a time."""

Label: TypeAlias = int | Collection[int]
"""The class of a picture, or all that are right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Shares, 0 to 1, of `num_pictures`.

    `acc5` is None below five classes. `mean_per_class` averages over the classes that occur, and is None
    where a picture has several right classes.
    """

    num_pictures: int
    acc1: float
    acc5: float | None
    mean_per_class: float | None

    @property
    def mean_1_5(self) -> float | None:
        """The mean of both accuracies, the usual number for Kinetics."""
        return None if self.acc5 is None else (self.acc1 + self.acc5) / 2


def classifier(
    embed_texts: Callable[[Sequence[str]], Tensor], prompts: ClassPrompts, *, batch: int = 256
) -> Tensor:
    """One unit row (Y, E) in float64 for each class. `embed_texts` makes (texts, E) of at most `batch` texts,
    which need not be normalised; a text that several classes share is embedded once."""
    texts = [prompts.texts(index) for index in range(len(prompts))]
    distinct = list(dict.fromkeys(text for one in texts for text in one))
    parts = [
        normalize(embed_texts(distinct[start : start + batch]).cpu().double(), dim=1)
        for start in range(0, len(distinct), batch)
    ]
    row_of = {text: row for row, text in enumerate(distinct)}
    rows_TE = torch.cat(parts)
    means_YE = torch.stack([rows_TE[[row_of[text] for text in one]].mean(0) for one in texts])
    return normalize(means_YE, dim=1)


def class_logits(images_BE: Tensor, classifier_YE: Tensor) -> Tensor:
    """(B, Y) in float64: 100 times the cosine. Images need not be normalised."""
    if images_BE.dim() != 2 or images_BE.shape[1] != classifier_YE.shape[1]:
        raise InputError(
            f"embeddings {tuple(images_BE.shape)} and classes {tuple(classifier_YE.shape)} do not fit"
        )
    return SCALE * normalize(images_BE.cpu().double(), dim=1) @ classifier_YE.cpu().double().T


def accuracy(
    logits_BY: Tensor, labels: Sequence[Label] | Tensor, among: Sequence[Label] | None = None
) -> Accuracy:
    """How good the logits are. A label of several classes is right with any of them (ImageNet ReaL); a
    picture with an empty one is left out.

    `among` lists the classes that compete, others do not count (the 200 of ImageNet-A and -R); an entry of
    several is one class with the largest of their logits (ObjectNet). Raises InputError for unequal numbers,
    no picture, logits that are not finite, a label that does not compete, and a class that does so twice.
    """
    labels = labels.tolist() if isinstance(labels, Tensor) else labels
    if logits_BY.dim() != 2 or len(logits_BY) != len(labels):
        raise InputError(f"logits {tuple(logits_BY.shape)} and {len(labels)} labels do not fit")
    entries = range(logits_BY.shape[1]) if among is None else among
    sets = [_classes(label) for label in labels]
    kept = [row for row, one in enumerate(sets) if one]
    if not kept or not logits_BY.isfinite().all():
        raise InputError("no picture has a label, or some logits are NaN or infinite")
    scores_BS = _compete(logits_BY[kept].cpu(), entries)
    is_right_BS = _mark([sets[row] for row in kept], entries)
    ranks_B = torch.cat(
        [
            rank_scores(scores, right, tie=SCALE * TIE)
            for scores, right in zip(scores_BS.split(CHUNK), is_right_BS.split(CHUNK), strict=True)
        ]
    )
    has_one = bool((is_right_BS.sum(1) == 1).all())
    return Accuracy(
        num_pictures=len(kept),
        acc1=_share(ranks_B < 1),
        acc5=_share(ranks_B < 5) if scores_BS.shape[1] >= 5 else None,
        mean_per_class=_per_class(ranks_B < 1, is_right_BS) if has_one else None,
    )


def average_precision(scores_BY: Tensor, is_right_BY: Tensor) -> float:
    """The mean over classes of the area under precision and recall (mAP, VOC2007's measure for pictures with
    several classes): sum of precision times the step in recall, equal scores counted together.

    Classes without a picture are left out. Raises InputError for shapes that do not fit, scores that are
    NaN, and if no class is left.
    """
    if scores_BY.isnan().any():
        raise InputError("some scores are NaN")
    if scores_BY.shape != is_right_BY.shape or scores_BY.dim() != 2 or not is_right_BY.any():
        raise InputError(f"scores {tuple(scores_BY.shape)}, marks {tuple(is_right_BY.shape)}: none is right")
    found = [
        _area(scores_B, is_right_B)
        for scores_B, is_right_B in zip(scores_BY.T, is_right_BY.T.bool(), strict=True)
        if is_right_B.any()
    ]
    return sum(found) / len(found)


def _area(scores_B: Tensor, is_right_B: Tensor) -> float:
    values, order = scores_B.sort(descending=True)
    hits = is_right_B[order].double().cumsum(0)
    ends = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])
    seen = torch.arange(1, len(values) + 1, dtype=torch.float64)[ends]
    hits = hits[ends]
    steps = torch.diff(hits, prepend=hits.new_zeros(1))
    return float((steps * hits / seen).sum() / hits[-1])


def _classes(label: Label) -> frozenset[int]:
    return frozenset([label]) if isinstance(label, int) else frozenset(label)


def _compete(logits_BY: Tensor, entries: Sequence[Label]) -> Tensor:
    """(B, S): of every entry the largest logit."""
    sets = [sorted(_classes(entry)) for entry in entries]
    num = logits_BY.shape[1]
    if not sets or not all(sets) or min(map(min, sets)) < 0 or max(map(max, sets)) >= num:
        raise InputError(f"the classes that compete must be some of 0 to {num - 1}, none empty")
    double, count = Counter(one for entry in sets for one in entry).most_common(1)[0]
    if count > 1:
        raise InputError(f"class {double} is named in {count} of the entries that compete: name it once")
    if all(len(one) == 1 for one in sets):
        return logits_BY[:, [one[0] for one in sets]]
    return torch.stack([logits_BY[:, one].amax(1) for one in sets], dim=1)


def _mark(sets: Sequence[frozenset[int]], entries: Sequence[Label]) -> Tensor:
    """(B, S) bool: which entries are right."""
    place_of = {one: place for place, entry in enumerate(entries) for one in _classes(entry)}
    marks_BS = torch.zeros(len(sets), len(entries), dtype=torch.bool)
    for row, label in enumerate(sets):
        places = [place_of[one] for one in label if one in place_of]
        if not places:
            raise InputError(f"class {sorted(label)} is a label and does not compete")
        marks_BS[row, places] = True
    return marks_BS


def _per_class(is_found_B: Tensor, is_right_BS: Tensor) -> float:
    labels_B = is_right_BS.int().argmax(1)
    counts_S = labels_B.bincount(minlength=is_right_BS.shape[1])
    found_S = labels_B[is_found_B].bincount(minlength=is_right_BS.shape[1])
    occurs_S = counts_S > 0
    return float((found_S[occurs_S] / counts_S[occurs_S].double()).mean())


def _share(is_found: Tensor) -> float:
    return float(is_found.double().mean())
