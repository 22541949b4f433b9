"""Cross entropy of trained tokens without holding their logits.

A vocabulary of 150 000 makes the logits the largest tensor of a training step. Here they exist for a few
positions at a time: the forward pass also computes the gradients, while the logits are there, and the
backward pass only scales them. The head may be frozen, trained, in int8 or with an adapter: it is called, not
read. Shape letters: A trained tokens, R of them at once, D text width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LOGITS_AT_ONCE = 2**25
"""Entries: 128 MB in float32. Fewer would read the head's weights too often."""


class CrossEntropy(NamedTuple):
    """`total` is the weighted sum, with a gradient; `tokens_A` the loss of every token, without one."""

    total: Tensor
    tokens_A: Tensor


def cross_entropy(
    hidden_AD: Tensor, head: nn.Linear, targets_A: Tensor, weights_A: Tensor, *, at_once: int | None = None
) -> CrossEntropy:
    """`sum(weights * -log softmax(head(hidden))[targets])`, in float32.

    Gradients reach `hidden_AD` and the trainable parameters of `head`, not the weights. The backward pass
    does not run twice differentiably. `at_once`: positions at a time (None: as many as make a bounded
    number of logits).
    """
    params = [parameter for parameter in head.parameters() if parameter.requires_grad]
    trains = torch.is_grad_enabled() and (hidden_AD.requires_grad or bool(params))
    apply: Callable[..., tuple[Tensor, Tensor]] = _Chunked.apply
    return CrossEntropy(*apply(hidden_AD, targets_A, weights_A.float(), head, at_once, trains, *params))


class _Chunked(torch.autograd.Function):
    """The product with the head is differentiated by autograd, the softmax by hand and in place."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_AD: Tensor,
        targets_A: Tensor,
        weights_A: Tensor,
        head: nn.Linear,
        at_once: int | None,
        trains: bool,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        losses: list[Tensor] = []
        grads: list[Tensor] = []
        sums: list[Tensor] = []
        size = at_once or max(1, LOGITS_AT_ONCE // head.out_features)
        chunks = zip(hidden_AD.split(size), targets_A.split(size), weights_A.split(size), strict=True)
        for hidden_RD, targets_R, weights_R in chunks:
            if trains:
                losses.append(_chunk(hidden_RD, targets_R, weights_R, head, params, grads, sums))
            else:
                losses.append(_softmax(head(hidden_RD), targets_R)[0])
        ctx.save_for_backward(*([torch.cat(grads), *sums] if trains else []))
        ctx.dtypes = [x.dtype for x in (hidden_AD, *params)]
        tokens_A = torch.cat(losses)
        ctx.mark_non_differentiable(tokens_A)
        return (tokens_A * weights_A).sum(), tokens_A

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [(x * outer[0]).to(dtype) for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return scaled[0], None, None, None, None, None, *scaled[1:]


def _chunk(
    hidden_RD: Tensor,
    targets_R: Tensor,
    weights_R: Tensor,
    head: nn.Linear,
    params: tuple[Tensor, ...],
    grads: list[Tensor],
    sums: list[Tensor],
) -> Tensor:
    """Losses (R,); appends the gradient of the states to `grads`, adds those of the head to `sums`."""
    with torch.enable_grad():
        hidden_RD = hidden_RD.detach().requires_grad_()
        logits_RV: Tensor = head(hidden_RD)
    loss_R, shares_RV = _softmax(logits_RV.detach(), targets_R)
    shares_RV.mul_(weights_R[:, None])
    shares_RV.scatter_add_(1, targets_R[:, None], -weights_R[:, None])
    first, *rest = torch.autograd.grad(logits_RV, [hidden_RD, *params], shares_RV.to(logits_RV.dtype))
    grads.append(first)
    if sums:
        for total, grad in zip(sums, rest, strict=True):
            total.add_(grad)
    else:
        sums += [grad.float() for grad in rest]
    return loss_R


def _softmax(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (R,) and probabilities (R, V), in float32; overwrites logits of that dtype."""
    x_RV = logits_RV.float()
    x_RV.sub_(x_RV.amax(-1, keepdim=True))
    target_R = x_RV.gather(1, targets_R[:, None])[:, 0]
    sum_R = x_RV.exp_().sum(-1)
    return sum_R.log() - target_R, x_RV.div_(sum_R[:, None])
