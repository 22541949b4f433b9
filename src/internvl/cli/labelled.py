"""Pictures and videos with their classes, as they lie on the user's disk: class folders, or rows with labels.

Knows files and labels; opens no picture and knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from internvl.cli.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from internvl.data.media import listed, resolve
from internvl.data.sources import FORMATS, Source, open_source
from internvl.errors import InputError, UnknownNameError
from internvl.evaluation.prompts import ClassPrompts
from internvl.evaluation.zero_shot import Label

FOLDER = "folder"
"""The column in which class folders have their name."""


class ClassFolders:
    """`ROOT/CLASS/.../NAME`: pictures and videos by path, each with the name of its class folder."""

    def __init__(self, root: Path) -> None:
        self.name = root.name
        self._files = tuple(
            file
            for folder in class_folders(root)
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        )
        self._root = root

    def __len__(self) -> int:
        return len(self._files)

    def row(self, index: int) -> Mapping[str, Any]:
        file = self._files[index].relative_to(self._root)
        return {"image": str(file), FOLDER: file.parts[0]}

    def where(self, index: int) -> str:
        return str(self._files[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Rows with a picture or video, and a label in `column`."""

    source: Source
    root: Path
    column: str

    def __len__(self) -> int:
        return len(self.source)

    def media(self, index: int) -> Any:
        """What is to be opened. Raises InputError for a row without exactly one."""
        found = listed(self.source.row(index), "image", "images", "video", "videos", "file_name")
        if len(found) != 1:
            raise InputError(f"a row has one picture or video to be classified, this has {len(found)}")
        return resolve(found[0], self.root)

    def labels(self, rows: Sequence[int], prompts: ClassPrompts) -> list[Label]:
        """The classes of rows; a list of labels is a set of classes.

        Raises InputError for a row that is broken or has no label, UnknownNameError for an unknown one.
        """
        find = cache(lambda label: _find(label, prompts, is_number=self.column != FOLDER))
        return [self._label(row, find) for row in rows]

    def _label(self, index: int, find: Any) -> Label:
        row = self.source.row(index)
        if self.column not in row:
            raise InputError(
                f"{self.source.where(index)} has no {self.column!r}, but {', '.join(map(str, row))}: "
                "name the column of the labels with --label"
            )
        value = row[self.column]
        if isinstance(value, list | tuple):
            return frozenset(find(_checked(one, self.source.where(index))) for one in value)
        found: int = find(_checked(value, self.source.where(index)))
        return found


def open_labelled(path: Path, column: str) -> Labelled:
    """A folder of class folders, or a file of rows. Raises InputError for what is neither, or empty."""
    if path.is_dir() and class_folders(path) and not _has_rows(path):
        found: Source = ClassFolders(path)
        if not len(found):
            raise InputError(f"the {len(class_folders(path))} folders in {path} hold no pictures or videos")
        return Labelled(source=found, root=path, column=FOLDER)
    root = path if path.is_dir() else path.parent
    return Labelled(source=open_source(path), root=root, column=column)


def class_folders(root: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones are left out."""
    return sorted(one for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))


def _has_rows(folder: Path) -> bool:
    return any(file.suffix.lower() in FORMATS for file in folder.iterdir() if file.is_file())


def _find(label: str | int, prompts: ClassPrompts, *, is_number: bool) -> int:
    """The class of a label; in rows, digits that are no label are a class's number."""
    try:
        return prompts.find(label)
    except UnknownNameError:
        if not (is_number and isinstance(label, str) and label.isascii() and label.isdigit()):
            raise
    return prompts.find(int(label))


def _checked(value: Any, where: str) -> str | int:
    value = value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where}: a label is a name, a number from 0, or a list of them, not {value!r:.40}")
    return value
