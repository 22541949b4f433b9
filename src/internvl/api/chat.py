"""A chat model: questions about pictures in, answers out.

    model = internvl.load("nano")
    reply = model.chat("What is this?", images=["a.jpg"])
    reply = model.chat("And what colour?", history=reply.history)

Vision tokens of a picture are computed once and reused over rounds and questions.
Shape letters: N tiles, T tokens, V vocabulary, D text width, C vision width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from internvl.api.explanation import Explanation, explain_inputs
from internvl.api.reply import Reply, Usage
from internvl.api.request import ChatOptions, Question, Request, SamplingOptions, read_request
from internvl.api.stream import Stream
from internvl.config import GROUNDING_TOKENS, IMG_CONTEXT, ChatConfig
from internvl.engine.vision_cache import VisionCache
from internvl.errors import InputError, PromptError
from internvl.generation.generate import Batch, generate
from internvl.generation.prompt import Prompt, check_room, context_limit
from internvl.generation.result import Generation
from internvl.generation.sampling import Sampling
from internvl.generation.stream import Decode
from internvl.models.attention import Packed
from internvl.models.vlm import VLM
from internvl.processing.processor import Inputs, Processor


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A request whose pictures and prompt are ready for the decoder."""

    request: Request
    inputs: Inputs
    prompt: Prompt
    prepare_seconds: float
    vision_seconds: float


