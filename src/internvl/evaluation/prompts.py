"""Class names and the templates that make texts of them, from files the user can write.

    {"classes": ["cat", ["dog", "hound"]], "templates": ["a photo of a {}."]}

is a whole file. A class is a name, or several names of the same thing. All other fields may be left out:

    name        of the set
    labels      how the data calls each class (folder names, ImageNet's "n01440764"), in the same order
    templates   "{}" or "{c}" stands for the name; without templates those of the language are taken
    prompts     of each class a list of whole texts, used beside the templates (as CuPL, arXiv 2209.03320)
    languages   {"en": {"classes": ..., "templates": ..., "prompts": ...}, "zh": ...} in place of these three
    source      who wrote it

Knows no model and no pictures.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from internvl.errors import InputError, UnknownNameError
from internvl.evaluation.small_files import read_json

MAX_BYTES = 64 << 20
TEMPLATES = "templates"
"""The file of general templates: ImageNet's for English."""
OF_LANGUAGE: tuple[str, ...] = ("classes", "templates", "prompts")
FIELDS: tuple[str, ...] = ("name", "source", "labels", "languages", *OF_LANGUAGE)
_SLOT = re.compile(r"\{c?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrompts:
    """The classes of a set in one language: class i is `labels[i]` to the data, and `names[i]` in texts."""

    name: str
    language: str
    labels: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def texts(self, index: int) -> tuple[str, ...]:
        """All texts of one class: every name in every template, then its own texts."""
        filled = [fill(template, name) for name in self.names[index] for template in self.templates]
        return (*filled, *(self.prompts[index] if self.prompts else ()))

    def find(self, label: str | int) -> int:
        """The class of a label: its number, or its name in the data, or else one of its names; case and
        all but letters and digits do not count ("apple_pie", "ApplePie"). Raises UnknownNameError."""
        if isinstance(label, int):
            if 0 <= label < len(self):
                return label
            raise UnknownNameError(f"{self.name} has classes 0 to {len(self) - 1}, there is no {label}")
        for known in (self.labels, tuple(names[0] for names in self.names)):
            found = [index for index, one in enumerate(known) if _plain(one) == _plain(label)]
            if len(found) == 1:
                return found[0]
        raise UnknownNameError(
            f"{self.name} has no class {label!r}, but {', '.join(self.labels[:5])}, ... "
            f"({len(self)} in all); give the file of classes the data's names as 'labels'"
        )


def fill(template: str, name: str) -> str:
    """A template with its slots replaced; braces in the name stay what they are."""
    return _SLOT.sub(lambda _: name, template)


def open_prompts(source: str | Path, language: str = "en") -> ClassPrompts:
    """The set of a JSON file, or the shipped one of that name (`shipped_sets()` lists them).

    Raises UnknownNameError for a name that is neither, or a language the set does not have; InputError
    naming the field for a file that is none of classes.
    """
    path = Path(source)
    if path.suffix == ".json" or os.path.exists(path):  # noqa: PTH110  # Path's raises for long names
        return parse_prompts(read_json(path, MAX_BYTES), path.stem, language)
    if str(source) not in shipped_sets():
        raise UnknownNameError(
            f"no set of classes is called {str(source)!r}: name a JSON file, or one of "
            f"{', '.join(shipped_sets())}"
        )
    return parse_prompts(_shipped(str(source)), str(source), language)


def shipped_sets() -> tuple[str, ...]:
    """The names of the sets that come with the package."""
    found = (one.name.removesuffix(".json") for one in _folder().iterdir() if one.name.endswith(".json"))
    return tuple(sorted(name for name in found if name != TEMPLATES))


def general_templates(language: str) -> tuple[str, ...]:
    """Templates for names of things: in English CLIP's 80 of ImageNet, in zh, ja, ar and it our own.

    Raises UnknownNameError for other languages.
    """
    known = _shipped(TEMPLATES)["languages"]
    if language not in known:
        raise UnknownNameError(
            f"there are no templates in {language!r}, but in {', '.join(known)}: write some in your file"
        )
    return tuple(known[language])


def make_prompts(
    names: Sequence[str], templates: Sequence[str] | None = None, language: str = "en"
) -> ClassPrompts:
    """Classes from names alone, as `internvl classify` is given them."""
    document: dict[str, Any] = {"classes": list(names)}
    return parse_prompts(
        document if templates is None else {**document, "templates": list(templates)}, "classes", language
    )


def parse_prompts(document: Any, name: str, language: str) -> ClassPrompts:
    """The set in a document of the form above. Raises as `open_prompts`."""
    if not isinstance(document, Mapping):
        raise InputError(f"{name}: classes are an object with 'classes', not a {type(document).__name__}")
    if unknown := [key for key in document if key not in FIELDS]:
        raise InputError(f"{name}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    part = _of_language(document, name, language)
    names = _names(part.get("classes"), f"{name}: 'classes'")
    templates = _texts(part["templates"], f"{name}: 'templates'") if "templates" in part else None
    prompts = _lists(part["prompts"], len(names), f"{name}: 'prompts'") if "prompts" in part else ()
    labels = _labels(document, names, name)
    found = ClassPrompts(
        name=str(document.get("name", name)),
        language=language,
        labels=labels,
        names=names,
        templates=general_templates(language) if templates is None else templates,
        prompts=prompts,
    )
    if without := [template for template in found.templates if not _SLOT.search(template)]:
        raise InputError(f"{name}: the template {without[0]!r} has no {{}} for the name of the class")
    if empty := [labels[index] for index in range(len(found)) if not found.texts(index)]:
        raise InputError(f"{name}: class {empty[0]!r} has no text: neither templates nor prompts")
    return found


def _of_language(document: Mapping[str, Any], name: str, language: str) -> Mapping[str, Any]:
    languages = document.get("languages")
    if languages is None:
        return document
    if not isinstance(languages, Mapping) or any(field in document for field in OF_LANGUAGE):
        raise InputError(f"{name}: 'languages' is an object, and stands in place of {', '.join(OF_LANGUAGE)}")
    if language not in languages:
        raise UnknownNameError(f"{name} has no classes in {language!r}, but in {', '.join(languages)}")
    part = languages[language]
    if not isinstance(part, Mapping) or any(field not in OF_LANGUAGE for field in part):
        raise InputError(f"{name}: language {language!r} is an object of {', '.join(OF_LANGUAGE)}")
    return part


def _labels(document: Mapping[str, Any], names: tuple[tuple[str, ...], ...], name: str) -> tuple[str, ...]:
    """The data's own, or else the English names, whatever the language."""
    languages = document.get("languages") or {}
    if "labels" in document:
        labels = _texts(document["labels"], f"{name}: 'labels'")
    elif "en" in languages:
        english = _of_language(document, name, "en")
        labels = tuple(one[0] for one in _names(english.get("classes"), f"{name}: 'classes'"))
    else:
        labels = tuple(one[0] for one in names)
    if len(labels) != len(names):
        raise InputError(f"{name}: {len(labels)} labels and {len(names)} classes; one label for each class")
    if "labels" in document and len(set(map(_plain, labels))) < len(labels):
        twice = Counter(map(_plain, labels)).most_common(1)[0][0]
        raise InputError(f"{name}: the label {twice!r} stands for more than one class")
    return labels


def _names(value: Any, where: str) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: expected a list of names, got {type(value).__name__} {value!r:.40}")
    return tuple(_texts([one] if isinstance(one, str) else one, where) for one in value)


def _lists(value: Any, num: int, where: str) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, list) or len(value) != num:
        raise InputError(f"{where}: expected a list of texts for each of the {num} classes")
    return tuple(_texts(one, where) if one else () for one in value)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise InputError(f"{where}: expected texts, got {value!r:.60}")
    return tuple(value)


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold())) or text


def _folder() -> Any:
    return files("internvl") / "assets" / "prompts"


def _shipped(name: str) -> Any:
    with as_file(_folder() / f"{name}.json") as path:
        return read_json(path, MAX_BYTES)
