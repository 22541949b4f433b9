from __future__ import annotations

from typing import Any

import pytest

from internvl.errors import PromptError
from internvl.processing.conversation import Conversation, Role
from internvl.processing.messages import from_messages
from internvl.processing.tiling import TileChoice


def user(*parts: object) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
    }


def image(source: str, **fields: object) -> dict[str, Any]:
    return {"type": "image", "image": source, **fields}


def texts(conversation: Conversation) -> list[str]:
    return [message.text for message in conversation.messages]


def sources(conversation: Conversation) -> list[object]:
    return [picture.source for picture in conversation.pictures]


def test_strings_and_roles() -> None:
    conversation = from_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        ]
    )
    assert conversation.system == "Be brief."
    assert texts(conversation) == ["Hi", "Hello.", "a b"]
    assert [message.role for message in conversation.messages] == [Role.USER, Role.ASSISTANT, Role.USER]


def test_only_image_has_no_number() -> None:
    assert texts(from_messages([user(image("a"), "What?")])) == ["<image>\nWhat?"]


def test_several_images_are_numbered_over_the_conversation() -> None:
    conversation = from_messages(
        [
            user(image("a"), image("b"), "Same?"),
            {"role": "assistant", "content": "No."},
            user(image("c"), "And?"),
        ]
    )
    assert texts(conversation) == [
        "Image-1: <image>\nImage-2: <image>\nSame?",
        "No.",
        "Image-3: <image>\nAnd?",
    ]
    assert sources(conversation) == ["a", "b", "c"]


def test_image_behind_text_begins_a_line() -> None:
    assert texts(from_messages([user("See", image("a"))])) == ["See\n<image>\n"]
    assert texts(from_messages([user("See ", image("a"), "ok")])) == ["See <image>\nok"]
    assert texts(from_messages([user("", image("a"))])) == ["<image>\n"]


def test_literal_mark_stays_text() -> None:
    conversation = from_messages([user("what is <image>?", image("a"))])
    assert conversation.messages[0].parts[0] == "what is <image>?"
    assert sources(conversation) == ["a"]


def test_choices_of_images() -> None:
    conversation = from_messages(
        [
            user(
                image("a", max_tiles=4, thumbnail=False),
                {"type": "image_url", "image_url": {"url": "b", "detail": "low"}},
                {"type": "image_url", "image_url": "c"},
            )
        ]
    )
    assert [picture.choice for picture in conversation.pictures] == [
        TileChoice(max_tiles=4, thumbnail=False),
        TileChoice(detail="low"),
        None,
    ]


def test_video_is_a_line_a_frame_with_one_tile() -> None:
    def read(source: object, **options: object) -> list[object]:
        assert (source, options) == ("v.mp4", {"num_segments": 2})
        return ["f1", "f2"]

    messages = [user({"type": "video", "video": "v.mp4", "num_segments": 2}, "What?")]
    conversation = from_messages(messages, read_video=read)  # type: ignore[arg-type]
    assert texts(conversation) == ["Frame-1: <image>\nFrame-2: <image>\nWhat?"]
    assert {picture.choice for picture in conversation.pictures} == {TileChoice(max_tiles=1)}
    plain = from_messages(messages, read_video=read, frame_label="Frame{k}: ")  # type: ignore[arg-type]
    assert texts(plain) == ["Frame1: <image>\nFrame2: <image>\nWhat?"]


def test_frames_may_have_more_tiles() -> None:
    conversation = from_messages([user({"type": "video", "video": ["f1", "f2"], "max_tiles": 6}, "What?")])
    assert {picture.choice for picture in conversation.pictures} == {TileChoice(max_tiles=6)}


def test_frame_labels_are_no_format_strings() -> None:
    with pytest.raises(PromptError, match="a frame label is a string"):
        from_messages([user({"type": "video", "video": ["f1"]})], frame_label="F{0}")


def test_frames_do_not_count_as_images() -> None:
    conversation = from_messages([user({"type": "video", "video": ["f1", "f2"]}, image("a"), "What?")])
    assert texts(conversation) == ["Frame-1: <image>\nFrame-2: <image>\n<image>\nWhat?"]


