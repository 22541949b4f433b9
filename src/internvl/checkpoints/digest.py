"""What tells the weights of one model from another's, for answers and vectors that are kept and used again.

Knows names, values and adapters; no kinds of models and no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

from internvl.adapt.lora import adapters

SAMPLED = 64
"""Values of a tensor, evenly spread, that stand for all of it: nothing else of it is read or copied."""


def model_digest(model: nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """`weights_digest` of the weights whose names begin so, and with adapters another for each scale that
    their factors are multiplied by: it is no weight, and decides as much."""
    scales = {
        name: one.lora.scale for name, one in adapters(model).items() if f"{name}.".startswith(prefixes)
    }
    seen = ((name, value) for name, value in model.state_dict().items() if name.startswith(prefixes))
    digest = weights_digest(seen)
    return hashlib.blake2b(f"{digest} {scales}".encode(), digest_size=16).hexdigest() if scales else digest


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """32 hexadecimal digits that change with names, values and order of the tensors.

    They are to be those of `state_dict`: packed weights are buffers, so no parameters. An iterator that reads
    each tensor when it is its turn needs memory for one of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        values = tensor.detach().flatten()
        some = values[:: max(1, len(values) // SAMPLED)].cpu().double()
        digest.update(f"{name} {some.tolist()}\n".encode())
    return digest.hexdigest()
