"""Retrieval sets as they lie on the user's disk: pictures or videos, and the texts that describe them.

    Karpathy's JSON     dataset_coco.json, dataset_flickr30k.json: splits and sentences (arXiv 1412.2306)
    COCO's JSON         "images" and "annotations": COCO, COCO-CN as published with InternVL
    XTD's JSON          "image_paths" and "annotations", one text each
    rows                JSONL or a JSON array: "image" or "video", and "caption", "captions", or lists by
                        language; MSR-VTT's 1k-A list is one
    lines               name, comma, tab or space, text; "a.jpg#2" means a.jpg: Flickr30K, Flickr30K-CN
    a folder            one of these under its usual name, or the releases of XTD10 and COCO-CN

Knows names and text; opens no picture. Shape letters: I pictures, T texts.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias

from internvl.errors import InputError
from internvl.evaluation.small_files import parse_json, read_json, read_text
from internvl.processing.conversation import shorten

MAX_BYTES = 1 << 30
Pair: TypeAlias = tuple[str, str]
"""A picture's name in the file, and a text."""

ALIASES: Mapping[str, str] = {"cn": "zh", "jp": "ja"}
"""Languages as the published evaluation calls them."""
FILES: Mapping[str, tuple[str, ...]] = {
    "en": (
        "flickr30k_{split}_karpathy.txt",
        "coco_{split}_karpathy.json",
        "coco_karpathy_{split}.json",
        "dataset_coco.json",
        "dataset_flickr30k.json",
        "dataset_flickr8k.json",
        "multilingual_mscoco_captions-en.json",
    ),
    "zh": (
        "flickr30k_cn_{split}.txt",
        "coco-cn_{split}.json",
        "coco_cn_{split}.json",
        "multilingual_mscoco_captions-zh.json",
    ),
    "ja": ("multilingual_mscoco_captions-jp.json", "multilingual_mscoco_captions-ja.json"),
}
"""Usual names in a folder, by language; others are multilingual_mscoco_captions-LANGUAGE.json."""
FOLDERS: tuple[str, ...] = (
    "",
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "val2014",
    "train2014",
    "videos",
    "video",
)
"""Where pictures are looked for, from the root or from the folder above it."""
SUFFIXES: tuple[str, ...] = ("", ".jpg", ".mp4")
"""Tried after names without one."""
_NAMED = re.compile(
    r"(\S[^\t]*?\.(?:jpe?g|png|webp|mp4|avi|webm|mkv))(?:#\S*)?[\t, ]\s*(\S.*)", re.IGNORECASE
)
_NUMBERED = re.compile(r"([^\s,#]+)(?:#\S*)?[\t ]\s*(\S.*)")
_ID = int | float | str
_KINDS: Mapping[object, str] = {dict: "an object", list: "a list", str: "text", _ID: "a number or text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalSet:
    """I files (pictures or videos) and T texts; text t describes file `image_of_text[t]`."""

    name: str
    files: tuple[Path, ...]
    texts: tuple[str, ...]
    image_of_text: tuple[int, ...]


def read_retrieval_set(
    path: Path, *, split: str = "test", language: str | None = None, root: Path | None = None
) -> RetrievalSet:
    """The set in a file or folder of the kinds above.

    `split` chooses among several in a file, `language` ("en" by default; "cn" and "jp" are understood)
    among lists of texts. Pictures lie under `root`, by default the folder of the file. Raises InputError for
    what cannot be read, a text that is empty, and pictures that are missing, naming how many and the first.
    """
    code = ALIASES.get(language or "en", language or "en")
    if path.is_dir():
        found, pairs = _open_folder(path, split, code)
    else:
        found, pairs = path, _open_file(path, split, language and code)
    texts = [(name.strip(), text.strip()) for name, text in pairs]
    if not texts or not all(name and text for name, text in texts):
        raise InputError(f"{found}: holds no pair of a picture and a text, or one of them is empty")
    names = list(dict.fromkeys(name for name, _ in texts))
    place_of = {name: place for place, name in enumerate(names)}
    return RetrievalSet(
        name=found.stem,
        files=tuple(_find(names, root or (path if path.is_dir() else path.parent))),
        texts=tuple(text for _, text in texts),
        image_of_text=tuple(place_of[name] for name, _ in texts),
    )


def _open_folder(folder: Path, split: str, code: str) -> tuple[Path, list[Pair]]:
    """The file that was found, and its pairs."""
    if (folder / "test_image_names.txt").is_file():
        return _xtd10(folder, code)
    if (folder / "imageid.human-written-caption.txt").is_file():
        return _coco_cn(folder, split)
    known = [
        *(name.format(split=split) for name in FILES.get(code, ())),
        f"multilingual_mscoco_captions-{code}.json",
    ]
    places = [place / name for place in (folder, folder / "annotations") for name in dict.fromkeys(known)]
    found = [place for place in places if place.is_file()]
    if len(found) != 1:
        what = (
            f"{', '.join(place.name for place in found)} in it: name one"
            if found
            else (f"none of {', '.join(dict.fromkeys(known))} in it: name the file")
        )
        raise InputError(f"{folder} as a retrieval set in {code!r}, split {split!r}, has {what}")
    return found[0], _open_file(found[0], split, code)


def _xtd10(folder: Path, code: str) -> tuple[Path, list[Pair]]:
    """The release of XTD10 (arXiv 2012.05107): line i of every language describes picture i."""
    names = _lines(folder / "test_image_names.txt")
    codes = [code, *(ours for ours, theirs in ALIASES.items() if theirs == code)]
    places = [
        place / f"test_1kcaptions_{one}.txt"
        for one in codes
        for place in (folder, folder.parent / "STAIR", folder.parent / "MIC")
    ]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{folder} has no texts in {code!r} (test_1kcaptions_{code}.txt)")
    texts = _lines(found)
    if len(texts) != len(names):
        raise InputError(f"{found} has {len(texts)} texts for {len(names)} pictures")
    return found, list(zip(names, texts, strict=True))


def _coco_cn(folder: Path, split: str) -> tuple[Path, list[Pair]]:
    """The release of COCO-CN (arXiv 1805.08661): texts people wrote of the split's pictures."""
    path = folder / "imageid.human-written-caption.txt"
    names = frozenset(_lines(folder / f"coco-cn_{split}.txt"))
    return path, [pair for pair in _from_lines(path) if pair[0] in names]


def _open_file(path: Path, split: str, code: str | None) -> list[Pair]:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return list(_from_lines(path))
    if suffix == ".jsonl":
        rows = enumerate(read_text(path, MAX_BYTES).split("\n"), start=1)
        return [
            pair
            for number, line in rows
            if line.strip()
            for pair in _from_row(parse_json(line, f"{path}, line {number}"), f"{path}, line {number}", code)
        ]
    if suffix != ".json":
        raise InputError(f"{path}: a retrieval set is .json, .jsonl, .txt or a folder")
    document = read_json(path, MAX_BYTES)
    if isinstance(document, list):
        rows = enumerate(document)
        return [pair for number, row in rows for pair in _from_row(row, f"{path}, row {number}", code)]
    return _from_object(_typed(document, dict, str(path)), str(path), split)


def _from_object(document: Mapping[str, Any], where: str, split: str) -> list[Pair]:
    if "image_paths" in document:
        names, texts = (
            [one for _, one in _entries(document, key, str, where)] for key in ("image_paths", "annotations")
        )
        if len(names) != len(texts):
            raise InputError(f"{where}: {len(names)} pictures and {len(texts)} texts")
        return list(zip(names, texts, strict=True))
    if "annotations" in document:
        return _from_coco(document, where)
    return _from_karpathy(document, where, split)


def _from_coco(document: Mapping[str, Any], where: str) -> list[Pair]:
    name_of = {
        _field(image, "id", _ID, place): _field(image, "file_name", str, place)
        for place, image in _entries(document, "images", dict, where)
    }
    pairs = []
    for place, one in _entries(document, "annotations", dict, where):
        if (id := _field(one, "image_id", _ID, place)) not in name_of:
            raise InputError(f"{place}: image_id is {id!r:.40}, which no image has")
        pairs.append((name_of[id], _field(one, "caption", str, place)))
    return pairs


def _from_karpathy(document: Mapping[str, Any], where: str, split: str) -> list[Pair]:
    images = list(_entries(document, "images", dict, where))
    splits = {_field(image, "split", str, place) for place, image in images}
    if split not in splits:
        raise InputError(f"{where} has no split {split!r}, but {', '.join(sorted(splits))}")
    return [
        (_karpathy_name(image, place), _field(sentence, "raw", str, inner))
        for place, image in images
        if image["split"] == split
        for inner, sentence in _entries(image, "sentences", dict, place)
    ]


def _karpathy_name(image: Mapping[str, Any], where: str) -> str:
    """COCO's pictures lie in two folders, the others name none."""
    name = _field(image, "filename", str, where)
    return f"{_field(image, 'filepath', str, where)}/{name}" if image.get("filepath") else name


def _entries(owner: Mapping[str, Any], field: str, kind: type, where: str) -> Iterator[tuple[str, Any]]:
    """The entries of a list in a JSON object, each with its place; errors as `_typed`."""
    for number, entry in enumerate(_field(owner, field, list, where)):
        place = f"{where}: {field}[{number}]"
        yield place, _typed(entry, kind, place)


def _field(owner: Mapping[str, Any], field: str, kind: type | UnionType, where: str) -> Any:
    return _typed(owner.get(field), kind, f"{where}: {field}")


def _typed(value: Any, kind: type | UnionType, where: str) -> Any:
    """The JSON value at a place. Raises InputError for one of another type."""
    if not isinstance(value, kind):
        found = "missing or null" if value is None else f"{value!r:.40}"
        raise InputError(f"{where} is {found}, expected {_KINDS[kind]}: no known form of captions")
    return value


def _from_row(row: Any, where: str, code: str | None) -> Iterator[Pair]:
    fields = row if isinstance(row, Mapping) else {}
    name = next((fields[key] for key in ("image", "video", "file_name") if key in fields), None)
    keys = ("caption", "captions", "text", "en") if code is None else (code, "caption", "captions", "text")
    value = next((fields[key] for key in keys if key in fields), None)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(name, str) or not isinstance(texts, list) or not _are_texts(texts):
        raise InputError(f"{where}: a row has 'image' or 'video', and texts as {', '.join(map(repr, keys))}")
    for text in texts:
        yield name, text


def _are_texts(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(one, str) for one in values)


def _from_lines(path: Path) -> Iterator[Pair]:
    for number, line in enumerate(read_text(path, MAX_BYTES).split("\n"), start=1):
        text = line.strip()
        if not text or (number == 1 and re.fullmatch(r"image(_name)?[\t,]\s*caption.*", text, re.IGNORECASE)):
            continue
        match = _NAMED.fullmatch(text) or _NUMBERED.fullmatch(text)
        if match is None:
            raise InputError(f"{path}, line {number}: expected a picture's name and its text, got {text:.60}")
        yield match[1], match[2]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path, MAX_BYTES).strip().split("\n")]


def _find(names: Sequence[str], root: Path) -> Iterable[Path]:
    """Every picture, looked for under the root and the folder above it."""
    found = [_find_one(name, root) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} pictures are not under {root} (or {', '.join(FOLDERS[1:])} "
            f"there), the first is {shorten(missing[0])}; name the folder they lie in"
        )
    return [path for path in found if path is not None]


def _find_one(name: str, root: Path) -> Path | None:
    """Its path; None also for what no file can be called, such as names over 255 bytes."""
    suffixes = ("",) if Path(name).suffix else SUFFIXES
    for top in (root, root.parent):
        for folder in FOLDERS:
            for suffix in suffixes:
                path = top / folder / f"{name}{suffix}"
                # Those of Path raise for names that are too long and for places where one may not look.
                is_frames = suffixes == SUFFIXES and os.path.isdir(path)  # noqa: PTH112
                if is_frames or os.path.isfile(path):  # noqa: PTH113
                    return path
    return None