def test_pages_of_a_document_count_as_images() -> None:
    def read(source: object, pages: list[int], dpi: float) -> list[object]:
        return [f"{source}#{page}@{dpi}" for page in pages]

    document = {"type": "document", "document": "d.pdf", "pages": [1, 3], "dpi": 200, "max_tiles": 6}
    conversation = from_messages([user(document, "Sum?")], read_document=read)  # type: ignore[arg-type]
    assert texts(conversation) == ["Image-1: <image>\nImage-2: <image>\nSum?"]
    assert sources(conversation) == ["d.pdf#1@200", "d.pdf#3@200"]
    assert conversation.pictures[0].choice == TileChoice(max_tiles=6)


def test_user_twice_and_assistant_first_are_taken_as_they_come() -> None:
    rows = [{"role": role, "content": "x"} for role in ("assistant", "user", "user")]
    assert [message.role.value for message in from_messages(rows).messages] == ["assistant", "user", "user"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "non-empty list"),
        ("Hi", "non-empty list"),
        ({"role": "user", "content": "Hi"}, "non-empty list"),
        (["Hi"], r"messages\[0\] must be a mapping"),
        (
            [{"role": "tool", "content": "x"}],
            r"messages\[0\]: unknown role 'tool'; allowed are 'system', 'user'",
        ),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": None}], "has no content"),
        ([{"role": "user", "content": 3}], "content must be a string or a list of parts, not 3"),
        (
            [{"role": "user", "content": "x", "name": "me"}],
            "unknown field 'name'; allowed are 'role', 'content'",
        ),
        ([{"role": "user", "content": ""}], "a user message is empty"),
        (
            [user("a"), {"role": "system", "content": "x"}],
            r"messages\[1\]: the system message must be the first",
        ),
        ([{"role": "system", "content": "x"}], "only a system message"),
        ([{"role": "system", "content": [image("a")]}], "a system message holds text only"),
        ([{"role": "assistant", "content": [image("a")]}], "an assistant message holds a picture"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\] must be a mapping with a type"),
        (
            [user({"type": "audio"})],
            "unknown type 'audio'; allowed are 'text', 'image', 'image_url', 'video', 'doc",
        ),
        ([user({"type": ["x"]})], r"unknown type \['x'\]"),
        ([user({"type": "text", "text": 3})], "text must be a string, not 3"),
        ([user({"type": "image"})], "has no 'image'"),
        ([user(image("a", size=3))], "unknown field 'size'; allowed are 'type', 'image', 'max_tiles'"),
        ([user(image("a", max_tiles=0))], r"content\[0\]: max_tiles must be a whole number in 1..512, not 0"),
        ([user(image("a", max_tiles=10**9))], "max_tiles must be a whole number in 1..512, not 1000000000"),
        ([user(image("a", min_tiles=True))], "min_tiles must be a whole number"),
        ([user(image("a", thumbnail="no"))], "thumbnail must be true or false, not 'no'"),
        ([user(image("a", detail="best"))], "detail must be 'low', 'high' or 'auto', not 'best'"),
        (
            [user({"type": "image_url", "image_url": {"detail": "low"}})],
            "must be an address or a mapping with url",
        ),
        ([user({"type": "image_url", "image_url": {"url": "a", "x": 1}})], r"image_url: unknown field 'x'"),
        ([user({"type": "video", "video": ["a"], "max_tiles": "6"})], "max_tiles must be a whole number"),
        ([user({"type": "video", "video": ["a"], "detail": "low"})], "unknown field 'detail'"),
        ([user({"type": "document", "document": ["a"], "dpi": 72})], "given as pictures takes no dpi"),
        ([user({"type": "video", "video": "a"})], "no reader for a video here"),
        ([user({"type": "video", "video": []})], "takes no empty list"),
        ([user({"type": "video", "video": ["a"], "fps": 2})], "a video given as pictures takes no fps"),
    ],
)
def test_what_is_not_supported_is_named(messages: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        from_messages(messages)


def test_video_without_frames_is_named() -> None:
    with pytest.raises(PromptError, match="the video has no pictures"):
        from_messages([user({"type": "video", "video": "a"})], read_video=lambda source: [])
