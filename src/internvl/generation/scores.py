"""Arithmetic on the scores of one position: penalties, filters, log-probabilities.

Pure functions (V,) -> (V,); none changes its argument. A banned id has score -inf. Semantics are those of
transformers' logits processors and, for presence and frequency, of the OpenAI API.
Shape letter: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from internvl.generation.result import TokenLogprob
from internvl.generation.sampling import Sampling

TOP_P_CANDIDATES = 1024
"""So many best ids nearly always hold the nucleus; sorting a whole vocabulary costs a hundred times more."""


def edit(scores_V: Tensor, sampling: Sampling, seen_ids: Sequence[int], new_ids: Sequence[int]) -> Tensor:
    """Bias, penalties and the ban on stopping early; temperature and filters are `warp`."""
    if sampling.logit_bias:
        scores_V = bias(scores_V, sampling.logit_bias)
    if sampling.repetition_penalty != 1.0:
        scores_V = penalise_repetition(scores_V, [*seen_ids, *new_ids], sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        scores_V = penalise_counts(scores_V, new_ids, sampling.presence_penalty, sampling.frequency_penalty)
    if len(new_ids) < sampling.min_new_tokens:
        scores_V = ban(scores_V, sampling.stop_ids)
    return scores_V


COLDEST = 1e-30
"""Below it quotients leave the range of float32; the best id is certain long before."""


def warp(scores_V: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, then top-k, top-p (in double precision) and min-p; `temperature` must be above 0."""
    scores_V = scores_V / max(sampling.temperature, COLDEST)
    if sampling.top_k:
        scores_V = keep_top_k(scores_V, sampling.top_k)
    if sampling.top_p < 1:
        scores_V = keep_top_p(scores_V, sampling.top_p)
    if sampling.min_p:
        scores_V = keep_min_p(scores_V, sampling.min_p)
    return scores_V


def bias(scores_V: Tensor, by_id: Mapping[int, float]) -> Tensor:
    """Adds a number to the scores of the ids given."""
    ids = torch.tensor(list(by_id), device=scores_V.device)
    amounts = torch.tensor(list(by_id.values()), dtype=scores_V.dtype, device=scores_V.device)
    return scores_V.index_add(0, ids, amounts)


def ban(scores_V: Tensor, ids: Sequence[int]) -> Tensor:
    """Makes the ids impossible."""
    return scores_V.index_fill(0, _index(ids, scores_V), -math.inf)


def penalise_repetition(scores_V: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Divides positive and multiplies negative scores of the ids by `penalty`, once per id."""
    index = _index(ids, scores_V)
    seen = scores_V[index]
    return scores_V.index_put((index,), torch.where(seen < 0, seen * penalty, seen / penalty))


def penalise_counts(scores_V: Tensor, ids: Sequence[int], presence: float, frequency: float) -> Tensor:
    """Subtracts `presence` once per id that occurs, and `frequency` once per occurrence."""
    index = _index(ids, scores_V)
    scores_V = scores_V.index_put((index,), scores_V[index] - presence)
    return scores_V.index_add(0, index, torch.full_like(index, -frequency, dtype=scores_V.dtype))


def keep_top_k(scores_V: Tensor, top_k: int) -> Tensor:
    """Bans all below the k-th best score; ties with it stay."""
    least = torch.topk(scores_V, min(top_k, len(scores_V))).values[-1]
    return scores_V.masked_fill(scores_V < least, -math.inf)


def keep_top_p(scores_V: Tensor, top_p: float) -> Tensor:
    """Keeps the fewest best ids whose probabilities reach `top_p`; among equal scores higher ids go first.

    Looks at the best `TOP_P_CANDIDATES` ids first; sorts everything only when they do not decide.
    """
    best = torch.topk(scores_V, min(TOP_P_CANDIDATES, len(scores_V))).values.double()
    probs = (best - scores_V.logsumexp(-1)).exp()
    num_kept = int((probs.cumsum(-1) - probs < top_p).sum())
    kept_V = scores_V >= best[num_kept - 1]
    is_decided = num_kept < len(best) or len(best) == len(scores_V)
    if not is_decided or int(kept_V.sum()) != num_kept:
        kept_V = _nucleus(scores_V, top_p)
    return scores_V.masked_fill(~kept_V, -math.inf)


def _nucleus(scores_V: Tensor, top_p: float) -> Tensor:
    """The definition of `keep_top_p`, by a full sort: which ids stay, (V,) bool."""
    ascending_V, order_V = torch.sort(scores_V)
    dropped_V = ascending_V.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped_V[-1] = False
    return ~torch.empty_like(dropped_V).scatter_(0, order_V, dropped_V)


def keep_min_p(scores_V: Tensor, min_p: float) -> Tensor:
    """Bans ids less than `min_p` times as probable as the best one."""
    return scores_V.masked_fill(scores_V < scores_V.max() + math.log(min_p), -math.inf)


def report(scores_V: Tensor, chosen: int, num_best: int) -> TokenLogprob:
    """Log-probability of `chosen` and of the `num_best` best ids, from a log-softmax of the scores."""
    logprobs_V = scores_V.log_softmax(-1)
    values, ids = torch.topk(logprobs_V, min(num_best, len(logprobs_V)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(id=chosen, logprob=float(logprobs_V[chosen]), top=top)


def _index(ids: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=like.device)
