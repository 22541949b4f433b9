"""The text encoder of InternVL-C for diffusion models: prompts in any of its languages as `prompt_embeds`.

Prompts become states of a fixed length, as MuLan's published adapters read them: the prefix is encoded but
not handed on, and positions behind a text look at the text. Pipelines of diffusers (extra "diffusion") are
called with the result and stay as they are. Shape letters: B prompts, T packed tokens, L positions, D text
width, E width of the pooled text, H heads, K key-value heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from internvl.api.contrastive import TextModel
from internvl.api.request import as_list
from internvl.errors import InputError, PromptError
from internvl.integrations.diffusion_adapters import (
    Adapter,
    AddedEmbedding,
    LanguageAdapter,
    LanguageAdapterXL,
    TextProjection,
)
from internvl.models.attention import Looks
from internvl.models.dual_encoder import TextEncoder
from internvl.ops.causal_attention import causal_attention
from internvl.processing.conversation import shorten
from internvl.processing.texts import PREFIX, TextProcessor
from internvl.processing.tokenizer import Tokenizer

FILLER_ID = 0
"""Embedded at the positions behind a text; the padding of the released text encoder."""

LENGTH = 80
UNET_LENGTH = 77
"""Of prompts for Stable Diffusion 1.5 and 2.1, where 80 tokens included the prefix."""


class PromptStates(NamedTuple):
    """`mask_BL`: which positions are of the prompt; those beyond are no zeros, see `encode_prompts`.
    `pooled_BE`: the prompts' embeddings, before the final normalisation."""

    states_BLD: Tensor
    mask_BL: Tensor
    pooled_BE: Tensor


def encode_prompts(
    model: TextModel,
    prompts: str | Sequence[str],
    *,
    length: int = LENGTH,
    prefix: str = PREFIX,
    keep_prefix: bool = False,
    truncate: bool = False,
    batch: int = 8,
) -> PromptStates:
    """States of each prompt after the text model's final norm, all of `length` positions.

    Tokens of a prompt, bos and eos included, see those before them. The positions that it leaves free hold
    what the encoder makes of a filler there that sees the whole prompt and no other filler; published
    adapters were trained with them, and have no mask. Runs without gradients; adapters may be trained on it.

    Args:
        model: the text side of InternVL-C, alone or within the whole model.
        prompts: texts; each is encoded once, however often it occurs.
        length: positions handed on; the prefix takes none of them unless `keep_prefix`.
        prefix: stands before each text, without a space; "" for none.
        keep_prefix: hand on the states of the prefix, too.
        truncate: cut longer prompts before their eos. They are refused otherwise.
        batch: prompts at a time.

    Raises:
        PromptError: a prompt with more tokens than `length`, or that is no string.
        InputError: no prompts, or numbers that leave no room for one.
    """
    listed = as_list(prompts)
    if strange := [prompt for prompt in listed if not isinstance(prompt, str)]:
        raise PromptError(f"a prompt must be a string, not {shorten(strange[0])}")
    if not listed or length < 3 or batch < 1:
        raise InputError(
            f"{len(listed)} prompts of {length} positions, {batch} at a time: needs 1, 3 and 1 at least"
        )
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(listed))}
    tokenizer = model.processor.tokenizer
    texts = [_text(tokenizer, prompt, length, prefix, keep_prefix, truncate) for prompt in distinct]
    with torch.no_grad():
        parts = [_run(model.encoder, texts[at : at + batch]) for at in range(0, len(texts), batch)]
    places = torch.tensor([distinct[prompt] for prompt in listed], device=model.device)
    return PromptStates(*(torch.cat(part).index_select(0, places) for part in zip(*parts, strict=True)))


