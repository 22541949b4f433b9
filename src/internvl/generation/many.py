"""Several answers to each prompt, drawn together from the model's own distribution; each prompt runs once.

Meant for learning from one's own answers: nothing but `temperature` changes the distribution. Random
numbers are torch's global ones. Knows embeddings; no text. Shape letters: T tokens, D width, R answers, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from internvl.generation.prefill import decode_step, make_cache, prefill
from internvl.generation.prompt import Prompt
from internvl.generation.sampler import check_finite
from internvl.generation.sampling import Sampling
from internvl.models.decoder import Decoder


@torch.no_grad()
def draw_answers(
    llm: Decoder,
    prompts: Sequence[Tensor],
    count: int,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 1.0,
) -> list[list[int]]:
    """`count` answers to each prompt x_TD, those to the first one first; an id that ends one is its last."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    cache = make_cache(
        [Prompt(x_TD, sampling) for x_TD in prompts], llm.config, len(prompts) * count, max_new_tokens
    )
    logits_BV = prefill(llm, cache, [Prompt(x_TD, sampling) for x_TD in prompts])
    origin_R = [row // count for row in range(len(prompts) * count)]
    cache.reorder(origin_R)
    answers: list[list[int]] = [[] for _ in origin_R]
    live, logits_RV = list(range(len(origin_R))), logits_BV[torch.tensor(origin_R, device=logits_BV.device)]
    for _ in range(max_new_tokens):
        share_RV = (logits_RV.float() / temperature).softmax(-1)
        check_finite(float(share_RV.sum()))
        drawn = share_RV.multinomial(1)[:, 0].tolist()
        for row, id in zip(live, drawn, strict=True):
            answers[row].append(id)
        live = [row for row in live if answers[row][-1] not in stop_ids]
        if not live:
            break
        logits_RV = decode_step(llm, cache, live, [answers[row][-1] for row in live])
    return answers
