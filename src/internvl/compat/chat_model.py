"""A chat model that is called as the published one: `model.chat(tokenizer, pixel_values, question, ...)`.

Every call becomes a request to `api.chat.ChatModel`, in which the vision tokens of a picture are kept over
rounds although the caller passes its pixels again. Shape letters: N tiles, S size, B prompts, D text width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from internvl.api.chat import ChatModel
from internvl.api.load import save
from internvl.api.vision import VisionModel
from internvl.compat.configuration import Config
from internvl.compat.continuation import continue_prompts
from internvl.compat.generation_config import Settings, read_settings
from internvl.compat.pixels import count_tiles, split_pictures, split_tiles
from internvl.compat.placement import Placed
from internvl.compat.rounds import Pair, Round, read_round, read_rounds
from internvl.compat.streamer import writing
from internvl.compat.vision_model import InternVisionModel
from internvl.config import IMG_CONTEXT, IMG_END, IMG_START
from internvl.errors import InputError, TokenizerError
from internvl.processing.conversation import IMAGE_MARK

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConversationTemplate:
    """What scripts read of `model.conv_template`. `sep` ends an answer."""

    name: str
    system_message: str
    sep: str


class InternVLChatModel(Placed):
    """`system_message` may be set; each call takes the one that is there when it begins.

    `conv_template` and `config` only tell. Answering is safe from several threads.
    """

    def __init__(self, chat_model: ChatModel, config: Config) -> None:
        self.chat_model = chat_model
        self.config = config
        self.system_message = chat_model.processor.template.system_message
        self.img_context_token_id = chat_model.processor.tokenizer.token_id(IMG_CONTEXT)
        self.num_image_token = chat_model.config.tokens_per_tile

    @property
    def module(self) -> nn.Module:
        return self.chat_model.vlm

    @property
    def template(self) -> str:
        return self.chat_model.config.template

    @property
    def conv_template(self) -> ConversationTemplate:
        template = self.chat_model.processor.template
        return ConversationTemplate(template.name, self.system_message, template.assistant.end)

    @property
    def vision_model(self) -> InternVisionModel:
        """The tower alone."""
        tower = VisionModel(
            self.chat_model.vlm.vit, normalization=self.chat_model.config.tiling.normalization
        )
        return InternVisionModel(tower, self.config.vision_config)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `Module.to`. Raises DeviceError for a device or dtype that is not available here."""
        super().to(*args, **kwargs)
        self.chat_model.vision_cache.clear()
        return self

    def chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        question: str,
        generation_config: Any = None,
        history: Sequence[Pair] | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMG_START,
        IMG_END_TOKEN: str = IMG_END,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT,
        verbose: bool = False,
    ) -> Any:
        """Answer a question about the tiles (N, 3, S, S) of all rounds; None for text only.

        Args:
            tokenizer: of this model; None takes the model's own.
            pixel_values: tiles of all pictures of the conversation, in order of their `<image>` marks.
            question: gets its `<image>` in front if it is the first and has none.
            generation_config: settings, never changed; a `streamer` in it receives the text.
            history: pairs of earlier questions and answers.
            return_history: return the answer and the new history, else the answer.
            num_patches_list: tiles of each picture; None means that all are one picture.
            verbose: log prompt and answer.

        Raises PromptError where marks and pictures disagree, and what `ChatModel.chat` raises.
        """
        with writing(generation_config):
            self._check_tokens(tokenizer, IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
            settings = read_settings(generation_config)
            asked = read_round(
                question, history, count_tiles(pixel_values), num_patches_list, self.num_image_token
            )
            request = self._request(asked, pixel_values, settings)
            answer = self._stream(request, settings) if settings.streamer else self._answer([request])[0]
        self._log(verbose, [request], [answer])
        return (answer, asked.with_answer(answer)) if return_history else answer

    def batch_chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        questions: Any = None,
        generation_config: Any = None,
        num_patches_list: Any = None,
        history: Any = None,
        return_history: bool = False,
        IMG_START_TOKEN: str = IMG_START,
        IMG_END_TOKEN: str = IMG_END,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT,
        verbose: bool = False,
        image_counts: Any = None,
    ) -> Any:
        """Answer several questions; each answer is the one the question gets alone.

        `num_patches_list` holds the tiles of each question's picture, in order; 0 for none, a list of
        numbers for several (those of its history first). `image_counts` is its name of 2024-05, when it
        also stood before the questions. `history` is a list with one history for each question.
        """
        if questions is not None and len(questions) and not isinstance(questions[0], str):
            image_counts, questions, generation_config, num_patches_list = (
                questions, generation_config, num_patches_list, None,
            )  # fmt: skip
        self._check_tokens(tokenizer, IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        settings = read_settings(generation_config)
        if settings.streamer is not None:
            raise InputError("a streamer takes one answer: use chat, or leave it out of generation_config")
        entries = image_counts if num_patches_list is None else num_patches_list
        asked = read_rounds(questions, history, count_tiles(pixel_values), entries, self.num_image_token)
        tiles = split_tiles(pixel_values, [sum(one.tile_counts) for one in asked])
        requests = [self._request(*pair, settings) for pair in zip(asked, tiles, strict=True)]
        answers = self._answer(requests)
        self._log(verbose, requests, answers)
        if not return_history:
            return answers
        return answers, [one.with_answer(answer) for one, answer in zip(asked, answers, strict=True)]

    def multi_image_chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor,
        image_counts: Sequence[int],
        question: str,
        generation_config: Any = None,
        history: Sequence[Pair] | None = None,
        return_history: bool = False,
        **options: Any,
    ) -> Any:
        """The 2024-05 call for several pictures: `<image 1> (图1):` and so on stand before the question."""
        if not history:
            numbers = range(1, len(image_counts) + 1)
            question = "".join(f"<image {k}> (图{k}):{IMAGE_MARK}" for k in numbers) + f"\n{question}"
        return self.chat(
            tokenizer,
            pixel_values,
            question,
            generation_config,
            history,
            return_history,
            image_counts,
            **options,
        )

    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        generation_config: Any = None,
        output_hidden_states: bool | None = None,
        **generate_kwargs: Any,
    ) -> Tensor:
        """New ids (B, longest) after prompts (B, T) whose `<IMG_CONTEXT>` ids are slots for the tiles.

        Ends with the template's end mark unless `eos_token_id` names others; shorter rows are padded on the
        right. `visual_features`: vision tokens (N, tokens, D) instead of the tiles'. See `read_settings`.
        """
        settings = read_settings(
            generation_config, output_hidden_states=output_hidden_states, **generate_kwargs
        )
        if settings.streamer is not None:
            raise InputError("streaming from ids: use internvl.generation.generate.stream, or chat")
        features = visual_features
        if features is None and pixel_values is not None:
            features = self.chat_model.encode_tiles(pixel_values)
        pad_id = getattr(getattr(self.config, "llm_config", None), "pad_token_id", None)
        return continue_prompts(self.chat_model, input_ids, attention_mask, features, settings, pad_id)

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        """Vision tokens (N, tokens, D) of tiles (N, 3, S, S)."""
        count_tiles(pixel_values)
        # A copy may be used in training, which what was made in inference mode may not.
        return self.chat_model.encode_tiles(pixel_values).clone()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write it in the official layout, tokenizer included."""
        save(self.chat_model, save_directory)

    def _request(self, asked: Round, pixel_values: Tensor | None, settings: Settings) -> dict[str, Any]:
        return {
            "prompt": asked.question,
            "images": split_pictures(pixel_values, asked.tile_counts),
            "history": asked.history,
            "system": self.system_message,
            **settings.sampling,
        }

    def _answer(self, requests: Sequence[Mapping[str, Any]]) -> list[str]:
        return [reply.text for reply in self.chat_model.chat_batch(requests)]

    def _stream(self, request: Mapping[str, Any], settings: Settings) -> str:
        keeps_tags = not getattr(settings.streamer, "skip_special_tokens", True)
        stream = self.chat_model.stream(**request, keep_tags=keeps_tags)
        for piece in stream:
            settings.streamer.on_finalized_text(piece)
        return stream.reply.text

    def _check_tokens(self, tokenizer: Any, *image_tokens: str) -> None:
        if image_tokens != (IMG_START, IMG_END, IMG_CONTEXT):
            raise InputError(f"the image tokens are fixed by the checkpoint, not {', '.join(image_tokens)}")
        if tokenizer is None:
            return
        id, own = tokenizer.convert_tokens_to_ids(IMG_CONTEXT), self.img_context_token_id
        if id != own:
            raise TokenizerError(
                f"{IMG_CONTEXT} is {id} for this tokenizer and {own} for the model: load both from one place"
            )

    def _log(self, verbose: bool, requests: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> None:
        if verbose:
            for request, answer in zip(requests, answers, strict=True):
                _log.info("%s\n%s", request["prompt"], answer)
