"""A folder of pictures with captions: metadata.jsonl or .csv, captions.txt, or a text file beside each
picture.

Knows names and text; opens no picture.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from internvl.data.offsets import as_offsets, index_lines, open_file
from internvl.data.source_json import JsonLines
from internvl.data.source_table import TableRows
from internvl.errors import InputError

PICTURES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
)
MAX_CAPTION_BYTES = 1 << 20


class Described:
    """metadata.jsonl or metadata.csv: rows that name their picture in "file_name" (or "image").

    "file_name" becomes "image", and "text" becomes "caption".
    """

    def __init__(self, path: Path) -> None:
        self._rows = JsonLines(path) if path.suffix == ".jsonl" else TableRows(path)
        self.name = path.parent.name

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        row = dict(self._rows.row(index))
        for theirs, ours in (("file_name", "image"), ("text", "caption")):
            if theirs in row and ours not in row:
                row[ours] = row.pop(theirs)
        return row

    def where(self, index: int) -> str:
        return self._rows.where(index)


class CaptionLines:
    """Lines of a picture's name and its caption with a tab or comma between them; "a.jpg#2" means a.jpg."""

    def __init__(self, path: Path) -> None:
        self.name = path.parent.name
        self.offsets = index_lines(path)

    def __len__(self) -> int:
        return len(self.offsets)

    def row(self, index: int) -> Mapping[str, Any]:
        try:
            line = self.offsets.read(index).decode("utf-8-sig")
        except (InputError, UnicodeDecodeError) as reason:
            raise InputError(f"{self.where(index)}: {reason}") from reason
        name, _, caption = line.partition("\t" if "\t" in line else ",")
        if not name.strip() or not caption.strip():
            raise InputError(
                f"{self.where(index)}: expected a picture's name, a tab or comma, and its caption"
            )
        return {"image": re.sub(r"#\d+$", "", name.strip()), "caption": caption.strip()}

    def where(self, index: int) -> str:
        return f"{self.offsets.path}, line {self.offsets.line(index)}"


class Pictures:
    """Pictures of a folder and its subfolders, by name. Hidden files and linked folders are left out.

    The names are kept as one run of bytes with offsets.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = folder.name, folder
        names, starts = bytearray(), array("Q", [0])
        for picture in _pictures(folder):
            names += os.fsencode(picture)
            starts.append(len(names))
        self._names, self._starts = bytes(names), as_offsets(starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def row(self, index: int) -> Mapping[str, Any]:
        return {"image": self.picture(index)}

    def where(self, index: int) -> str:
        return str(self._folder / self.picture(index))

    def picture(self, index: int) -> str:
        """Its path from the folder."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} pictures, there is no picture {index}")
        return os.fsdecode(self._names[int(self._starts[index]) : int(self._starts[index + 1])])


class Sidecars:
    """`Pictures`, each with its caption in a .txt file of its name. One without text is a broken row."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder, self._pictures = folder.name, folder, Pictures(folder)

    def __len__(self) -> int:
        return len(self._pictures)

    def row(self, index: int) -> Mapping[str, Any]:
        picture = self._pictures.picture(index)
        text = (self._folder / picture).with_suffix(".txt")
        if not text.is_file():
            raise InputError(f"{self.where(index)}: no caption beside it ({text.name})")
        with open_file(text) as file:
            content = file.read(MAX_CAPTION_BYTES + 1)
        if len(content) > MAX_CAPTION_BYTES:
            raise InputError(f"{text} is over {MAX_CAPTION_BYTES} bytes: no caption")
        try:
            caption = content.decode("utf-8-sig").strip()
        except UnicodeDecodeError as reason:
            raise InputError(f"{text} is not UTF-8: {reason}") from reason
        if not caption:
            raise InputError(f"{text} is empty")
        return {"image": picture, "caption": caption}

    def where(self, index: int) -> str:
        return self._pictures.where(index)


def find_captions(folder: Path) -> Described | CaptionLines | None:
    """The rows of the one file of captions that the folder has under a known name, if it has one."""
    known = ("metadata.jsonl", "metadata.csv", "captions.txt")
    found = [folder / name for name in known if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has {' and '.join(path.name for path in found)}; name the one to read")
    if not found:
        return None
    if found[0].name != "captions.txt":
        return Described(found[0])
    with open_file(found[0]) as file:
        first = file.readline(1000).decode("latin-1").strip().lower()
    return Described(found[0]) if re.split("[,\t]", first) == ["image", "caption"] else CaptionLines(found[0])


def _pictures(folder: Path) -> Iterator[str]:
    """Paths from `folder`, sorted folder by folder. Hidden files and linked folders are left out."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() in PICTURES and not name.startswith("."):
                yield str(path.relative_to(folder))
