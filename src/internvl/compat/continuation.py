"""Prompts given as padded ids, continued: the inside of the published `generate`.

Knows ids, vision tokens and padding; no text. Shape letters: B prompts, T tokens, S vision tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from internvl.api.chat import ChatModel
from internvl.compat.generation_config import Settings
from internvl.config import IMG_CONTEXT
from internvl.errors import PromptError
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling


def continue_prompts(
    model: ChatModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    features: Tensor | None,
    settings: Settings,
    pad_id: int | None,
) -> Tensor:
    """New ids (B, longest). `features` (..., D) fill the slots of all prompts in order.

    Rows are padded with the settings' id, else `pad_id`, else the first end id, as the released models do.
    """
    rows = real_ids(input_ids, attention_mask, model.config.text.vocab_size)
    stop_ids = model.processor.stop_ids if settings.end_ids is None else settings.end_ids
    sampling = Sampling(stop_ids=stop_ids, **settings.sampling)
    prompts = [Prompt(x_TD, sampling, model.seen_ids) for x_TD in _embed(model, rows, features)]
    made = generate(model.vlm.llm, prompts, decode=model.processor.tokenizer.decode)
    named = [id for id in (settings.pad_id, pad_id, *stop_ids) if id is not None]
    return padded([one.ids for one in made], named[0] if named else 0)


def real_ids(input_ids: Tensor | None, attention_mask: Tensor | None, vocabulary: int) -> list[Tensor]:
    """The prompts without their padding. Raises PromptError for empty ones and ids outside the vocabulary."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() not in (1, 2) or not input_ids.numel():
        raise PromptError("input_ids must be a tensor of ids (prompts, tokens) with at least one id")
    ids_BT = input_ids.view(-1, input_ids.shape[-1])
    mask_BT = torch.ones_like(ids_BT) if attention_mask is None else attention_mask
    if mask_BT.numel() != ids_BT.numel():
        raise PromptError(f"attention_mask is {tuple(mask_BT.shape)}, input_ids {tuple(ids_BT.shape)}")
    mask_BT = mask_BT.view(ids_BT.shape).to(ids_BT.device)
    rows = [ids_T[mask_T.bool()] for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)]
    for row in rows:
        if not len(row) or int(row.min()) < 0 or int(row.max()) >= vocabulary:
            raise PromptError(f"a prompt is empty or has ids outside the vocabulary of {vocabulary}")
    return rows


@torch.inference_mode()
def _embed(model: ChatModel, rows: Sequence[Tensor], features: Tensor | None) -> list[Tensor]:
    """Decoder input (T, D) of each prompt, vision tokens in their slots."""
    if features is None:
        return [model.vlm.llm.embed(row.to(model.device)) for row in rows]
    context_id = model.processor.tokenizer.token_id(IMG_CONTEXT)
    vision_SD = features.to(model.device).reshape(-1, features.shape[-1])
    slots = [_positions(row, context_id, model.device) for row in rows]
    counts = [len(slots_S) for slots_S in slots]
    if sum(counts) != len(vision_SD):
        raise PromptError(
            f"the prompts have {counts} {IMG_CONTEXT} slots, but the pictures give {len(vision_SD)} vision "
            f"tokens: every tile needs {model.config.tokens_per_tile}"
        )
    parts = zip(rows, slots, vision_SD.split(counts), strict=True)
    return [model.vlm.embed(row.to(model.device), slots_S, part) for row, slots_S, part in parts]


def _positions(ids_T: Tensor, wanted: int | None, device: torch.device) -> Tensor:
    found = [position for position, id in enumerate(ids_T.tolist()) if id == wanted]
    return torch.tensor(found, dtype=torch.long, device=device)


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Rows of ids as one tensor (B, longest), filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], dtype=torch.long)
