"""Retrieval: how often the right picture of a text, and a right text of a picture, is among the first k.

Pure functions of two sets of embeddings; all pairs are compared block by block, so that no matrix of
scores is ever held. Knows no model and no files. Shape letters: I pictures, T texts, E embedding width,
Q queries, N candidates.

A query's rank is the number of wrong candidates that score at least as high as its best right one, so ties
count against the model: one that embeds everything alike finds nothing. Scores are cosines in float64 on the
CPU, and two within `TIE` of each other are equal: what differs less differs by rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import normalize

from internvl.errors import InputError

KS: tuple[int, ...] = (1, 5, 10)
TIE = 1e-12
BLOCK = 2048
"""Pictures and texts compared at a time: a block of scores is 32 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Shares (0 to 1) by k: of texts whose picture, and of pictures one of whose texts, is among the first k.

    A picture with several texts counts once: it is enough that one of them is found (the "R@k" of the
    published tables, which information retrieval calls the hit rate).
    """

    text_to_image: Mapping[int, float]
    image_to_text: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean of all shares, in tables "mean recall" or the average."""
        return fmean([*self.text_to_image.values(), *self.image_to_text.values()])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """0 where a right candidate comes first: of each text (T), and of each picture that has a text."""

    text_to_image: Tensor
    image_to_text: Tensor

    def recall(self, ks: Sequence[int] = KS) -> Recall:
        """Shares of ranks below each k. Raises InputError for a k below 1, or none."""
        if not ks or min(ks) < 1:
            raise InputError(f"recall at k needs a k of at least 1, got {tuple(ks)}")
        return Recall(
            text_to_image={k: _share(self.text_to_image < k) for k in ks},
            image_to_text={k: _share(self.image_to_text < k) for k in ks},
        )


def recall(
    images_IE: Tensor, texts_TE: Tensor, image_of_text: Sequence[int] | Tensor, ks: Sequence[int] = KS
) -> Recall:
    """R@k both ways; `image_of_text[t]` is the row of the picture that text t describes.

    Embeddings need not be normalised. Raises InputError as `ranks`, and for a k below 1.
    """
    return ranks(images_IE, texts_TE, image_of_text).recall(ks)


def ranks(images_IE: Tensor, texts_TE: Tensor, image_of_text: Sequence[int] | Tensor) -> Ranks:
    """The rank of the best right candidate of every query, both ways.

    A picture that no text describes is a candidate and no query. Memory beyond the embeddings does not
    grow with the number of pairs. Raises InputError for shapes that do not fit, no text, a row that does
    not exist, and embeddings that are not finite.
    """
    images_IE, texts_TE = images_IE.cpu(), texts_TE.cpu()  # not every device has float64
    image_of_T = _checked(images_IE, texts_TE, image_of_text)
    right_T = _right_scores(images_IE, texts_TE, image_of_T)
    best_I = right_T.new_full((len(images_IE),), -torch.inf)
    best_I = best_I.scatter_reduce(0, image_of_T, right_T, "amax")
    before_T, before_I = torch.zeros_like(image_of_T), torch.zeros_like(best_I, dtype=torch.long)
    for texts in _blocks(len(texts_TE)):
        some_TE = _unit(texts_TE[texts])
        for images in _blocks(len(images_IE)):
            scores_TI = some_TE @ _unit(images_IE[images]).T
            here_T = image_of_T[texts] - images.start
            rows = ((here_T >= 0) & (here_T < scores_TI.shape[1])).nonzero().flatten()
            scores_TI[rows, here_T[rows]] = -torch.inf  # a text has one right picture: all others are wrong
            before_T[texts] += _count(scores_TI >= right_T[texts, None] - TIE, 1)
            before_I[images] += _count(scores_TI >= best_I[images] - TIE, 0)
    return Ranks(text_to_image=before_T, image_to_text=before_I[best_I.isfinite()])


def rank_scores(scores_QN: Tensor, is_right_QN: Tensor, *, tie: float = 0.0) -> Tensor:
    """Ranks (Q) from scores of any kind, larger is better, held as one matrix; those within `tie` are equal.

    Raises InputError for shapes that do not fit, scores that are NaN, and a query without a right candidate.
    """
    if scores_QN.shape != is_right_QN.shape or scores_QN.dim() != 2:
        raise InputError(f"scores {tuple(scores_QN.shape)} and marks {tuple(is_right_QN.shape)} do not fit")
    if scores_QN.isnan().any() or not is_right_QN.any(1).all():
        raise InputError("some scores are NaN, or a query has no right candidate")
    scores_QN = scores_QN.cpu().double()
    is_right_QN = is_right_QN.cpu().bool()
    best_Q = scores_QN.masked_fill(~is_right_QN, -torch.inf).amax(1)
    return ((scores_QN >= best_Q[:, None] - tie) & ~is_right_QN).sum(1)


def _share(is_found: Tensor) -> float:
    return float(is_found.double().mean())


def _count(marks: Tensor, dim: int) -> Tensor:
    return marks.view(torch.uint8).sum(dim, dtype=torch.int32)  # 15 times as fast as a sum of booleans


def _blocks(num: int) -> list[slice]:
    return [slice(start, end) for start, end in pairwise([*range(0, num, BLOCK), num])]


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows.double(), dim=1)


def _right_scores(images_IE: Tensor, texts_TE: Tensor, image_of_T: Tensor) -> Tensor:
    """(T) of every text with its own picture."""
    parts = [
        (_unit(texts_TE[block]) * _unit(images_IE[image_of_T[block]])).sum(1)
        for block in _blocks(len(texts_TE))
    ]
    return torch.cat(parts)


def _checked(images_IE: Tensor, texts_TE: Tensor, image_of_text: Sequence[int] | Tensor) -> Tensor:
    image_of_T = torch.as_tensor(image_of_text).cpu()
    shapes = [tuple(one.shape) for one in (images_IE, texts_TE, image_of_T)]
    if [len(shape) for shape in shapes] != [2, 2, 1] or shapes[0][1] != shapes[1][1]:
        raise InputError(f"embeddings are (I, E) and (T, E), and texts name T pictures; got {shapes}")
    if len(texts_TE) != len(image_of_T) or not len(image_of_T):
        raise InputError(f"{shapes[1][0]} texts and {shapes[2][0]} pictures of texts: one each, at least one")
    if image_of_T.is_floating_point() or not 0 <= int(image_of_T.min()) <= int(image_of_T.max()) < len(
        images_IE
    ):
        raise InputError(f"the picture of a text must be a row, 0 to {len(images_IE) - 1}")
    if not all(
        rows[block].isfinite().all() for rows in (images_IE, texts_TE) for block in _blocks(len(rows))
    ):
        raise InputError("some embeddings are NaN or infinite")
    return image_of_T.long()
