"""What is to be continued, and whether the model has room for it.

Knows embeddings and settings; no text, no pictures. Shape letters: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from internvl.config import TextConfig
from internvl.errors import ContextOverflowError, InputError
from internvl.generation.sampling import Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Decoder input x_TD, how to continue it, and the ids that its repetition penalty counts as seen.

    `seen_ids` come on top of the generated ids: none, the prompt's own (transformers with ids as input), or
    the one start id with which the released chat models' generation from embeddings begins. The first
    `num_queries` tokens are query tokens that all see each other and look at the picture `features_PC`
    (`models.qllama`).
    """

    x_TD: Tensor
    sampling: Sampling
    seen_ids: Sequence[int] = ()
    num_queries: int = 0
    features_PC: Tensor | None = None


DYNAMIC_REACH = 16
"""Dynamic rope scaling follows any length. So many times the trained one is taken for a mistake."""


def context_limit(config: TextConfig) -> int:
    """Positions the model can use: the trained ones, or what rope scaling stretches them to."""
    if config.rope.scaling == "dynamic":
        return config.max_positions * DYNAMIC_REACH
    stretch = config.rope.factor if config.rope.scaling == "linear" else 1.0
    return int(config.max_positions * stretch)


def check_prompt(prompt: Prompt, config: TextConfig) -> None:
    """Raises, before anything is computed, for what this model cannot continue.

    ContextOverflowError if the prompt and the whole answer do not fit: an answer that the context would cut
    short is refused, not shortened. InputError for an empty or misshapen prompt, or ids out of vocabulary.
    """
    x_TD = prompt.x_TD
    if x_TD.dim() != 2 or x_TD.shape[1] != config.width:
        raise InputError(f"a prompt must be embeddings (T, {config.width}), got {tuple(x_TD.shape)}")
    if not len(x_TD):
        raise InputError("a prompt must have at least one token")
    if prompt.num_queries > len(x_TD) or (prompt.num_queries > 0) != (prompt.features_PC is not None):
        raise InputError(
            f"{prompt.num_queries} query tokens in a prompt of {len(x_TD)}: they are part of it and need the "
            "features of a picture, and nothing else does"
        )
    check_room(len(x_TD), prompt.sampling.max_new_tokens, config)
    check_ids(prompt.sampling, prompt.seen_ids, config)


def check_ids(sampling: Sampling, seen_ids: Sequence[int], config: TextConfig) -> None:
    """Raises InputError if the settings name ids that the model does not have."""
    named = {"stop_ids": sampling.stop_ids, "logit_bias": sampling.logit_bias, "seen_ids": seen_ids}
    for name, ids in named.items():
        wrong = [index for index in ids if not 0 <= index < config.vocab_size]
        if wrong:
            raise InputError(
                f"{name} has id {wrong[0]}, but the model's vocabulary has {config.vocab_size} entries"
            )


def check_room(length: int, max_new_tokens: int, config: TextConfig) -> None:
    """Raises ContextOverflowError if a prompt of `length` tokens and the whole answer do not fit."""
    limit = context_limit(config)
    needed = length + max_new_tokens
    if needed > limit:
        room = limit - length
        remedy = f"lower max_new_tokens to {room} or shorten the prompt" if room > 0 else "shorten the prompt"
        raise ContextOverflowError(
            f"prompt of {length} tokens + max_new_tokens {max_new_tokens} = {needed}, but the model has "
            f"{limit} positions: {remedy} (fewer tiles per picture: max_tiles)"
        )