def _run(encoder: TextEncoder, texts: Sequence[_Text]) -> PromptStates:
    device, totals = encoder.text_projection.device, [text.total for text in texts]
    attend = _Filled([len(text.ids) for text in texts], totals, device)
    ids = [id for text in texts for id in (*text.ids, *[FILLER_ID] * (text.total - len(text.ids)))]
    x_TD = encoder.qllama.embed(torch.tensor(ids, device=device))
    states = list(zip(encoder.qllama(x_TD, attend.pos_T, attend).split(totals), texts, strict=True))
    last_BD = torch.stack([states_TD[len(text.ids) - 1] for states_TD, text in states])
    return PromptStates(
        torch.stack([states_TD[text.handed_on] for states_TD, text in states]),
        torch.tensor([[at < len(text.ids) for at in text.handed_on] for text in texts], device=device),
        last_BD @ encoder.text_projection,
    )


def prompt_embeds(
    model: TextModel,
    adapter: Adapter,
    prompts: str | Sequence[str],
    negative: str | Sequence[str] | None = "",
    *,
    truncate: bool = False,
    zero_pooled: bool = True,
) -> Mapping[str, Tensor | None]:
    """Arguments for a pipeline of diffusers: `pipe(**prompt_embeds(model, adapter, "一只猫"))`.

    The adapter runs once, not at every step. Its form says for which pipelines, and how prompts were encoded
    when its published files were trained: LanguageAdapter for Stable Diffusion 1.5 and 2.1, TextProjection
    for PixArt (both: negative prompts without the prefix), LanguageAdapterXL for SDXL (an empty negative
    prompt is all zeros). See `install` for what two of them change in the pipeline.

    Args:
        model: its text states are as wide as the adapter was made for.
        adapter: see `diffusion_adapters.load_adapter`.
        prompts: one or several texts.
        negative: one for all, or one for each; None for pipelines that run without guidance.
        truncate: cut long prompts; they are refused otherwise.
        zero_pooled: of SDXL: hand on zeros as pooled text, as with the published adapters.

    Raises:
        PromptError: a prompt that is too long.
        InputError: numbers of prompts, or widths of model and adapter, that differ.
    """
    if adapter.in_width != (width := len(model.encoder.text_projection)):
        raise InputError(f"the adapter reads text states {adapter.in_width} wide, the encoder's are {width}")
    texts = as_list(prompts)
    negatives = [negative] * len(texts) if isinstance(negative, str) else negative
    if negatives is not None and len(negatives) != len(texts):
        raise InputError(f"{len(texts)} prompts and {len(negatives)} negative prompts: give one or as many")
    length = UNET_LENGTH if isinstance(adapter, LanguageAdapter) else LENGTH
    given = _arguments(adapter, encode_prompts(model, texts, length=length, truncate=truncate), zero_pooled)
    if negatives is not None:
        prefix = PREFIX if isinstance(adapter, LanguageAdapterXL) else ""
        encoded = encode_prompts(model, negatives, length=length, prefix=prefix, truncate=truncate)
        below = _arguments(adapter, encoded, zero_pooled)
        if isinstance(adapter, LanguageAdapterXL):
            for value in below.values():
                value[[not text for text in negatives]] = 0
        given |= {f"negative_{name}": value for name, value in below.items()}
    # PixArt's own negative prompt is not None, and refused beside embeddings.
    return given | ({"negative_prompt": None} if isinstance(adapter, TextProjection) else {})


def install(pipe: Any, adapter: Adapter) -> None:
    """Give a pipeline the layer that it must run itself, a copy of the adapter's.

    TextProjection becomes the caption projection of PixArt's transformer; LanguageAdapterXL, where its file
    has an `add_embedding`, brings SDXL's. Nothing is to do for others. Call it before the pipeline is
    offloaded or compiled.

    Raises:
        InputError: the pipeline has no such layer, or one of another width.
    """
    if isinstance(adapter, TextProjection):
        transformer = _swap(pipe, "transformer", "caption_projection", adapter)
        transformer.register_to_config(caption_channels=adapter.in_width)
    elif isinstance(adapter, LanguageAdapterXL) and adapter.add_embedding is not None:
        _swap(pipe, "unet", "add_embedding", adapter.add_embedding)


