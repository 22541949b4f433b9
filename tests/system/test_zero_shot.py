"""Zero-shot classification by the command line, with the small dual encoder and photos of scikit-image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import skimage
from PIL import Image

from internvl.cli.main import DONE, main

PHOTOS: Mapping[str, tuple[str, ...]] = {
    "cat": ("chelsea.png",),
    "motorcycle": ("motorcycle_left.png", "motorcycle_right.png"),
    "rocket": ("rocket.jpg",),
    "woman": ("astronaut.png",),
}
CHINESE = ("猫", "摩托车", "火箭", "女人")
PARTS = (0.0, 0.1, 0.2)
"""Where a part of four fifths of a photo begins, from its left and its top."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class, with three parts of each of its photos."""
    root = tmp_path_factory.mktemp("photos")
    for name, files in PHOTOS.items():
        (root / name).mkdir()
        for file in files:
            photo = Image.open(Path(skimage.__file__).parent / "data" / file).convert("RGB")
            for number, share in enumerate(PARTS):
                left, top = round(share * photo.width), round(share * photo.height)
                box = (left, top, left + round(0.8 * photo.width), top + round(0.8 * photo.height))
                photo.crop(box).save(root / name / f"{Path(file).stem}-{number}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["C", "G"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_nano_c_names_what_it_has_read_about(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, language: str
) -> None:
    """Chance is a quarter, which is what is left with a broken tower, pool, tokenizer or template."""
    names = {"en": list(PHOTOS), "zh": list(CHINESE)}[language]
    classes = tmp_path / "classes.json"
    classes.write_text(
        json.dumps({"name": "photos", "labels": list(PHOTOS), "languages": {language: {"classes": names}}})
    )
    words = ("eval", "zero-shot", "nano-c", str(photos), "--classes", str(classes), "--json")
    capsys.readouterr()
    assert main((*words, "--mode", mode, "--language", language)) == DONE
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["classes"], found["failed"]) == (15, 4, [])
    assert found["scores"]["acc1"] >= 0.8, found
    assert found["scores"]["mean_per_class"] >= 0.7, found
