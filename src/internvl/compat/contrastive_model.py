"""InternVL-C and -G called as the published model: `model(image=..., text=..., mode="InternVL-G")`.

Texts come as padded ids; padding (id 0) is dropped before anything is computed. Shape letters: B pictures or
texts, S side of a picture, T tokens, E width of the common space.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from internvl.api.contrastive import CAPTION_SAMPLING, ContrastiveModel
from internvl.api.load import save
from internvl.compat.configuration import Config
from internvl.compat.continuation import padded, real_ids
from internvl.compat.generation_config import read_settings
from internvl.compat.placement import Placed
from internvl.errors import InputError, PromptError
from internvl.generation.sampling import Sampling

MODES: Mapping[str, bool] = {"InternVL-C": False, "InternVL-G": True}
"""The published names, and whether the query tokens take part."""


class InternVLModel(Placed):
    """Encoders run with gradients if the caller has them on, as the published model's do."""

    def __init__(self, contrastive: ContrastiveModel, config: Config) -> None:
        self.contrastive = contrastive
        self.config = config

    @property
    def module(self) -> nn.Module:
        return self.contrastive.encoder

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale of the logits."""
        return self.contrastive.encoder.logit_scale

    def __call__(self, image: Tensor, text: Tensor, mode: str = "InternVL-C") -> tuple[Tensor, Tensor]:
        """Logits (pictures, texts) and (texts, pictures) of pixels (B, 3, S, S) and ids (B, T)."""
        images_BE = normalize(self.encode_image(image, mode), dim=-1)
        texts_BE = normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * images_BE @ texts_BE.T
        return logits, logits.T

    forward = __call__

    def encode_image(self, image: Tensor, mode: str = "InternVL-C") -> Tensor:
        """(B, E), before the final normalisation."""
        if mode not in MODES:
            raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        features_BPC = self.contrastive.encoder.vit(self._pixels(image))
        return self.contrastive.encoder.pool_images(features_BPC, generative=MODES[mode])

    def encode_text(self, text: Tensor) -> Tensor:
        """(B, E) of ids (B, T), before the final normalisation. Ids up to 0 are padding."""
        if not isinstance(text, Tensor):
            raise PromptError("text must be a tensor of ids (texts, tokens): tokenizer(...).input_ids")
        rows = real_ids(text, text > 0, self.contrastive.config.text.vocab_size)
        return self.contrastive.encoder.embed_texts([row.tolist() for row in rows])

    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        **generate_kwargs: Any,
    ) -> Tensor:
        """New ids (B, longest) after one prompt for each picture, such as "English caption:" without eos.

        At most 32 tokens unless `max_new_tokens` says otherwise; shorter rows are padded on the right.
        """
        settings = read_settings(generation_config, **generate_kwargs)
        if settings.streamer is not None:
            raise InputError("a caption is not streamed: leave the streamer out")
        model, pixels = self.contrastive, self._pixels(pixel_values)
        rows = real_ids(input_ids, attention_mask, model.config.text.vocab_size)
        if len(rows) != len(pixels):
            raise PromptError(f"{len(pixels)} pictures need as many prompts, not {len(rows)}")
        stop_ids = model.processor.stop_ids if settings.end_ids is None else settings.end_ids
        longest = CAPTION_SAMPLING["max_new_tokens"]
        sampling = Sampling(**{"max_new_tokens": longest, **settings.sampling, "stop_ids": stop_ids})
        made = model.continue_prompts([row.tolist() for row in rows], model.encode_tiles(pixels), sampling)
        pad_id = getattr(getattr(self.config, "qllama_config", None), "pad_token_id", None)
        named = [id for id in (settings.pad_id, pad_id, *stop_ids) if id is not None]
        return padded(made, named[0] if named else 0)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write it in the official layout, tokenizer included."""
        save(self.contrastive, save_directory)

    def _pixels(self, pixel_values: Any) -> Tensor:
        if not isinstance(pixel_values, Tensor) or not pixel_values.numel():
            raise InputError("pixel values are missing: a tensor (pictures, 3, size, size)")
        return pixel_values.to(self.device)
