"""Files of classes: what ships is whole, what users write is read or refused with the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl.errors import InputError, UnknownNameError
from internvl.evaluation.prompts import (
    ClassPrompts,
    fill,
    general_templates,
    make_prompts,
    open_prompts,
    parse_prompts,
    shipped_sets,
)

LANGUAGES = ("en", "zh", "ja", "ar", "it")
SIZES = {
    "cifar10": 10,
    "cifar100": 100,
    "dtd": 47,
    "eurosat": 10,
    "fer2013": 7,
    "flowers102": 102,
    "food101": 101,
    "mnist": 10,
    "pets": 37,
    "rendered-sst2": 2,
    "stl10": 10,
    "ucf101": 101,
}


def read(**document: Any) -> ClassPrompts:
    return parse_prompts(document, "mine", document.pop("language", "en"))


def test_shipped_sets_are_those() -> None:
    assert dict.fromkeys(shipped_sets()) == dict.fromkeys(sorted(SIZES))


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_set_is_whole(name: str) -> None:
    prompts = open_prompts(name)
    assert len(prompts) == len(prompts.labels) == SIZES[name]
    texts = [prompts.texts(index) for index in range(len(prompts))]
    assert len(set(texts)) == len(texts)
    assert all(len(set(one)) == len(one) and "{" not in "".join(one) for one in texts)
    assert [prompts.find(label) for label in prompts.labels] == list(range(len(prompts)))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "mnist", "eurosat"])
def test_five_languages_name_the_same_classes(name: str, language: str) -> None:
    english, other = open_prompts(name), open_prompts(name, language)
    assert other.labels == english.labels
    assert len(set(other.names)) == len(other) == len(english)
    assert other.texts(0) != english.texts(0) or language == "en"


@pytest.mark.parametrize("language", LANGUAGES)
def test_templates_of_a_language(language: str) -> None:
    templates = general_templates(language)
    assert len(set(templates)) == len(templates) >= 30
    assert all(template.count("{}") == 1 for template in templates)


def test_the_templates_of_imagenet() -> None:
    templates = general_templates("en")
    assert (len(templates), templates[0], templates[-1]) == (
        80,
        "a bad photo of a {}.",
        "a tattoo of the {}.",
    )


def test_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "farm.json"
    document = {"classes": ["cow", ["hen", "rooster"]], "templates": ["a {c}.", "my {}!"]}
    path.write_text(json.dumps(document), encoding="utf-8-sig")
    prompts = open_prompts(path)
    assert (prompts.name, prompts.labels) == ("farm", ("cow", "hen"))
    assert prompts.texts(1) == ("a hen.", "my hen!", "a rooster.", "my rooster!")


def test_texts_of_a_class_stand_beside_the_templates() -> None:
    prompts = read(classes=["cow", "hen"], templates=["a {}."], prompts=[["It gives milk."], []])
    assert [prompts.texts(index) for index in (0, 1)] == [("a cow.", "It gives milk."), ("a hen.",)]
    alone = read(classes=["cow"], templates=[], prompts=[["It gives milk."]])
    assert alone.texts(0) == ("It gives milk.",)


def test_without_templates_those_of_the_language_are_taken() -> None:
    prompts = read(languages={"zh": {"classes": ["牛"]}}, language="zh")
    assert prompts.templates == general_templates("zh")
    assert make_prompts(["cow"]).texts(0)[0] == "a bad photo of a cow."
    assert make_prompts(["cow"], ["one {}"]).texts(0) == ("one cow",)


def test_braces_of_a_name_are_left_alone() -> None:
    assert fill("a {} or {c}", "{} {c} {0.__class__}") == "a {} {c} {0.__class__} or {} {c} {0.__class__}"


def test_labels_are_found_as_people_write_them() -> None:
    ucf, flowers, food = open_prompts("ucf101"), open_prompts("flowers102"), open_prompts("food101")
    assert ucf.find("ApplyEyeMakeup") == ucf.find("apply_eye_makeup") == ucf.find(0) == 0
    assert flowers.find("1") == flowers.find("pink primrose") == 0
    assert flowers.find(1) == 1
    assert food.find("apple_pie") == 0
    assert open_prompts("eurosat", "ja").find("AnnualCrop") == 7
    assert read(classes=["crane", "crane"], labels=["n1", "n2"]).find("n2") == 1


@pytest.mark.parametrize("label", ["apple", "", -1, 10, "1"])
def test_labels_that_are_unknown(label: str | int) -> None:
    with pytest.raises(UnknownNameError, match=r"CIFAR-10 has"):
        open_prompts("cifar10").find(label)


def test_a_name_of_two_classes_is_no_label() -> None:
    with pytest.raises(UnknownNameError, match="crane"):
        read(classes=["crane", "crane"], labels=["n1", "n2"]).find("crane")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "'classes': expected a list"),
        ({"classes": []}, "'classes': expected a list"),
        ({"classes": {"a": 1}}, "expected a list of names, got dict"),
        ({"classes": ["a", 1]}, "expected texts, got 1"),
        ({"classes": ["a", " "]}, "expected texts"),
        ({"classes": ["a"], "template": ["{}"]}, "unknown field 'template'; known are"),
        ({"classes": ["a"], "templates": ["a photo"]}, "'a photo' has no {} for the name"),
        ({"classes": ["a"], "templates": []}, "class 'a' has no text"),
        ({"classes": ["a"], "templates": "a {}"}, "'templates': expected texts"),
        ({"classes": ["a"], "prompts": [["x"], ["y"]]}, "each of the 1 classes"),
        ({"classes": ["a"], "labels": ["n1", "n2"]}, "2 labels and 1 classes"),
        ({"classes": ["a", "b"], "labels": ["n_1", "N1"]}, "'n1' stands for more than one"),
        ({"classes": ["a"], "languages": {"en": {"classes": ["a"]}}}, "stands in place of"),
        ({"languages": {"en": ["a"]}}, "is an object of classes"),
        ({"languages": []}, "'languages' is an object"),
        ({"languages": {"en": {"classes": ["a"]}, "zh": 5}, "language": "zh"}, "is an object of classes"),
        ({"languages": {"zh": {"classes": ["a"]}, "en": 5}, "language": "zh"}, "is an object of classes"),
    ],
)
def test_what_is_wrong_is_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**document)


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="cifar10, cifar100"):
        open_prompts("imagenet")
    with pytest.raises(UnknownNameError, match="cifar10, cifar100"):
        open_prompts("x" * 300)
    with pytest.raises(UnknownNameError, match="but in en, zh"):
        open_prompts("cifar10", "fr")
    with pytest.raises(UnknownNameError, match="no templates in 'fr'"):
        parse_prompts({"languages": {"fr": {"classes": ["chat"]}}}, "mine", "fr")
    with pytest.raises(InputError, match="cannot read"):
        open_prompts(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="an object with 'classes'"):
        open_prompts(tmp_path / "list.json")
    (tmp_path / "broken.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not JSON"):
        open_prompts(tmp_path / "broken.json")
