"""Orders travel whole, and tiles as the bytes they are."""

from __future__ import annotations

import multiprocessing
from threading import Thread

import pytest
import torch

from internvl.engine.constraint import Constraint
from internvl.engine.request import EngineImage
from internvl.serving.engine_messages import Order, pack, receive_order, send_parts
from tests.engine.tiny import make_request


def sent(order: Order) -> Order:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        writer = Thread(target=send_parts, args=(ours, pack(order)))
        writer.start()
        received = receive_order(theirs)
        writer.join()
    return received


def test_a_request_comes_out_as_it_went_in() -> None:
    tiles = torch.randn(13, 3, 56, 56)
    images = [EngineImage(key=bytes([part]), tiles_N3HW=tiles[part : part + 6]) for part in (0, 6)]
    form = Constraint(kind="choice", value=("yes", "ñ\ud800"))
    request = make_request(
        "a",
        [1, 2],
        images,
        n=3,
        temperature=0.5,
        stop=("x",),
        logit_bias={3: 1.5},
        constraint=form,
        client="c",
    )
    found = sent(request)
    assert not isinstance(found, str)
    for name in type(request).__dataclass_fields__:
        if name != "images":
            assert getattr(found, name) == getattr(request, name)
    for one, other in zip(found.images, images, strict=True):
        assert one.key == other.key
        assert torch.equal(one.tiles_N3HW, other.tiles_N3HW)
        one.tiles_N3HW.add_(1)  # its own memory, and writable


def test_tiles_are_not_copied_on_the_way_out() -> None:
    tiles = torch.zeros(2, 3, 56, 56)
    head, *contents = pack(make_request("a", [1], [EngineImage(key=b"", tiles_N3HW=tiles)]))
    assert len(head) < 2000
    tiles.fill_(1)
    assert [bytes(content) for content in contents] == [tiles.numpy().tobytes()]


def test_a_key_cancels() -> None:
    assert sent("a") == "a"


def test_whoever_is_gone_cannot_be_told() -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours:
        theirs.close()
        with pytest.raises(OSError, match=r"pipe|reset"):
            send_parts(ours, pack("a"))
        with pytest.raises((EOFError, OSError)):
            receive_order(ours)
