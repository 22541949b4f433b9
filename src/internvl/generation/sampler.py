"""Chooses the next token of one sequence, or of a batch of them.

Knows token ids and scores; no text, no model, no cache. Shape letters: B sequences, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from internvl.errors import WeightsError
from internvl.generation import scores
from internvl.generation.result import TokenLogprob
from internvl.generation.sampling import Sampling


class Sampler:
    """Chooses the tokens of one sequence; its random numbers depend on nothing but its seed.

    The best id is found where the scores are; numbers are drawn on the CPU.

    `seen_ids` count as seen for the repetition penalty besides the generated ones.
    """

    def __init__(self, sampling: Sampling, seen_ids: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.seen_ids = list(seen_ids)
        self.ids: list[int] = []
        self.generator: torch.Generator | None = None

    def choose(self, logits_V: Tensor, allowed_V: Tensor | None = None) -> tuple[int, TokenLogprob | None]:
        """The next id for the model's scores (V,), and its report if `logprobs` asks for one.

        `allowed_V` marks the ids that may come, if not all; at least one.
        """
        sampling, raw_V = self.sampling, logits_V.float()
        edited_V = scores.edit(raw_V, sampling, self.seen_ids, self.ids) if sampling.edits_scores else raw_V
        if allowed_V is not None:
            edited_V = edited_V.masked_fill(~allowed_V.to(edited_V.device), -math.inf)
        index = self._draw(edited_V) if sampling.temperature else best_ids(edited_V[None])[0]
        check_finite(float(raw_V[index]))
        self.ids.append(index)
        return index, scores.report(raw_V, index, sampling.logprobs) if sampling.logprobs else None

    def _draw(self, edited_V: Tensor) -> int:
        """One uniform number looked up in the cumulative distribution: cheap, and stable under rounding.

        On the CPU: not every device has double precision, and a seed means the same on all of them.
        """
        cumulative_V = scores.warp(edited_V.cpu(), self.sampling).softmax(-1, dtype=torch.float64).cumsum(-1)
        total_1 = cumulative_V[-1:]
        check_finite(float(total_1))
        uniform_1 = torch.rand(1, dtype=torch.float64, generator=self._random())
        index_1 = torch.searchsorted(cumulative_V, uniform_1 * total_1, right=True)
        last_1 = torch.searchsorted(cumulative_V, total_1)  # the last id of positive probability
        return int(torch.minimum(index_1, last_1))

    def _random(self) -> torch.Generator:
        if self.generator is None:
            seed = self.sampling.seed
            seed = int(torch.randint(2**62, ())) if seed is None else seed
            self.generator = torch.Generator().manual_seed(seed)
        return self.generator


def choose_batch(samplers: Sequence[Sampler], logits_BV: Tensor) -> list[tuple[int, TokenLogprob | None]]:
    """The next id of every sequence; one argmax over the batch when all are plainly greedy."""
    if not all(sampler.sampling.is_plain_greedy for sampler in samplers):
        return [sampler.choose(logits_V) for sampler, logits_V in zip(samplers, logits_BV, strict=True)]
    ids = best_ids(logits_BV)
    check_finite(float(logits_BV[range(len(ids)), ids].sum()))
    for sampler, index in zip(samplers, ids, strict=True):
        sampler.ids.append(index)
    return [(index, None) for index in ids]


def best_ids(logits_BV: Tensor) -> list[int]:
    """Where the highest score of every row is, the first of equal ones; NaN is above all.

    On the CPU numpy looks for it, which takes a tenth of torch's time.
    """
    if logits_BV.device.type == "cpu":
        return [int(index) for index in logits_BV.detach().float().numpy().argmax(-1)]
    ids: list[int] = logits_BV.argmax(-1).tolist()  # one wait for the device, not one a row
    return ids


def check_finite(score: float) -> None:
    """A NaN anywhere wins every argmax, so the chosen score tells about all."""
    if not math.isfinite(score):
        raise WeightsError(
            "the model's scores are not finite: damaged weights, or activations beyond the range of "
            "float16 (load with dtype='float32' or 'bfloat16')"
        )