def _swap(pipe: Any, part: str, name: str, layer: TextProjection | AddedEmbedding) -> Any:
    """Replace `pipe.part.name`, and return the part."""
    model = getattr(pipe, part, None)
    old = getattr(model, name, None)
    if model is None or not isinstance(old, nn.Module):
        raise InputError(f"{type(pipe).__name__} has no {part}.{name}: the adapter is for another pipeline")
    width, expected = len(layer.linear_2.weight), len(old.state_dict().get("linear_2.weight", ()))
    if width != expected:
        raise InputError(f"{part}.{name} is {expected} wide, that of the adapter {width}")
    setattr(model, name, deepcopy(layer).to(device=model.device, dtype=model.dtype))
    return model


def _arguments(adapter: Adapter, encoded: PromptStates, zero_pooled: bool) -> dict[str, Tensor]:
    """What a pipeline calls its prompts, in the adapter's dtype."""
    weight = next(adapter.parameters())
    states_BLD, mask_BL, pooled_BE = encoded.states_BLD.to(weight), encoded.mask_BL, encoded.pooled_BE
    if isinstance(adapter, TextProjection):  # which the pipeline runs itself
        return {"prompt_embeds": states_BLD, "prompt_attention_mask": mask_BL.to(weight.device)}
    with torch.no_grad():
        if isinstance(adapter, LanguageAdapter):
            return {"prompt_embeds": adapter(states_BLD)}
        states, pooled = adapter(states_BLD, pooled_BE.to(weight))
    return {
        "prompt_embeds": states,
        "pooled_prompt_embeds": torch.zeros_like(pooled) if zero_pooled else pooled,
    }


class _Text(NamedTuple):
    """A prompt as ids; `handed_on`: its positions that are kept, of `total`."""

    ids: list[int]
    handed_on: list[int]
    total: int


def _text(
    tokenizer: Tokenizer, text: str, length: int, prefix: str, keep_prefix: bool, truncate: bool
) -> _Text:
    """A token that covers the end of the prefix and the beginning of the text is the text's."""
    if keep_prefix or not prefix:
        ids = TextProcessor(tokenizer, max_tokens=length).ids(text, prefix=prefix, truncate=truncate)
        return _Text(ids, list(range(length)), length)
    head = TextProcessor(tokenizer).prompt(prefix)
    first = int(tokenizer.bos_id is not None)
    most = TextProcessor(tokenizer, max_tokens=length + len(head)).ids(text, prefix=prefix, truncate=True)
    differing = (at for at, (ours, its) in enumerate(zip(head, most, strict=False)) if ours != its)
    last = next(differing, len(head))
    total = length + last - first
    ids = TextProcessor(tokenizer, max_tokens=total).ids(text, prefix=prefix, truncate=truncate)
    return _Text(ids, [*range(first), *range(last, total)], total)


class _Filled:
    """An `Attend`: of each sequence the first `counts[i]` tokens are a text, causal; those behind, up to
    `totals[i]`, see the text and nothing else."""

    looks: Looks | None = None

    def __init__(self, counts: Sequence[int], totals: Sequence[int], device: torch.device) -> None:
        ends = list(accumulate(totals))
        self.bounds = [
            (end - total, end - total + count, end)
            for count, total, end in zip(counts, totals, ends, strict=True)
        ]
        totals_B = torch.tensor(list(totals), device=device)
        self.lengths_T = totals_B.repeat_interleave(totals_B)
        self.pos_T = torch.cat([torch.arange(total, device=device) for total in totals])

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        outs = []
        for start, middle, end in self.bounds:
            k_KLD, v_KLD = (x[start:middle].transpose(0, 1) for x in (k_TKD, v_TKD))
            outs.append(causal_attention(q_THD[start:middle], k_KLD, v_KLD))
            if middle < end:
                q_1HTD = q_THD[None, middle:end].transpose(1, 2)
                group = q_THD.shape[1] // len(k_KLD)
                k_1HLD, v_1HLD = (x[None].repeat_interleave(group, dim=1) for x in (k_KLD, v_KLD))
                outs.append(scaled_dot_product_attention(q_1HTD, k_1HLD, v_1HLD)[0].transpose(0, 1))
        return torch.cat(outs)
