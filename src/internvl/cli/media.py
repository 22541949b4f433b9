"""Files and addresses from the command line to pictures: what each one is, and reading it.

The kind is told by content, for web addresses by their ending. What the user typed may be an address
of any host; limits on bytes and pixels stay. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from PIL import Image

from internvl.cli.arguments import MediaOptions
from internvl.errors import InputError
from internvl.processing.document import DocumentLimits, load_pages
from internvl.processing.image import ImageLimits, load_image
from internvl.processing.source import is_url
from internvl.processing.video import VideoLimits, load_frames

Kind = Literal["image", "video", "document"]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".heic"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp"}
)
DOCUMENT_SUFFIXES = frozenset({".pdf"})
MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | DOCUMENT_SUFFIXES

PDF_HEAD = 1024
"""A PDF may begin with other bytes, but not more than these."""
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
VIDEO_MARKS = (b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")

IMAGE_LIMITS = ImageLimits(allow_urls=True, allow_private_hosts=True)
VIDEO_LIMITS = VideoLimits(allow_urls=True, allow_private_hosts=True)
DOCUMENT_LIMITS = DocumentLimits(allow_urls=True, allow_private_hosts=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Media:
    """What goes with a question: pictures, the frames of each video, the pages of each document."""

    images: tuple[Image.Image, ...] = ()
    videos: tuple[Sequence[Image.Image], ...] = ()
    documents: tuple[Sequence[Image.Image], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.images or self.videos or self.documents)

    def __add__(self, other: Media) -> Media:
        return Media(
            images=self.images + other.images,
            videos=self.videos + other.videos,
            documents=self.documents + other.documents,
        )

    def arguments(self) -> dict[str, Any]:
        """The keywords of `ChatModel.chat`; what is empty is left out."""
        given = {"images": self.images, "videos": self.videos, "documents": self.documents}
        return {name: list(values) for name, values in given.items() if values}


def read(sources: Iterable[str], options: MediaOptions) -> Media:
    """All sources, decoded. Raises ImageError, VideoError or DocumentError for the first that is no good."""
    media = Media()
    for source in sources:
        media += read_one(source, options)
    return media


def read_one(source: str, options: MediaOptions) -> Media:
    """One file, folder of frames, or address."""
    if not source:
        raise InputError("an empty word stands where a file is expected (a variable that is not set?)")
    kind = find_kind(source)
    if kind == "video":
        return Media(videos=(_frames(source, options),))
    if kind == "document":
        return Media(documents=(load_pages(source, parse_pages(options.pages), limits=DOCUMENT_LIMITS),))
    return Media(images=(load_image(source, IMAGE_LIMITS),))


def find_kind(source: str) -> Kind:
    """Folders (of frames) and animated GIFs are videos; what is neither video nor PDF is a picture."""
    if is_url(source):
        return _kind_of_suffix(PurePosixPath(urlsplit(source).path).suffix.lower())
    path = Path(source)
    if not exists(source):
        return _kind_of_suffix(path.suffix.lower())
    if path.is_dir():
        return "video"
    if not path.is_file():  # a pipe would keep whoever reads it waiting
        raise InputError(f"{source} is not a regular file")
    with path.open("rb") as file:
        head = file.read(PDF_HEAD)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "video" if _is_animated(path) else "image"
    return _kind_of_content(head) or _kind_of_suffix(path.suffix.lower())


def is_source(word: str) -> bool:
    """Whether a word of the command line names a file rather than being a question."""
    if is_url(word) or word[:5].lower() == "data:" or exists(word):
        return True
    return not any(letter.isspace() for letter in word) and Path(word).suffix.lower() in MEDIA_SUFFIXES


def exists(word: str) -> bool:
    """Whether there is such a file or folder; a long question is no name of one, nor is an empty one."""
    try:
        return bool(word) and Path(word).exists()
    except (OSError, ValueError):
        return False


def parse_pages(text: str | None) -> list[int] | None:
    """ "1-3,7" as numbers. Raises InputError for anything else."""
    if text is None:
        return None
    pages: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"--pages takes numbers and ranges such as 1-3,7, not {text!r}")
        begin, end = int(first), int(last or first)
        if not 1 <= begin <= end <= begin + DOCUMENT_LIMITS.max_pages:
            raise InputError(
                f"--pages {part!r}: a range goes upwards, over {DOCUMENT_LIMITS.max_pages} at most"
            )
        pages += range(begin, end + 1)
    return pages


def _frames(source: str, options: MediaOptions) -> list[Image.Image]:
    bound = None
    if options.start is not None or options.end is not None:
        bound = (options.start or 0.0, VIDEO_LIMITS.max_seconds if options.end is None else options.end)
    return load_frames(source, num_segments=options.frames, fps=options.fps, bound=bound, limits=VIDEO_LIMITS)


def _kind_of_content(head: bytes) -> Kind | None:
    if b"%PDF-" in head:
        return "document"
    if head[4:8] == b"ftyp":
        return "image" if head[8:12] in STILL_BRANDS else "video"
    is_avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return "video" if is_avi or head.startswith(VIDEO_MARKS) else None


def _kind_of_suffix(suffix: str) -> Kind:
    if suffix in DOCUMENT_SUFFIXES:
        return "document"
    return "video" if suffix in VIDEO_SUFFIXES else "image"


def _is_animated(path: Path) -> bool:
    try:
        with Image.open(path, formats=["GIF"]) as picture:
            return bool(getattr(picture, "is_animated", False))
    except (OSError, ValueError, EOFError, SyntaxError):
        return False  # reading it as a picture says what is wrong
