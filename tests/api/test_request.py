"""What a question becomes: whose pictures go where, and what may be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internvl import ChatModel
from internvl.api.request import read_request
from internvl.errors import DocumentError, InputError, PromptError, VideoError
from internvl.processing.image import ImageLimits
from tests.api.conftest import noise

CLOSED = ImageLimits(allow_paths=False)
OPEN = ImageLimits()


def sources(question: Any, images: Any = (), **options: Any) -> list[Any]:
    return [one.source for one in read_request(question, images, options, OPEN).conversation.pictures]


def test_videos_and_documents_are_read_under_the_limits_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"secret")
    part = {"role": "user", "content": [{"type": "video", "video": str(path)}]}
    page = {"role": "user", "content": [{"type": "document", "document": str(path)}]}
    for arguments, error in (
        (("What?", (), {"videos": [path]}), VideoError),
        (("What?", (), {"documents": [path]}), DocumentError),
        (([part], (), {}), VideoError),
        (([page], (), {}), DocumentError),
    ):
        with pytest.raises(error, match="closed"):
            read_request(*arguments, CLOSED)


def test_pictures_of_earlier_rounds_stay_with_them() -> None:
    a, b, frame = (noise(8, 8, seed) for seed in (1, 2, 3))
    history = [("<image>\nA?", "x")]
    text = "compare <image> with <video>"
    assert sources(text, [a, b], videos=[[frame]], history=history) == [a, b, frame]
    assert sources("What happens?", [a], videos=[[frame]], history=history) == [a, frame]


def test_tile_limits_hold_for_messages_too(model: ChatModel) -> None:
    photo = noise(200, 100)
    content = [{"type": "image", "image": photo}, {"type": "image", "image": photo, "max_tiles": 2}]
    explained = model.explain([{"role": "user", "content": content}], max_tiles=1)
    assert [picture.num_tiles for picture in explained.pictures] == [1, 3]


def test_frames_may_have_more_tiles(model: ChatModel) -> None:
    clip = [noise(200, 100)]
    assert model.explain("What?", videos=[clip]).pictures[0].num_tiles == 1
    assert model.explain("What?", videos=[clip], frame_tiles=2).pictures[0].num_tiles == 3


def test_a_video_mark_without_videos_is_text(model: ChatModel) -> None:
    assert "a <video> tag" in model.explain("What is a <video> tag?").text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": 5}, "system must be a string"),
        ({"colour": 1}, "unknown option colour"),
        *(
            (
                {"history": history, "videos": ["missing.mp4"]},
                "history must be .*pairs of question and answer",
            )
            for history in (["a"], [("a", "b", "c")], [(1, "b")], 5)
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_request("Hi", (), options, OPEN)


def test_messages_take_no_other_pictures_or_pairs() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for options in ({"videos": [[noise(8, 8)]]}, {"history": [("a", "b")]}):
        with pytest.raises(InputError, match="put"):
            read_request(messages, (), options, OPEN)


def test_marks_and_videos_must_agree() -> None:
    with pytest.raises(PromptError, match="1 <video> marks, but 2 videos"):
        sources("<video>", videos=[[noise(8, 8)], [noise(8, 8)]])
