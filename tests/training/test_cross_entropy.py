"""The chunked loss against PyTorch's own on whole logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as full_cross_entropy

from internvl.training import cross_entropy as module
from internvl.training.cross_entropy import cross_entropy

A, D, V = 23, 12, 40


class Adapted(nn.Linear):
    """A frozen head with a trained low-rank part."""

    def __init__(self) -> None:
        super().__init__(D, V, bias=False)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.randn(V, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


def frozen() -> nn.Linear:
    return nn.Linear(D, V, bias=False).requires_grad_(False)


def trained() -> nn.Linear:
    return nn.Linear(D, V, bias=True)


def draw(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    hidden_AD = (3 * torch.randn(A, D)).to(dtype).requires_grad_()
    return hidden_AD, torch.randint(V, (A,)), torch.rand(A)


def full(hidden_AD: Tensor, head: nn.Linear, targets_A: Tensor, weights_A: Tensor) -> Tensor:
    return (full_cross_entropy(head(hidden_AD).float(), targets_A, reduction="none") * weights_A).sum()


@pytest.mark.parametrize("make", [frozen, trained, Adapted])
@pytest.mark.parametrize("at_once", [1, 5, A, None])
def test_loss_and_gradients_equal_the_full_ones(make: Callable[[], nn.Linear], at_once: int | None) -> None:
    head = make()
    hidden_AD, targets_A, weights_A = draw()
    inputs = [hidden_AD, *(p for p in head.parameters() if p.requires_grad)]
    ours = cross_entropy(hidden_AD, head, targets_A, weights_A, at_once=at_once)
    theirs = full(hidden_AD, head, targets_A, weights_A)
    torch.testing.assert_close(ours.total, theirs)
    torch.testing.assert_close((ours.tokens_A * weights_A).sum(), theirs)
    for one, other in zip(
        torch.autograd.grad(2 * ours.total, inputs), torch.autograd.grad(2 * theirs, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_differences() -> None:
    head = trained().double()
    _, targets_A, _ = draw()
    hidden_AD = torch.randn(A, D, dtype=torch.float64)

    def total(x: Tensor) -> Tensor:
        return cross_entropy(x, head, targets_A, torch.ones(A), at_once=7).total

    hidden_AD.requires_grad_()
    (grad_AD,) = torch.autograd.grad(total(hidden_AD), [hidden_AD])
    step_AD = 1e-2 * torch.randn(A, D, dtype=torch.float64)
    with torch.no_grad():
        slope = (total(hidden_AD + step_AD) - total(hidden_AD - step_AD)) / 2
    assert float((grad_AD * step_AD).sum()) == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize("make", [frozen, trained, Adapted])
def test_bfloat16_weights_sum_their_gradients_in_float32(make: Callable[[], nn.Linear]) -> None:
    head = make().bfloat16()
    hidden_AD, targets_A, weights_A = draw(torch.bfloat16)
    inputs = [hidden_AD, *(p for p in head.parameters() if p.requires_grad)]
    ours = cross_entropy(hidden_AD, head, targets_A, weights_A, at_once=1)
    theirs = full(hidden_AD, head, targets_A, weights_A)
    assert ours.total.dtype == torch.float32
    torch.testing.assert_close(ours.total, theirs)
    for one, other in zip(
        torch.autograd.grad(ours.total, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("make", [frozen, trained, Adapted])
def test_autocast_gives_what_the_full_loss_gives_under_it(make: Callable[[], nn.Linear]) -> None:
    head = make()
    hidden_AD, targets_A, weights_A = draw()
    inputs = [hidden_AD, *(p for p in head.parameters() if p.requires_grad)]
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(hidden_AD, head, targets_A, weights_A, at_once=5)
        theirs = full(hidden_AD, head, targets_A, weights_A)
    torch.testing.assert_close(ours.total, theirs)
    assert not torch.equal(ours.total, full(hidden_AD, head, targets_A, weights_A))  # bfloat16 was at work
    for one, other in zip(
        torch.autograd.grad(ours.total, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 4 * V)
    head, shapes = trained(), []
    head.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    hidden_AD, targets_A, weights_A = draw()
    cross_entropy(hidden_AD, head, targets_A, weights_A).total.backward()
    assert set(shapes) == {(4, V), (A % 4, V)}


def test_no_token_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    head = trained()
    hidden_AD = torch.randn(0, D, requires_grad=True)
    loss = cross_entropy(hidden_AD, head, torch.empty(0, dtype=torch.long), torch.empty(0))
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert hidden_AD.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_without_gradients_nothing_is_kept() -> None:
    hidden_AD, targets_A, weights_A = draw()
    with torch.no_grad():
        quiet = cross_entropy(hidden_AD, trained(), targets_A, weights_A)
    assert not quiet.total.requires_grad
    assert not quiet.tokens_A.requires_grad


def test_large_logits_stay_finite() -> None:
    hidden_AD, targets_A, weights_A = draw()
    loss = cross_entropy(hidden_AD * 1e4, trained(), targets_A, weights_A)
    assert loss.tokens_A.isfinite().all()
