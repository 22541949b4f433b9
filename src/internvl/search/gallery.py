"""Results as one HTML page that needs nothing else: thumbnails, scores, keys and metadata.

Whatever comes from files is escaped, and the page may neither run scripts nor fetch anything. Knows no model
and no index.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl.data.bad_samples import BROKEN
from internvl.errors import InputError
from internvl.processing.image import ImageLimits, load_image
from internvl.search.columns import visible
from internvl.search.folder import write_whole
from internvl.search.query import Hit

MAX_PICTURES = 500
SIDE, QUALITY = 256, 80
"""Of a thumbnail: pixels of the longer side, and of JPEG."""

MAX_TEXT = 300
"""Characters of metadata that are shown; the page says when there are more."""

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fafafa }}
section {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1rem }}
figure {{ margin: 0; padding: .5rem; background: #fff; border: 1px solid #ddd; border-radius: 6px }}
img {{ width: 100%; height: 180px; object-fit: contain; background: #eee }}
h2 img {{ width: auto; height: 120px; vertical-align: middle }}
figcaption, .gone {{ font-size: 12px; overflow-wrap: anywhere }} .score {{ float: right; color: #666 }}
small {{ color: #666; display: block }}
</style></head><body>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A query with its results. `picture` is that of the query, where it was one."""

    query: str
    hits: Sequence[Hit]
    picture: Any = None


def write_gallery(
    path: Path, answers: Sequence[Answer], find: Callable[[Hit], Any], *, title: str = "Search"
) -> None:
    """The page, whole or not at all. Raises InputError for more than 500 pictures.

    `find` gives what `load_image` takes, or raises InputError: that a picture is gone is said in its place.
    """
    count = sum(len(answer.hits) + (answer.picture is not None) for answer in answers)
    if count > MAX_PICTURES:
        raise InputError(f"a gallery shows {MAX_PICTURES} pictures at most, these are {count}: ask for fewer")
    write_whole(path, "".join(_page(answers, find, title)).encode("utf-8"))


def _page(answers: Sequence[Answer], find: Callable[[Hit], Any], title: str) -> Iterator[str]:
    yield HEAD.format(title=_text(title))
    for answer in answers:
        shown = "" if answer.picture is None else f"{_thumbnail(answer.picture)} "
        yield f"<h2>{shown}<bdi>{_text(answer.query)}</bdi></h2>\n"
        yield "<section>\n" if answer.hits else "<p>Nothing was found.</p>\n<section>\n"
        for hit in answer.hits:
            yield _figure(hit, find)
        yield "</section>\n"
    yield "</body></html>\n"


def _figure(hit: Hit, find: Callable[[Hit], Any]) -> str:
    try:
        source = find(hit)
        picture = _thumbnail(source)
        if isinstance(source, Path):
            picture = f'<a href="{html.escape(source.absolute().as_uri())}">{picture}</a>'
    except BROKEN as error:
        picture = f'<p class="gone">{_text(str(error))}</p>'
    metadata = json.dumps(hit.metadata, ensure_ascii=False) if hit.metadata else ""
    if len(metadata) > MAX_TEXT:
        metadata = f"{metadata[:MAX_TEXT]}... ({len(metadata)} characters)"
    return (
        f'<figure>{picture}<figcaption><span class="score">{hit.score:.3f}</span>'
        f"<bdi>{_text(hit.key)}</bdi><small><bdi>{_text(metadata)}</bdi></small></figcaption></figure>\n"
    )


def _thumbnail(source: Any) -> str:
    """An <img> of at most 256 pixels a side, with the pixels inside. Raises ImageError."""
    picture = load_image(source, ImageLimits())
    scale = min(1.0, SIDE / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    file = io.BytesIO()
    picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0).save(
        file, "JPEG", quality=QUALITY
    )
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _text(text: str) -> str:
    return html.escape(visible(text))
