"""What stands between the text encoder of InternVL-C and a diffusion model, and its files.

The three forms and the names of their tensors are those of MuLan's published adapters, so that its files load
as they are. Knows no pipelines and no text. Shape letters: B prompts, T positions, D text width, Q queries,
A width of a diffusion model's text states, E width of the pooled text.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from internvl.checkpoints.fill import place
from internvl.checkpoints.lazy import Held
from internvl.checkpoints.load import resolve_device, resolve_dtype
from internvl.checkpoints.read import read_tensors
from internvl.checkpoints.shards import write_safetensors
from internvl.errors import CheckpointError, ConfigError, WeightsError

NUM_HEADS = 8
"""Of every published adapter; no file says it."""

Shapes = Mapping[str, tuple[int, ...]]


class TextProjection(nn.Module):
    """Two linear layers with a GELU between: text states for PixArt, or the pooled text for SDXL."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.in_width = in_width
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(gelu(self.linear_1(x), approximate="tanh"))
        return out


class AddedEmbedding(nn.Module):
    """In place of SDXL's own layer for pooled text and sizes; the same two layers and SiLU."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(silu(self.linear_1(x)))
        return out


class LanguageAdapter(nn.Module):
    """Text states to as many states as there are learned queries: for Stable Diffusion 1.5 and 2.1.

    A small MLP, then encoder layers over the text and decoder layers for the queries, pre-norm. Defaults are
    those of the published files, beside which "direct" ones have 77 queries.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        num_queries: int = 120,
        *,
        num_encoder_layers: int = 1,
        num_decoder_layers: int = 1,
    ) -> None:
        super().__init__()
        if width % NUM_HEADS:
            raise ConfigError(f"adapter width {width} does not divide into {NUM_HEADS} heads")
        self.in_width, self.width = in_width, width
        self.proj = nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width))
        self.queries = nn.Parameter(torch.randn(1, num_queries, width))
        sizes = {"d_model": width, "nhead": NUM_HEADS, "dim_feedforward": 4 * width, "dropout": 0.0}
        read = nn.TransformerEncoderLayer(**sizes, batch_first=True, norm_first=True)  # type: ignore[arg-type]
        ask = nn.TransformerDecoderLayer(**sizes, batch_first=True, norm_first=True)  # type: ignore[arg-type]
        encoder = nn.TransformerEncoder(
            read, num_encoder_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        decoder = nn.TransformerDecoder(ask, num_decoder_layers, nn.LayerNorm(width))
        self.transformer = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        for weight in self.transformer.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)

    def forward(self, states_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, Q, A). No mask: published adapters read the positions behind a text too."""
        read_BTA = self.transformer["encoder"](self.proj(states_BTD))
        out: Tensor = self.transformer["decoder"](self.queries.expand(len(states_BTD), -1, -1), read_BTA)
        return out


class StatePool(nn.Module):
    """Attention pooling of Q states with positions: the mean asks."""

    def __init__(self, num_states: int, width: int, out_width: int) -> None:
        super().__init__()
        if width % NUM_HEADS:
            raise ConfigError(f"pool width {width} does not divide into {NUM_HEADS} heads")
        self.positional_embedding = nn.Parameter(torch.randn(num_states + 1, width) * width**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, out_width)

    def forward(self, x_BQA: Tensor) -> Tensor:
        """(B, Q, A) to (B, width of the pooled text)."""
        x_BQA = torch.cat((x_BQA.mean(1, keepdim=True), x_BQA), dim=1) + self.positional_embedding
        q_BHQA, k_BHQA, v_BHQA = (
            layer(x).unflatten(2, (NUM_HEADS, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, x_BQA[:, :1]), (self.k_proj, x_BQA), (self.v_proj, x_BQA))
        )
        out: Tensor = self.c_proj(scaled_dot_product_attention(q_BHQA, k_BHQA, v_BHQA).flatten(1))
        return out


class XLStates(NamedTuple):
    """What SDXL takes: states (B, Q, A) and a pooled vector (B, width)."""

    states_BQA: Tensor
    pooled_BA: Tensor


class LanguageAdapterXL(nn.Module):
    """Two adapters side by side, 1280 and 768 wide for SDXL, and the pooled text from its own projection or
    from a pool over their states; with `add_embedding` where the file brings one."""

    def __init__(
        self,
        adapter1: LanguageAdapter,
        adapter2: LanguageAdapter,
        pool: TextProjection | StatePool,
        add_embedding: AddedEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.in_width = adapter1.in_width
        self.adapter1, self.adapter2 = adapter1, adapter2
        self.pool_caption_projection = pool
        self.add_embedding = add_embedding

    def forward(self, states_BTD: Tensor, pooled_BE: Tensor) -> XLStates:
        states_BQA = torch.cat((self.adapter1(states_BTD), self.adapter2(states_BTD)), dim=-1)
        pool = self.pool_caption_projection
        return XLStates(states_BQA, pool(states_BQA if isinstance(pool, StatePool) else pooled_BE))


Adapter = LanguageAdapter | LanguageAdapterXL | TextProjection


def load_adapter(
    path: str | Path, *, dtype: str | torch.dtype = "float32", device: str | torch.device = "cpu"
) -> Adapter:
    """An adapter of any form and size from a file of tensors, in evaluation mode.

    Args:
        path: .safetensors, or a published .pth, which is opened without running pickles.
        dtype: of the weights in memory.
        device: where they go.

    Raises:
        CheckpointError: unreadable; WeightsError where the tensors are of no adapter, or not finite.
        DeviceError: a dtype or device that is not available.
    """
    tensors = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        with torch.device("meta"):
            adapter = _adapter(shapes)
    except CheckpointError as reason:
        raise WeightsError(f"{path} holds no adapter for a diffusion model: {reason}") from reason
    expected = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    wrong = sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name))
    if wrong:
        named = ", ".join(f"{name} {shapes.get(name)}, not {expected.get(name)}" for name in wrong[:3])
        raise WeightsError(
            f"{path} is no whole {type(adapter).__name__}: {len(wrong)} tensors do not fit: {named}"
        )
    target, weights = resolve_device(device), resolve_dtype(dtype)
    state = {name: place(tensor, weights, target) for name, tensor in tensors.items()}
    adapter.load_state_dict(state, assign=True)
    return adapter.eval()


def save_adapter(adapter: Adapter, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a .safetensors file, whole or not at all.

    Raises:
        CheckpointError: another suffix, a file that exists without `overwrite`, or the disk refuses.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path.name}: an adapter is written as .safetensors")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists; choose another name or pass overwrite=True")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    state = {name: Held(value.detach().cpu()) for name, value in adapter.state_dict().items()}
    try:
        write_safetensors(list(state.items()), temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as reason:
        raise CheckpointError(f"cannot write {path}: {reason.strerror or reason}") from reason
    finally:
        temporary.unlink(missing_ok=True)


def _adapter(shapes: Shapes) -> Adapter:
    """The form and sizes that tensors of these shapes belong to."""
    if "linear_1.weight" in shapes:
        return _projection(shapes)
    if "queries" in shapes:
        return _language_adapter(shapes)
    pool, added = _under(shapes, "pool_caption_projection."), _under(shapes, "add_embedding.")
    return LanguageAdapterXL(
        _language_adapter(_under(shapes, "adapter1.")),
        _language_adapter(_under(shapes, "adapter2.")),
        _pool(pool) if "positional_embedding" in pool else _projection(pool),
        AddedEmbedding(*reversed(_shape(added, "linear_1.weight", 2))) if added else None,
    )


def _projection(shapes: Shapes) -> TextProjection:
    width, in_width = _shape(shapes, "linear_1.weight", 2)
    return TextProjection(in_width, width)


def _language_adapter(shapes: Shapes) -> LanguageAdapter:
    width, in_width = _shape(shapes, "proj.0.weight", 2)
    return LanguageAdapter(
        in_width,
        width,
        _shape(shapes, "queries", 3)[1],
        num_encoder_layers=_count(shapes, "transformer.encoder.layers."),
        num_decoder_layers=_count(shapes, "transformer.decoder.layers."),
    )


def _pool(shapes: Shapes) -> StatePool:
    num, width = _shape(shapes, "positional_embedding", 2)
    return StatePool(num - 1, width, _shape(shapes, "c_proj.weight", 2)[0])


def _shape(shapes: Shapes, name: str, dims: int) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != dims or not all(shape):
        raise WeightsError(f"{name} should have {dims} dimensions, its shape is {shapes.get(name)}")
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})


def _under(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
