"""Lazy tensors hand out any run of rows, whatever they are made of."""

from __future__ import annotations

import pytest
import torch

from internvl.checkpoints.lazy import (
    CHUNK_BYTES,
    Held,
    Lazy,
    Merged,
    Rows,
    Shuffled,
    Stack,
    fetch,
    num_rows,
    pieces,
)

BASE = torch.arange(60.0).reshape(12, 5)

CASES: list[tuple[Lazy, torch.Tensor]] = [
    (Held(BASE), BASE),
    (Stack([Held(BASE[:3]), Held(BASE[3:4]), Held(BASE[4:])]), BASE),
    (Rows(Held(BASE), 2, 9), BASE[2:9]),
    (Shuffled(Held(BASE), (2, 0, 3, 1)), BASE.reshape(4, 3, 5)[[2, 0, 3, 1]].reshape(12, 5)),
    (Rows(Stack([Held(BASE), Held(BASE + 100)]), 10, 15), torch.cat((BASE, BASE + 100))[10:15]),
    (
        Merged(Held(BASE), Held(torch.ones(2, 5)), Held(torch.ones(12, 2)), 3.0),
        BASE + 6.0,
    ),
]


@pytest.mark.parametrize(("lazy", "expected"), CASES)
def test_any_run_of_rows(lazy: Lazy, expected: torch.Tensor) -> None:
    assert lazy.shape == tuple(expected.shape)
    assert torch.equal(fetch(lazy), expected)
    for start in range(num_rows(lazy)):
        for stop in range(start + 1, num_rows(lazy) + 1):
            out = torch.empty(stop - start, 5)
            lazy.rows(out, start)
            assert torch.equal(out, expected[start:stop])


@pytest.mark.parametrize(("lazy", "expected"), CASES)
def test_rows_arrive_in_the_dtype_of_the_storage(lazy: Lazy, expected: torch.Tensor) -> None:
    assert torch.equal(fetch(lazy, torch.bfloat16), expected.to(torch.bfloat16))


def test_a_tensor_without_dimensions_has_one_row() -> None:
    scalar = Held(torch.tensor(2.5))
    assert num_rows(scalar) == 1
    assert fetch(scalar).shape == ()
    assert float(fetch(scalar, torch.float64)) == 2.5


def test_pieces_cover_all_rows_within_the_bound() -> None:
    lazy = Held(torch.empty(1000, 3000, dtype=torch.bfloat16))
    ranges = list(pieces(lazy, torch.float32))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(1000))
    assert len(ranges) > 1
    assert all((stop - start) * 3000 * 4 <= CHUNK_BYTES for start, stop in ranges)


def test_an_empty_tensor_has_no_pieces() -> None:
    assert fetch(Held(torch.empty(0, 4))).shape == (0, 4)


def test_origins_name_every_source() -> None:
    stack = Stack([Held(BASE, "q"), Held(BASE, "k")])
    assert stack.origin == "q + k"
    assert Rows(stack, 0, 2).origin == "q + k[0:2]"
