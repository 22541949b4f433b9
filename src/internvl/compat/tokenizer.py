"""The calls of published scripts on a tokenizer: `tokenizer(text, return_tensors="pt")`, `.decode(ids)`.

Ids come from `processing.tokenizer`, which behaves as the published slow tokenizers. Knows no templates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from internvl.compat.named import Named
from internvl.errors import InputError
from internvl.processing import tokenizer as inner
from internvl.processing.tokenizer_settings import CONFIG

Ids: TypeAlias = int | Sequence[int] | Tensor
Padding: TypeAlias = bool | Literal["longest", "max_length", "do_not_pad"]


class Tokenizer:
    """`padding_side`, `pad_token_id` and `model_max_length` may be set, as published scripts do."""

    def __init__(
        self,
        tokenizer: inner.Tokenizer,
        *,
        name_or_path: str = "",
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        padding_side: str | None = None,
        model_max_length: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.name_or_path = name_or_path
        self.add_bos_token = tokenizer.adds_bos if add_bos_token is None else add_bos_token
        self.add_eos_token = tokenizer.adds_eos if add_eos_token is None else add_eos_token
        self.padding_side = padding_side or _configured_side(tokenizer.files)
        self.model_max_length = model_max_length
        self.pad_token_id = tokenizer.pad_id

    @property
    def bos_token_id(self) -> int | None:
        return self._tokenizer.bos_id

    @property
    def eos_token_id(self) -> int | None:
        return self._tokenizer.eos_id

    @property
    def unk_token_id(self) -> int | None:
        return self._tokenizer.unk_id

    @property
    def bos_token(self) -> str | None:
        return self._token(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        return self._token(self.eos_token_id)

    @property
    def unk_token(self) -> str | None:
        return self._token(self.unk_token_id)

    @property
    def pad_token(self) -> str | None:
        return self._token(self.pad_token_id)

    @property
    def all_special_ids(self) -> list[int]:
        return sorted(self._tokenizer.special_ids)

    def __len__(self) -> int:
        return self._tokenizer.size

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        return_tensors: str | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        padding: Padding = False,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
    ) -> Named:
        """`input_ids` and `attention_mask`: of one text lists of numbers, of several lists of these.

        With `return_tensors="pt"` LongTensors (B, T) in both cases. Cutting keeps the first and last special
        token. Raises InputError where lengths differ and nothing pads, or padding has no id or length.
        """
        texts = [text] if isinstance(text, str) else list(text)
        limit = (max_length or self.model_max_length) if truncation else None
        rows = [self._encode(one, limit, add_special_tokens) for one in texts]
        width = _width(rows, padding, max_length or self.model_max_length)
        padded = [self._pad(row, width) for row in rows]
        masks = [self._fill(row, [1] * len(row), 0, width) for row in rows]
        found: dict[str, Any] = {"input_ids": padded, "attention_mask": masks}
        if not return_attention_mask:
            del found["attention_mask"]
        if return_tensors is None:
            return Named(
                {name: value[0] for name, value in found.items()} if isinstance(text, str) else found
            )
        if return_tensors != "pt":
            raise InputError(f"return_tensors must be 'pt' or None, not {return_tensors!r}")
        if len({len(row) for row in padded}) > 1:
            raise InputError(f"texts of {sorted({*map(len, padded)})} tokens make no tensor: padding=True")
        return Named({name: torch.tensor(value, dtype=torch.long) for name, value in found.items()})

    def encode(
        self, text: str, *, add_special_tokens: bool = True, return_tensors: str | None = None
    ) -> list[int] | Tensor:
        """Ids of one text; with `return_tensors="pt"` a LongTensor (1, T)."""
        found = self(text, add_special_tokens=add_special_tokens, return_tensors=return_tensors)
        return found.input_ids  # type: ignore[no-any-return]

    def tokenize(self, text: str) -> list[str]:
        """The tokens as the vocabulary writes them, without first and last special token."""
        return [self._token(id) or "" for id in self._encode(text, None, False)]

    def decode(
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Text of ids. Spaces are cleaned up as the checkpoint says, whatever is asked for."""
        return self._tokenizer.decode(_listed(token_ids), skip_special=skip_special_tokens)

    def batch_decode(
        self,
        sequences: Iterable[Ids],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or of each; that of the unknown token (which may be None) for others."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self._tokenizer.token_id(tokens)
        return self.unk_token_id if id is None else id

    def convert_ids_to_tokens(self, ids: Ids) -> Any:
        """The token of an id, or of each; None for rows without one."""
        return self._token(ids) if isinstance(ids, int) else [self._token(id) for id in _listed(ids)]

    def save_pretrained(self, save_directory: str | Path) -> None:
        """The files it was read from."""
        self._tokenizer.save(save_directory)

    def _token(self, id: int | None) -> str | None:
        return None if id is None else self._tokenizer.token(id)

    def _encode(self, text: str, limit: int | None, has_edges: bool) -> list[int]:
        first = self._edge("bos", self.bos_token_id) if has_edges and self.add_bos_token else []
        last = self._edge("eos", self.eos_token_id) if has_edges and self.add_eos_token else []
        ids = self._tokenizer.encode(text, bos=False, eos=False).ids
        if limit is not None:
            ids = ids[: max(0, limit - len(first) - len(last))]
        return [*first, *ids, *last]

    def _edge(self, name: str, id: int | None) -> list[int]:
        if id is None:
            raise InputError(f"this tokenizer has no {name} token: leave add_{name}_token out")
        return [id]

    def _pad(self, row: list[int], width: int) -> list[int]:
        if len(row) >= width:
            return row
        if self.pad_token_id is None:
            raise InputError("this tokenizer has no padding token: set tokenizer.pad_token_id")
        return self._fill(row, row, self.pad_token_id, width)

    def _fill(self, row: list[int], values: list[int], filler: int, width: int) -> list[int]:
        missing = [filler] * max(0, width - len(row))
        return [*missing, *values] if self.padding_side == "left" else [*values, *missing]


def _configured_side(files: Mapping[str, bytes]) -> str:
    """Right, as transformers has it, unless tokenizer_config.json says left."""
    config = json.loads(files.get(CONFIG, b"{}"))
    return "left" if config.get("padding_side") == "left" else "right"


def _width(rows: Sequence[Sequence[int]], padding: Padding, max_length: int | None) -> int:
    """To how many tokens every row is padded."""
    if padding is False or padding == "do_not_pad":
        return 0
    if padding is True or padding == "longest":
        return max(map(len, rows), default=0)
    if padding != "max_length" or max_length is None:
        raise InputError(f"padding must be True, 'longest' or 'max_length' with max_length, not {padding!r}")
    return max_length


def _listed(ids: Ids) -> list[int]:
    values = ids.tolist() if isinstance(ids, Tensor) else ids
    return [values] if isinstance(values, int) else [int(id) for id in values]
