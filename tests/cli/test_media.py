"""What a word of the command line is, and reading it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from internvl.cli.arguments import MediaOptions
from internvl.cli.media import Media, find_kind, is_source, parse_pages, read
from internvl.errors import ImageError, InputError
from tests.cli.conftest import save_noise


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jpg", b"%PDF-1.7 ...", "document"),
        ("a.bin", b"junk %PDF-1.4", "document"),
        ("a.jpg", b"\0\0\0\x18ftypmp42", "video"),
        ("a.bin", b"\0\0\0\x18ftypavif", "image"),
        ("a.bin", b"\x1aE\xdf\xa3....", "video"),
        ("a.bin", b"RIFF\0\0\0\0AVI LIST", "video"),
        ("a.bin", b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        ("a.mp4", b"who knows", "video"),
        ("a.pdf", b"who knows", "document"),
        ("a", b"", "image"),
    ],
)
def test_content_decides_before_the_ending(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert find_kind(str(tmp_path / name)) == kind


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("https://example.org/clip.mp4?x=1.jpg", "video"),
        ("https://example.org/paper.pdf#page=2", "document"),
        ("http://example.org/photo", "image"),
        ("missing.webm", "video"),
        ("missing.jpg", "image"),
    ],
)
def test_what_cannot_be_opened_goes_by_its_ending(source: str, kind: str) -> None:
    assert find_kind(source) == kind


def test_animated_gifs_and_folders_are_videos(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(tmp_path / "still.gif")
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    kinds = [find_kind(str(tmp_path / name)) for name in ("still.gif", "moving.gif", "broken.gif", "")]
    assert kinds == ["image", "video", "image", "video"]


@pytest.mark.parametrize(
    ("word", "is_file"),
    [
        ("missing.jpg", True),
        ("https://example.org/a", True),
        ("data:image/png;base64,AAAA", True),
        ("What is this?", False),
        ("is it a.jpg", False),
        ("Describe", False),
        ("x" * 5000, False),
        ("a\0b", False),
        ("-", False),
    ],
)
def test_files_and_questions(word: str, is_file: bool) -> None:
    assert is_source(word) == is_file


def test_everything_is_read(tmp_path: Path) -> None:
    picture = save_noise(tmp_path / "a.png", 20, 10)
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(5):
        save_noise(frames / f"f_{number}.png", 12, 12, seed=number)
    pages = [Image.new("RGB", (40, 50), "white") for _ in range(3)]
    pages[0].save(tmp_path / "paper.pdf", save_all=True, append_images=pages[1:])
    sources = [picture, str(frames), str(tmp_path / "paper.pdf")]
    media = read(sources, MediaOptions(frames=2, pages="1,3"))
    assert [image.size for image in media.images] == [(20, 10)]
    assert [len(frames) for frames in media.videos] == [2]
    assert [len(pages) for pages in media.documents] == [2]
    assert set(media.arguments()) == {"images", "videos", "documents"}
    assert not Media()
    assert Media().arguments() == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is not a regular file"):
        find_kind(str(tmp_path / "pipe"))


def test_an_empty_word_is_not_the_working_directory() -> None:
    assert not is_source("")
    with pytest.raises(InputError, match="empty word"):
        read([""], MediaOptions())


def test_the_first_bad_file_is_named() -> None:
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        read(["missing.jpg"], MediaOptions())


@pytest.mark.parametrize(
    ("text", "pages"), [("1", [1]), ("1-3,7", [1, 2, 3, 7]), (" 2 , 4-4", [2, 4]), (None, None)]
)
def test_pages(text: str | None, pages: list[int] | None) -> None:
    assert parse_pages(text) == pages


@pytest.mark.parametrize("text", ["", "a", "3-1", "0", "1-", "-2", "1,,2", "1-99999999"])
def test_wrong_pages(text: str) -> None:
    with pytest.raises(InputError, match="--pages"):
        parse_pages(text)
