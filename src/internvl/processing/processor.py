"""A conversation to everything the model reads: ids, slots, tiles, and which tokens are answers.

Rendered once and tokenised once; inference, training and evaluation all come through here. Knows no
model beyond its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from internvl.config import IMG_CONTEXT, IMG_END, IMG_START, ChatConfig, TilingConfig
from internvl.errors import ContextOverflowError, ImageError, PromptError, TokenizerError
from internvl.processing.added_tokens import Span, merge, overlaps
from internvl.processing.colour import ImagePolicy
from internvl.processing.conversation import Conversation, Picture, Role
from internvl.processing.image import ImageLimits, load_image
from internvl.processing.templates import Rendered, find_template, render
from internvl.processing.tiles import Tiles, prepare
from internvl.processing.tiling import Grid, count_tiles, resolve, split_budget
from internvl.processing.tokenizer import Encoding, Tokenizer

IGNORED = -100
"""The label of a token that is not trained on."""

MAX_PICTURES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One conversation as ids, without its pictures; fields as in `Inputs`."""

    text: str
    ids: list[int]
    offsets: list[Span]
    are_answers: list[bool]
    slots: list[int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """One conversation, ready for the model. Lists are per token or, where plural by name, per picture.

    `are_answers` marks the tokens the assistant wrote, end mark included. `slots` are the positions in
    `ids` that vision tokens fill, in order. `tiles_N3HW` holds the tiles of all pictures in order, None
    without any; `sizes` are (width, height) of the originals.
    """

    text: str
    ids: list[int]
    offsets: list[Span]
    are_answers: list[bool]
    slots: list[int]
    tiles_N3HW: Tensor | None
    tile_counts: tuple[int, ...]
    grids: tuple[Grid, ...]
    sizes: tuple[tuple[int, int], ...]
    image_keys: tuple[str, ...]

    def labels(self) -> list[int]:
        """The ids of answer tokens, `IGNORED` elsewhere; not shifted."""
        return [
            id if is_answer else IGNORED for id, is_answer in zip(self.ids, self.are_answers, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A picture that was read and is not cut yet, with its own tiling; or tiles made already."""

    source: Image.Image | Tiles
    tiling: TilingConfig

    @property
    def num_tiles(self) -> int:
        if isinstance(self.source, Tiles):
            return self.source.num_tiles
        return count_tiles(*self.source.size, self.tiling)

    def cut(self) -> Tiles:
        return self.source if isinstance(self.source, Tiles) else prepare(self.source, self.tiling)


class Processor:
    """Templates, tokenizer and tiling of one chat model."""

    def __init__(
        self,
        config: ChatConfig,
        tokenizer: Tokenizer,
        *,
        limits: ImageLimits | None = None,
        policy: ImagePolicy | None = None,
        max_pictures: int = MAX_PICTURES,
    ) -> None:
        """Raises `TokenizerError` when the vocabulary lacks image tokens or the model lacks their rows."""
        self.config = config
        self.template = find_template(config.template).with_system(config.system_message)
        self.limits = limits or ImageLimits()
        self.policy = policy or ImagePolicy()
        self.max_pictures = max_pictures
        # LLaVA-style models put vision tokens in the text as they are and have no tokens for them.
        self._is_bare = config.projector.shuffle is None
        if self._is_bare and tokenizer.token_id(IMG_CONTEXT) is None:
            tokenizer = tokenizer.with_token(IMG_CONTEXT, tokenizer.unk_id or 0)
        self.tokenizer = tokenizer
        self._context_id = self._require_tokens()

    def _require_tokens(self) -> int:
        needed = (IMG_CONTEXT,) if self._is_bare else (IMG_CONTEXT, IMG_START, IMG_END)
        ids = {token: self.tokenizer.token_id(token) for token in needed}
        missing = [token for token, id in ids.items() if id is None]
        if missing:
            raise TokenizerError(
                f"the vocabulary has no {', '.join(missing)}: this is the tokenizer of a language model; "
                "take the tokenizer files of the chat checkpoint"
            )
        found = [id for id in ids.values() if id is not None]
        self._check_ids(found)
        return found[0]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The id that ends an answer. Raises `TokenizerError` when neither template nor tokenizer has one."""
        stop = self.template.stop
        id = self.tokenizer.eos_id if stop is None else self.tokenizer.token_id(stop)
        if id is None:
            raise TokenizerError(
                f"the vocabulary has no {stop or 'end-of-sequence token'}, with which answers of template "
                f"{self.template.name!r} end; choose the template the model was trained with"
            )
        return (id,)

    def __call__(
        self,
        conversation: Conversation,
        *,
        open_answer: bool = True,
        total_tiles: int | None = None,
        max_tokens: int | None = None,
    ) -> Inputs:
        """Read the pictures, render, tokenise, and cut the pictures into tiles.

        `open_answer` ends with the opening of the assistant's turn. `total_tiles` is shared out over the
        pictures, each at least one; None gives each the model's own maximum. A prompt of more than
        `max_tokens` tokens raises `ContextOverflowError` before any tile is cut. Raises `PromptError` for a
        conversation that cannot be answered, `ImageError` for pictures, `TokenizerError` for ids the
        model lacks.
        """
        self._check(conversation, open_answer)
        opened = self._open(conversation.pictures, total_tiles, max_tokens)
        tile_counts = [one.num_tiles for one in opened]
        tokens = self.tokenize(conversation, tile_counts, open_answer=open_answer, max_tokens=max_tokens)
        # Each picture is let go as soon as it is cut.
        tiles = [opened.pop(0).cut() for _ in range(len(opened))]
        return Inputs(
            text=tokens.text,
            ids=tokens.ids,
            offsets=tokens.offsets,
            are_answers=tokens.are_answers,
            slots=tokens.slots,
            tiles_N3HW=torch.cat([one.tiles_N3HW for one in tiles]) if tiles else None,
            tile_counts=tuple(one.num_tiles for one in tiles),
            grids=tuple(one.grid for one in tiles),
            sizes=tuple((one.width, one.height) for one in tiles),
            image_keys=tuple(one.key for one in tiles),
        )

    def text(self, ids: Sequence[int], *, keep: Sequence[str] = (), stop: Sequence[str] = ()) -> str:
        """An answer as the released code returns it: decoded, up to the end mark should a model spell it
        out (or one of `stop`), and stripped. `keep` are special tokens that stay in the text."""
        text = self.tokenizer.decode(ids, keep=keep)
        for end in (self.template.stop, *stop):
            text = text.split(end)[0] if end else text
        return text.strip()

    def tokenize(
        self,
        conversation: Conversation,
        tile_counts: Sequence[int],
        *,
        open_answer: bool = True,
        max_tokens: int | None = None,
    ) -> Tokens:
        """The ids for pictures of so many tiles each; no picture is read. Raises as a call does."""
        self._check(conversation, open_answer)
        rendered = self.render(conversation, tile_counts, open_answer=open_answer)
        if max_tokens is not None and len(rendered.text) > max_tokens:
            # Reading far too long a text as tokens takes minutes and hundreds of times its memory.
            least = self.tokenizer.least(rendered.text)
            _check_room(f"prompt of {least} tokens or more", least, max_tokens)
        encoding = self.tokenizer.encode(rendered.text, plain=rendered.plain)
        self._check_ids(encoding.ids)
        _check_room(f"prompt of {len(encoding.ids)} tokens", len(encoding.ids), max_tokens)
        return Tokens(
            text=rendered.text,
            ids=encoding.ids,
            offsets=encoding.offsets,
            are_answers=self._answers(encoding, rendered),
            slots=self._slots(encoding, rendered, sum(tile_counts)),
        )

    def render(
        self, conversation: Conversation, tile_counts: Sequence[int], *, open_answer: bool = True
    ) -> Rendered:
        """The prompt for pictures of so many tiles each; no picture is read."""
        return render(
            self.template,
            conversation.messages,
            system=conversation.system,
            open_answer=open_answer,
            slots=[count * self.config.tokens_per_tile for count in tile_counts],
            tags=("", "") if self._is_bare else (IMG_START, IMG_END),
        )

    def _check(self, conversation: Conversation, open_answer: bool) -> None:
        if not conversation.messages:
            raise PromptError("the conversation has no message; add one of the user")
        if open_answer and conversation.messages[-1].role is not Role.USER:
            raise PromptError("the last message is the assistant's own; add one of the user to be answered")
        num_pictures = len(conversation.pictures)
        if num_pictures > self.max_pictures:
            raise PromptError(
                f"{num_pictures} pictures in one conversation, the limit is {self.max_pictures}; use fewer "
                "frames or pages, or raise max_pictures"
            )

    def _open(
        self, pictures: Sequence[Picture], total_tiles: int | None, max_tokens: int | None
    ) -> list[_Opened]:
        """All pictures, read once; no further than there is room for."""
        num_open = sum(not isinstance(picture.source, Tiles) for picture in pictures)
        budget = None if total_tiles is None else split_budget(total_tiles, max(1, num_open))
        opened: list[_Opened] = []
        num_tokens = 0
        for picture in pictures:
            opened.append(self._open_one(picture, budget))
            num_tokens += opened[-1].num_tiles * self.config.tokens_per_tile
            what = f"{len(opened)} of {len(pictures)} pictures take {num_tokens} tokens"
            _check_room(what, num_tokens, max_tokens)
        return opened

    def _open_one(self, picture: Picture, budget: int | None) -> _Opened:
        tiling = self.config.tiling
        if not isinstance(picture.source, Tiles):
            tiling = resolve(tiling, picture.choice, budget=budget)
            return _Opened(load_image(picture.source, self.limits, self.policy), tiling)
        shape, size = tuple(picture.source.tiles_N3HW.shape), tiling.tile_size
        if len(shape) != 4 or shape[0] < 1 or shape[1:] != (3, size, size):
            raise ImageError(f"tiles of shape {shape}; this model reads (N, 3, {size}, {size}) with N >= 1")
        return _Opened(picture.source, tiling)

    def _check_ids(self, ids: Sequence[int]) -> None:
        largest, rows = max(ids, default=0), self.config.text.vocab_size
        if largest >= rows:
            raise TokenizerError(
                f"token {self.tokenizer.token(largest)!r} has id {largest}, but the model's vocabulary has "
                f"only {rows} rows: tokenizer and weights are not of one checkpoint"
            )

    def _slots(self, encoding: Encoding, rendered: Rendered, num_tiles: int) -> list[int]:
        """Positions of the context tokens inside the runs of pictures."""
        runs = merge(rendered.pictures)
        pairs = enumerate(zip(encoding.ids, encoding.offsets, strict=True))
        slots = [index for index, (id, (start, _)) in pairs if id == self._context_id and _has(runs, start)]
        if len(slots) != num_tiles * self.config.tokens_per_tile:
            raise TokenizerError(
                f"{IMG_CONTEXT} was read {len(slots)} times instead of {num_tiles} tiles x "
                f"{self.config.tokens_per_tile}: the tokenizer does not treat it as one token"
            )
        return slots

    def _answers(self, encoding: Encoding, rendered: Rendered) -> list[bool]:
        """A token belongs to the answer in which its text begins; a leading bos belongs to none."""
        answers = merge(rendered.answers)
        marks = [_has(answers, start) for start, _ in encoding.offsets]
        return [False, *marks[1:]] if self.tokenizer.adds_bos else marks


def _has(merged: Sequence[Span], character: int) -> bool:
    return overlaps(merged, (character, character + 1))


def _check_room(what: str, num_tokens: int, max_tokens: int | None) -> None:
    if max_tokens is not None and num_tokens > max_tokens:
        raise ContextOverflowError(
            f"{what}, but there is room for {max(0, max_tokens)}: shorten the prompt or lower max_new_tokens "
            "(fewer tiles per picture: max_tiles)"
        )
