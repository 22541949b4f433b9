"""InternVL-C and -G: pictures and texts in one space, whether they belong together, and captions.

    model = internvl.load("InternVL-14B-224px")
    model.embed_images(["a.jpg", "b.jpg"], mode="G")        # (2, 768)
    model.embed_texts(["a red panda", "一张熊猫的照片"])      # (2, 768)
    model.logits(["a.jpg"], ["a red panda", "a car"]).softmax(dim=-1)
    model.caption("a.jpg")

Shape letters: B pictures or texts, E width of the common space, P patches and class token, C vision width,
S side of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, Unpack, overload

import torch
from torch import Tensor
from torch.nn.functional import normalize as to_unit

from internvl.api.request import SamplingOptions, as_list
from internvl.config import ContrastiveConfig
from internvl.errors import ImageError, InputError
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.dual_encoder import DualEncoder, TextEncoder
from internvl.processing.colour import ImagePolicy
from internvl.processing.crop import Fit, fit_square
from internvl.processing.image import ImageLimits, ImageSource, load_image
from internvl.processing.texts import CAPTION_PROMPT, PREFIX, TextProcessor
from internvl.processing.tiles import normalize as to_tiles

Mode = Literal["C", "G"]
Images: TypeAlias = ImageSource | Sequence[ImageSource] | Tensor
"""Pictures, or a tensor (B, 3, S, S) of prepared ones."""

CAPTION_SAMPLING: Mapping[str, Any] = {"num_beams": 5, "min_new_tokens": 8, "max_new_tokens": 32}
"""Beams and least length as published for captions."""


class CaptionOptions(SamplingOptions, total=False):
    """What `caption` takes besides pictures and the fields of `Sampling`.

    "Chinese caption:" and the like as `prompt` ask for another language. `batch` pictures run together;
    `limits` say what is read at all.
    """

    prompt: str
    fit: Fit
    batch: int
    limits: ImageLimits | None


class TextModel:
    """A text encoder with its tokenizer."""

    def __init__(self, encoder: TextEncoder, processor: TextProcessor, *, source: Path | None = None) -> None:
        """`source` is the directory it came from: saving carries its tokenizer files over."""
        self.encoder = encoder.eval()
        self.processor = processor
        self.source = source

    @property
    def device(self) -> torch.device:
        return self.encoder.text_projection.device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the weights as `nn.Module.to`."""
        self.encoder.to(*args, **kwargs)
        return self

    @torch.inference_mode()
    def embed_texts(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool = False,
        prefix: str = PREFIX,
        truncate: bool = False,
        batch: int = 32,
    ) -> Tensor:
        """Vectors (B, E) of one or several texts, before the final normalisation unless `normalize`.

        Raises PromptError for a text of more than 80 tokens, which `truncate` cuts instead.
        """
        found_BE = self.embed_ids(self._ids(texts, prefix=prefix, truncate=truncate), batch=batch)
        return to_unit(found_BE, dim=-1) if normalize else found_BE

    @torch.inference_mode()
    def embed_ids(self, ids: Sequence[Sequence[int]], *, batch: int = 32) -> Tensor:
        """The same, not normalised, of texts that are ids already, at least one: those of `processor.ids`."""
        return torch.cat([self.encoder.embed_texts(part) for part in _batches(ids, batch)])

    def _ids(self, texts: str | Sequence[str], *, prefix: str, truncate: bool) -> list[list[int]]:
        found = [self.processor.ids(text, prefix=prefix, truncate=truncate) for text in as_list(texts)]
        if not found:
            raise InputError("there are no texts: hand over at least one")
        return found