class ChatModel:
    """A model, its processor, and the vision tokens it has seen.

    Answering is safe from several threads: nothing of a conversation is kept in the model.
    """

    def __init__(
        self,
        vlm: VLM,
        processor: Processor,
        *,
        source: Path | None = None,
        vision_cache_bytes: int = 256 * 2**20,
    ) -> None:
        """`source` is the directory the model came from: saving carries its tokenizer files over."""
        self.vlm = vlm.eval()
        self.processor = processor
        self.source = source
        self.vision_cache = VisionCache(self._encode, vision_cache_bytes)

    @property
    def config(self) -> ChatConfig:
        return self.vlm.config

    @property
    def device(self) -> torch.device:
        return self.vlm.llm.embed.weight.device

    def to(self, *args: Any, **kwargs: Any) -> ChatModel:
        """Move or cast the weights as `nn.Module.to`, and forget vision tokens made before.

        Whoever changes weights in another way calls `vision_cache.clear()`.
        """
        self.vlm.to(*args, **kwargs)
        self.vision_cache.clear()
        return self

    def chat(self, prompt: Question, images: Any = (), **options: Unpack[ChatOptions]) -> Reply:
        """Answer a question about any number of pictures, videos and PDF pages.

        Args:
            prompt: the question, in which `<image>` marks may say where the pictures go; or
                OpenAI-style messages.
            images: path, bytes, PIL picture, array, data URL or web address; one or a list.
            options: see `ChatOptions` and `Sampling`.

        Raises:
            InputError: a picture, prompt or option that cannot be used, or a prompt too long for
                the model's context. No tile has been cut and nothing computed then.
        """
        return self.chat_batch([{"prompt": prompt, "images": images, **options}])[0]

    def chat_batch(self, requests: Sequence[Question | Mapping[str, Any]]) -> list[Reply]:
        """Answer several requests together; each answer is the one it would get alone.

        A request is a question, a list of messages, or a mapping with the arguments of `chat`.
        """
        if isinstance(requests, str | Mapping):
            raise InputError("chat_batch takes a list of requests: wrap a single one in [...]")
        prepared = [self._prepare(_arguments(request)) for request in requests]
        start = time.perf_counter()
        generations = generate(self.vlm.llm, [one.prompt for one in prepared], decode=self.decoder())
        seconds = time.perf_counter() - start
        return [self._reply(one, made, seconds) for one, made in zip(prepared, generations, strict=True)]

    def stream(self, prompt: Question, images: Any = (), **options: Unpack[ChatOptions]) -> Stream:
        """As `chat`, but an iterator of pieces of text; its `reply` is there when it has ended."""
        prepared = self._prepare({"prompt": prompt, "images": images, **options})
        decode = self.decoder(keep_tags=prepared.request.keep_tags)
        batch = Batch(self.vlm.llm, [prepared.prompt], decode=decode)
        return Stream(batch, partial(self._reply, prepared))

    def explain(self, prompt: Question, images: Any = (), **options: Unpack[ChatOptions]) -> Explanation:
        """What `chat` would run: grids, tiles, prompt, ids, memory. Pictures are read, nothing runs. Raises
        as `chat`."""
        request = read_request(prompt, images, options, self.processor.limits)
        sampling, inputs = self._inputs(request)
        tokens = [self.processor.tokenizer.token(id) or "" for id in inputs.ids]
        value_bytes = self.vlm.llm.embed.weight.element_size()
        return explain_inputs(self.config, inputs, tokens, sampling.max_new_tokens, value_bytes)

    def generate(
        self, ids: Sequence[int] | Tensor, tiles: Tensor | None = None, **options: Unpack[SamplingOptions]
    ) -> list[int]:
        """New ids after prompt `ids`.

        With `tiles` (N, 3, S, S), each `<IMG_CONTEXT>` of the prompt is a slot for one vision token.
        Stops at the template's end mark, which is the last id then; other `stop_ids` replace it.
        Raises InputError for `ids` that are not one row of whole numbers.
        """
        sampling = self._sampling(options)
        ids = _as_row(ids)
        check_room(len(ids), sampling.max_new_tokens, self.config.text)
        with torch.inference_mode():
            x_TD = self._embed(ids, tiles)
        (made,) = generate(self.vlm.llm, [Prompt(x_TD, sampling, self.seen_ids)])
        return list(made.ids)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int] | Tensor, tiles: Tensor | None = None) -> Tensor:
        """Scores of the next token at every position (T, V). Raises InputError as `generate`."""
        x_TD = self._embed(_as_row(ids), tiles)
        pos_T = torch.arange(len(x_TD), device=self.device)
        llm = self.vlm.llm
        return llm.logits(llm(x_TD, pos_T, Packed([len(x_TD)], self.device)))

    @torch.inference_mode()
    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """Vision tokens (N, tokens, D) of normalised tiles (N, 3, S, S)."""
        return self._encode(tiles)

    @torch.inference_mode()
    def vision_states(self, tiles: Tensor) -> list[Tensor]:
        """All hidden states of the vision tower, L+1 of (N, 1+P, C)."""
        return self.vlm.vit.hidden_states(tiles.to(self.device))

    def _prepare(self, arguments: dict[str, Any]) -> Prepared:
        question, images = arguments.pop("prompt"), arguments.pop("images", ())
        start = time.perf_counter()
        request = read_request(question, images, arguments, self.processor.limits)
        sampling, inputs = self._inputs(request)
        middle = time.perf_counter()
        with torch.inference_mode():
            x_TD = self._fill_slots(inputs.ids, inputs.slots, self._vision_tokens(inputs))
        prompt = Prompt(x_TD, sampling, self.seen_ids)
        return Prepared(request, inputs, prompt, middle - start, time.perf_counter() - middle)

    def _inputs(self, request: Request) -> tuple[Sampling, Inputs]:
        """Of a request for which the context has room, with its whole answer."""
        sampling = self._sampling(request.sampling)
        check_room(1, sampling.max_new_tokens, self.config.text)
        inputs = self.processor(
            request.conversation,
            total_tiles=request.total_tiles,
            max_tokens=context_limit(self.config.text) - sampling.max_new_tokens,
        )
        return sampling, inputs

    def _reply(self, prepared: Prepared, made: Generation, seconds: float) -> Reply:
        inputs = prepared.inputs
        text, marked = (
            self.processor.text(made.ids, keep=keep, stop=prepared.prompt.sampling.stop)
            for keep in ((), GROUNDING_TOKENS)
        )
        return Reply(
            text=text,
            marked_text=marked,
            picture_sizes=inputs.sizes,
            history=prepared.request.conversation.with_answer(text),
            finish_reason=made.finish_reason,
            ids=made.ids,
            logprobs=made.logprobs,
            score=made.score,
            usage=Usage(
                prompt_tokens=len(inputs.ids),
                vision_tokens=len(inputs.slots),
                tiles=sum(inputs.tile_counts),
                new_tokens=len(made.ids),
                prepare_seconds=prepared.prepare_seconds,
                vision_seconds=prepared.vision_seconds,
                generate_seconds=seconds,
            ),
        )

    def sampling(self, **options: Unpack[SamplingOptions]) -> Sampling:
        """Settings of an answer, which ends at the template's end mark unless told otherwise."""
        return self._sampling(options)

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        return Sampling(**{"stop_ids": self.processor.stop_ids, **options})

    @property
    def seen_ids(self) -> tuple[int, ...]:
        """Ids that the repetition penalty counts as seen before the first new one.

        Released models start from one bos token, which is never fed.
        """
        bos_id = self.config.text.bos_id
        return () if bos_id is None else (bos_id,)

    def decoder(self, *, keep_tags: bool = False) -> Decode:
        """For text that grows: without the clean-up of spaces that some tokenizers do at the end."""
        keep = GROUNDING_TOKENS if keep_tags else ()
        return partial(self.processor.tokenizer.decode, keep=keep, cleans_up=False)

    def _encode(self, tiles: Tensor) -> Tensor:
        return self.vlm.encode_tiles(tiles.to(self.device))

    def _vision_tokens(self, inputs: Inputs) -> Tensor | None:
        if inputs.tiles_N3HW is None:
            return None
        tiles = torch.split(inputs.tiles_N3HW, list(inputs.tile_counts))
        keys = [key.encode() for key in inputs.image_keys]
        return torch.cat(self.vision_cache.vision_tokens(keys, tiles))

    def _embed(self, ids: Sequence[int], tiles: Tensor | None) -> Tensor:
        """Raw ids and tiles to decoder input; every `<IMG_CONTEXT>` is a slot."""
        self._check_ids(ids)
        context_id = self.processor.tokenizer.token_id(IMG_CONTEXT)
        slots = [position for position, id in enumerate(ids) if id == context_id]
        vision_SD = None if tiles is None else self._encode(tiles).flatten(0, 1)
        return self._fill_slots(ids, slots if tiles is not None else [], vision_SD)

    def _fill_slots(self, ids: Sequence[int], slots: Sequence[int], vision_SD: Tensor | None) -> Tensor:
        ids_T, slots_S = (
            torch.tensor(list(values), dtype=torch.long, device=self.device) for values in (ids, slots)
        )
        if vision_SD is None:
            return self.vlm.llm.embed(ids_T)  # type: ignore[no-any-return]
        return self.vlm.embed(ids_T, slots_S, vision_SD)

    def _check_ids(self, ids: Sequence[int]) -> None:
        rows = self.config.text.vocab_size
        if not ids:
            raise PromptError("the prompt has no ids")
        if not 0 <= min(ids) <= max(ids) < rows:
            raise PromptError(f"ids go from {min(ids)} to {max(ids)}, the vocabulary from 0 to {rows - 1}")


def _as_row(ids: Sequence[int] | Tensor) -> list[int]:
    """The ids of one prompt, (T,) or (1, T)."""
    try:
        found = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise InputError(f"ids must be one row of whole numbers: {reason}") from reason
    shape = tuple(found.shape)
    if shape[:-1].count(1) != len(shape[:-1]):
        raise InputError(f"ids of shape {shape} are several prompts: call once for each row")
    if found.numel() and (found.dtype == torch.bool or found.is_floating_point() or found.is_complex()):
        raise InputError(f"ids of shape {shape} must be whole numbers, not {found.dtype}")
    return found.flatten().tolist()


def _arguments(request: Question | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(request, Mapping):
        if "prompt" not in request:
            raise InputError(f"a request needs a prompt; it has {', '.join(map(str, request)) or 'nothing'}")
        return dict(request)
    return {"prompt": request}
