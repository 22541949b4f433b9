"""The page of results: it holds the pictures, runs nothing, fetches nothing, and believes no name."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl.errors import InputError
from internvl.search.gallery import Answer, write_gallery
from internvl.search.query import Hit
from tests.search.fakes import picture

NASTY = '"><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x00'


def hit(key: str = "a.png", **metadata: Any) -> Hit:
    return Hit(score=0.5, key=key, metadata=metadata, folder="none", row=0, picture=0)


class Tags(HTMLParser):
    """All tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_pictures_are_inside_as_thumbnails(tmp_path: Path) -> None:
    large = tmp_path / "large one.png"
    large.write_bytes(picture(0, (600, 300)))
    write_gallery(tmp_path / "page.html", [Answer(query="a dog", hits=[hit(year=2020)])], lambda one: large)
    page = (tmp_path / "page.html").read_text()
    (source,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(source))).size == (256, 128)
    assert f'href="{large.as_uri()}"' in page
    assert "%20" in large.as_uri()
    assert "a dog" in page
    assert "0.500" in page
    assert "{&quot;year&quot;: 2020}" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    answers = [Answer(query=NASTY, hits=[hit(NASTY, text=NASTY, long="x" * 1000)], picture=picture(1))]
    write_gallery(tmp_path / "page.html", answers, lambda one: picture(0), title=NASTY)
    page = (tmp_path / "page.html").read_text()
    tags = Tags(page).found
    assert {tag for tag, _ in tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h2", "img", "bdi"),
        *("section", "figure", "figcaption", "span", "small"),
    }
    assert all(str(names.get("src")).startswith("data:image/jpeg") for tag, names in tags if tag == "img")
    assert not any(name.startswith("on") for _, names in tags for name in names)
    assert "\u202e" not in page
    assert "\x00" not in page
    policy = next(names["content"] for tag, names in tags if "http-equiv" in names)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "characters)" in page


def test_a_picture_that_is_gone_is_said_so(tmp_path: Path) -> None:
    def find(one: Hit) -> Any:
        if one.key == "moved":
            raise InputError("moved <away>")
        return tmp_path / "none.png"

    write_gallery(tmp_path / "page.html", [Answer(query="q", hits=[hit("moved"), hit("gone")])], find)
    page = (tmp_path / "page.html").read_text()
    assert "moved &lt;away&gt;" in page
    assert "no such file" in page
    assert "<img" not in page


def test_nothing_found(tmp_path: Path) -> None:
    write_gallery(tmp_path / "page.html", [Answer(query="q", hits=[])], lambda one: None)
    assert "Nothing was found" in (tmp_path / "page.html").read_text()


def test_too_many_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="500 pictures at most, these are 501"):
        write_gallery(tmp_path / "page.html", [Answer(query="q", hits=[hit()] * 501)], lambda one: None)
    assert not (tmp_path / "page.html").exists()
