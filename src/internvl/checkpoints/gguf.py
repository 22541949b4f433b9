"""GGUF files of the `llama` architecture: dequantised weights, text config, vocabulary.

GGUF is the file format of llama.cpp. Weights come out under the names of the transformers Llama layout
(`model.layers.0.self_attn.q_proj.weight`), in float32, query and key rows back in rotate-half order, so
that the usual layout rules apply. Reads nothing but the format; which model it is does not matter here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from internvl.checkpoints.gguf_tokenizer import PRE_TOKENIZERS, VocabularyFile
from internvl.config import RopeConfig, TextConfig
from internvl.errors import ConfigError, TokenizerError, WeightsError

if TYPE_CHECKING:
    import gguf

T = TypeVar("T")
CONTROL = 3
"""Token type of special tokens."""

_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_UNUSED = ("rope_freqs.weight",)


class GGUF:
    """An opened GGUF file; weights are dequantised one at a time.

    Raises WeightsError when the file is not whole or not GGUF, ConfigError when it is of another
    architecture or of a kind we cannot build.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.reader = _open(self.path)
        architecture = self._value("general.architecture", str)
        if architecture != "llama":
            raise ConfigError(
                f"{self.path} is of architecture '{architecture}'; only 'llama' is read from GGUF"
            )
        self.config = self._read_config()

    def _value(self, key: str, kind: type[T], default: T | None = None) -> T:
        field = self.reader.fields.get(key)
        if field is None:
            if default is None:
                raise ConfigError(f"{self.path} does not say '{key}'; write it again with a recent llama.cpp")
            return default
        value = field.contents()
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self.path}: '{key}' is {str(value)[:40]!r}, expected {kind.__name__}")
        return value

    def _read_config(self) -> TextConfig:
        width = self._value("llama.embedding_length", int)
        num_heads = self._value("llama.attention.head_count", int)
        scaling = self._value("llama.rope.scaling.type", str, "none")
        if min(width, num_heads) < 1 or width % num_heads or scaling not in ("none", "linear"):
            raise ConfigError(
                f"{self.path}: cannot build width {width}, {num_heads} heads, rope scaling {scaling!r}"
            )
        embedding = self._tensor("token_embd.weight")
        return TextConfig(
            vocab_size=int(embedding.shape[1]),
            width=width,
            num_layers=self._value("llama.block_count", int),
            num_heads=num_heads,
            num_kv_heads=self._value("llama.attention.head_count_kv", int, num_heads),
            head_dim=self._value("llama.attention.key_length", int, width // num_heads),
            mlp_width=self._value("llama.feed_forward_length", int),
            norm_eps=round(self._value("llama.attention.layer_norm_rms_epsilon", float), 12),
            rope=RopeConfig(
                theta=self._value("llama.rope.freq_base", float, 10_000.0),
                scaling="linear" if scaling == "linear" else None,
                factor=self._value("llama.rope.scaling.factor", float, 1.0),
            ),
            max_positions=self._value("llama.context_length", int),
        )

    def _tensor(self, name: str) -> gguf.ReaderTensor:
        for tensor in self.reader.tensors:
            if tensor.name == name:
                return tensor
        raise WeightsError(f"{self.path} has no tensor '{name}'")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs of Llama-layout name and float32 weight. Tied embeddings give `lm_head.weight` too."""
        has_head = any(tensor.name == "output.weight" for tensor in self.reader.tensors)
        for tensor in self.reader.tensors:
            if tensor.name in _UNUSED:
                continue
            name, weight = _llama_name(tensor.name, self.path), _dequantize(tensor, self.path)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                is_query = name.endswith("q_proj.weight")
                heads = self.config.num_heads if is_query else self.config.num_kv_heads
                weight = _rotate_half_order(weight, heads, f"{self.path}: {tensor.name}")
            yield name, weight
            if name == "model.embed_tokens.weight" and not has_head:
                yield "lm_head.weight", weight

    def vocabulary(self) -> VocabularyFile:
        """The byte-pair vocabulary. Raises TokenizerError for another kind, or one that does not fit."""
        model = self._value("tokenizer.ggml.model", str)
        pre = self._value("tokenizer.ggml.pre", str, "default")
        if model != "gpt2" or pre not in PRE_TOKENIZERS:
            known = ", ".join(sorted(PRE_TOKENIZERS))
            raise TokenizerError(
                f"{self.path}: tokenizer '{model}' with words '{pre}' is not read; 'gpt2' with {known} is"
            )
        tokens = self._value("tokenizer.ggml.tokens", list)
        types = self._value("tokenizer.ggml.token_type", list, [1] * len(tokens))
        if not len(tokens) == len(types) == len(set(tokens)) == self.config.vocab_size:
            raise TokenizerError(
                f"{self.path}: {len(tokens)} tokens ({len(set(tokens))} different) with {len(types)} types "
                f"for an embedding of {self.config.vocab_size} rows"
            )
        named = {
            name: self._value(f"tokenizer.ggml.{key}_token_id", int, -1)
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        }
        return VocabularyFile(
            tokens=tuple(tokens),
            special=tuple(token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL),
            merges=tuple(self._value("tokenizer.ggml.merges", list)),
            pre=pre,
            adds_bos=self._value("tokenizer.ggml.add_bos_token", bool, False),
            **{name: tokens[id] if 0 <= id < len(tokens) else None for name, id in named.items()},
        )


def _open(path: Path) -> gguf.GGUFReader:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "reading GGUF files needs the package 'gguf': pip install 'internvl[nano]'"
        ) from error
    if not path.is_file():
        raise WeightsError(f"no GGUF file {path}")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise WeightsError(f"{path} is not a whole GGUF file ({error}): fetch it again") from error


def _llama_name(name: str, path: Path) -> str:
    if name in _NAMES:
        return _NAMES[name]
    found = _BLOCK.fullmatch(name)
    if found is None or found[2] not in _NAMES:
        raise WeightsError(f"{path}: no place for tensor '{name}' in a Llama model")
    return f"model.layers.{found[1]}.{_NAMES[found[2]]}.{found[3]}"


def _dequantize(tensor: gguf.ReaderTensor, path: Path) -> Tensor:
    import gguf

    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise WeightsError(
            f"{path}: '{tensor.name}' is stored as {kind}, which gguf cannot dequantise"
        ) from error
    weight = torch.tensor(values).float()
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if tuple(weight.shape) != shape or not weight.isfinite().all():
        raise WeightsError(f"{path}: '{tensor.name}' is damaged (shape {tuple(weight.shape)}, or not finite)")
    return weight


def _rotate_half_order(weight: Tensor, num_heads: int, name: str) -> Tensor:
    """GGUF interleaves the two halves of every head for its own rotary form; this puts them apart again."""
    rows = weight.shape[0]
    if rows % (2 * num_heads):
        raise WeightsError(f"{name}: {rows} rows do not divide into {num_heads} heads of even width")
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()