class ContrastiveModel(TextModel):
    """Both encoders with their preprocessing. Mode "C" pools the vision tower's output; mode "G" adds what
    the query tokens make of it, and is better at retrieval.

    Pictures are anything `internvl` reads, one or a list. With `fit` "squash" the whole picture is seen,
    its shape changed (how retrieval is measured); "crop" sees the centre square (how classification is, and
    the published quick start).
    """

    encoder: DualEncoder

    def __init__(
        self,
        model: DualEncoder,
        processor: TextProcessor,
        *,
        source: Path | None = None,
        limits: ImageLimits | None = None,
        policy: ImagePolicy | None = None,
    ) -> None:
        """`limits` hold for pictures whose call names none."""
        super().__init__(model, processor, source=source)
        self.limits, self.policy = limits, policy

    @property
    def config(self) -> ContrastiveConfig:
        return self.encoder.config

    @torch.inference_mode()
    def embed_images(
        self,
        images: Images,
        mode: Mode = "C",
        *,
        fit: Fit = "squash",
        normalize: bool = False,
        batch: int = 8,
        limits: ImageLimits | None = None,
    ) -> Tensor:
        """Vectors (B, E) of one or several pictures, before the final normalisation unless `normalize`.

        Raises ImageError for a picture that cannot be read, ConfigError for mode G of InternVL-C alone.
        """
        is_generative = self._is_generative(mode)
        found = [
            self.encoder.pool_images(features_BPC, generative=is_generative)
            for features_BPC in self._features(images, fit, batch, limits)
        ]
        return to_unit(torch.cat(found), dim=-1) if normalize else torch.cat(found)

    def logits(
        self,
        images: Images,
        texts: str | Sequence[str],
        mode: Mode = "C",
        *,
        fit: Fit = "squash",
        prefix: str = PREFIX,
        truncate: bool = False,
    ) -> Tensor:
        """(pictures, texts): cosines times the learned scale; softmax over texts gives probabilities."""
        images_BE = self.embed_images(images, mode, fit=fit).float()
        texts_BE = self.embed_texts(texts, prefix=prefix, truncate=truncate).float()
        scale = self.encoder.logit_scale.detach().float().exp()
        return scale * to_unit(images_BE, dim=-1) @ to_unit(texts_BE, dim=-1).T

    @torch.inference_mode()
    def match(
        self,
        images: Images,
        texts: str | Sequence[str],
        *,
        fit: Fit = "squash",
        truncate: bool = False,
        batch: int = 8,
    ) -> Tensor:
        """(B,): how probable it is that picture i and text i belong together.

        Looks at both at once: slower than `logits`, and made for the best few of many. Raises InputError
        unless there is one text for each picture, ConfigError for InternVL-C alone.
        """
        ids = self._ids(texts, prefix="", truncate=truncate)
        num = len(images) if isinstance(images, Tensor) else len(as_list(images))
        if num != len(ids):
            raise InputError(f"{num} pictures and {len(ids)} texts make no pairs: give one text for each")
        pairs = zip(self._features(images, fit, batch), _batches(ids, batch), strict=True)
        scores_B2 = torch.cat([self.encoder.match(*pair) for pair in pairs])
        return scores_B2.float().softmax(dim=-1)[:, 1]

    @overload
    def caption(
        self, images: list[Any] | tuple[Any, ...] | Tensor, **options: Unpack[CaptionOptions]
    ) -> list[str]: ...

    @overload
    def caption(self, images: ImageSource, **options: Unpack[CaptionOptions]) -> str: ...

    def caption(self, images: Any, **options: Unpack[CaptionOptions]) -> str | list[str]:
        """A caption: a string for one picture, a list of strings for a list or tensor of them.

        Without `options` five beams, at least 8 and at most 32 tokens. Raises ConfigError for InternVL-C
        alone, InputError for settings that contradict each other.
        """
        texts = [self.processor.text(ids) for ids in self._caption_ids(images, options)]
        return texts if isinstance(images, list | tuple | Tensor) else texts[0]

    @torch.inference_mode()
    def encode_tiles(self, tiles_B3HW: Tensor) -> Tensor:
        """The tower's last states (B, P, C) of prepared pictures (B, 3, S, S), class token first."""
        return self.encoder.vit(tiles_B3HW.to(self.device))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def continue_prompts(
        self, ids: Sequence[Sequence[int]], features_BPC: Tensor, sampling: Sampling
    ) -> list[tuple[int, ...]]:
        """New ids after each prompt, which stands behind the query tokens that look at its picture."""
        qllama, bos_id = self.encoder.generator, self.config.text.bos_id
        words = [qllama.embed(torch.tensor(row, dtype=torch.long, device=self.device)) for row in ids]
        prompts = [
            Prompt(
                torch.cat((qllama.queries[0], words_TD)),
                sampling,
                seen_ids=() if bos_id is None else (bos_id,),
                num_queries=self.config.num_queries,
                features_PC=features_PC,
            )
            for words_TD, features_PC in zip(words, features_BPC, strict=True)
        ]
        return [made.ids for made in generate(qllama, prompts, decode=self.processor.tokenizer.decode)]

    def prepare(self, images: Images, *, fit: Fit = "squash", limits: ImageLimits | None = None) -> Tensor:
        """Pictures to (B, 3, S, S), normalised, of the model's size; a tensor stays as it is."""
        if isinstance(images, Tensor):
            return images
        size = self.config.image_size
        limits = limits or self.limits
        squares = [
            fit_square(load_image(source, limits, self.policy), size, fit) for source in as_list(images)
        ]
        return to_tiles(squares, self.config.normalization)

    def _caption_ids(self, images: Images, options: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
        settings = {"stop_ids": self.processor.stop_ids, **CAPTION_SAMPLING, **options}
        reading = {name: settings.pop(name) for name in ("fit", "batch", "limits") if name in settings}
        prompt = self.processor.prompt(settings.pop("prompt", CAPTION_PROMPT))
        sampling = Sampling(**settings)
        for features_BPC in self._features(images, **reading):
            yield from self.continue_prompts([prompt] * len(features_BPC), features_BPC, sampling)

    def _features(
        self, images: Images, fit: Fit = "squash", batch: int = 8, limits: ImageLimits | None = None
    ) -> Iterator[Tensor]:
        """The tower's last states (B, P, C), `batch` pictures at a time; nothing is read before its turn."""
        sources = images if isinstance(images, Tensor) else as_list(images)
        if not len(sources):
            raise ImageError("there are no pictures: hand over at least one")
        for part in _batches(sources, batch):
            yield self.encode_tiles(self.prepare(part, fit=fit, limits=limits))

    def _is_generative(self, mode: Mode) -> bool:
        if mode not in ("C", "G"):
            raise InputError(f"mode must be 'C' or 'G', not {mode!r}")
        return mode == "G" and self.encoder.generator is not None


def _batches(items: Any, size: int) -> Iterator[Any]:
    if size < 1:
        raise InputError(f"batch must be at least 1, not {size}")
    for start in range(0, len(items), size):
        yield items[start : start + size]
