"""`CLIPImageProcessor` against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from internvl.compat import CLIPImageProcessor
from internvl.errors import ConfigError, InputError
from tests.compat.conftest import noise


@pytest.mark.parametrize("size", [(70, 70), (101, 70), (70, 133), (20, 31)])
def test_equals_transformers(golden_dir: Path, size: tuple[int, int]) -> None:
    folder, image = golden_dir / "internvit_300m", noise(*size)
    ours = CLIPImageProcessor.from_pretrained(folder)
    theirs = CLIPImageProcessorPil.from_pretrained(folder)
    expected = theirs(images=image, return_tensors="pt").pixel_values
    torch.testing.assert_close(ours(images=image, return_tensors="pt").pixel_values, expected)
    assert (ours.image_mean, ours.image_std) == (list(theirs.image_mean), list(theirs.image_std))
    assert ours.crop_size == {"height": 70, "width": 70}


def test_several_pictures_and_arrays(golden_dir: Path) -> None:
    processor = CLIPImageProcessor.from_pretrained(golden_dir / "internvit_300m")
    images = [noise(90, 70), noise(70, 90, seed=1)]
    both = processor(images=images, return_tensors="pt")
    assert both.pixel_values.shape == (2, 3, 70, 70)
    assert torch.equal(both["pixel_values"][1:], processor.preprocess(images[1]).pixel_values)
    array = processor([np.asarray(image) for image in images], return_tensors="np").pixel_values
    assert np.array_equal(array, both.pixel_values.numpy())
    assert both.to(torch.bfloat16).pixel_values.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 56, "crop_size": 56},
        {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
        {"crop_size": 56, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    ],
)
def test_forms_of_the_file(tmp_path: Path, fields: dict) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    assert processor(noise(60, 80)).pixel_values.shape == (1, 3, 56, 56)
    assert processor.image_mean == list(fields.get("image_mean", (0.485, 0.456, 0.406)))


def test_without_a_file(tmp_path: Path, golden_dir: Path) -> None:
    config = (golden_dir / "internvit_300m" / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    assert CLIPImageProcessor.from_pretrained(tmp_path).crop_size["height"] == 70


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": 56, "do_center_crop": False}, "do_center_crop is false"),
        ({"crop_size": 56, "resample": 2}, "resample"),
        ({"crop_size": 56, "size": 70}, "size"),
        ({"crop_size": {"height": 56, "width": 70}}, "square"),
        ({"crop_size": -1}, "crop_size"),
    ],
)
def test_other_steps_are_refused(tmp_path: Path, fields: dict, message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=message):
        CLIPImageProcessor.from_pretrained(tmp_path)


def test_wrong_calls() -> None:
    with pytest.raises(InputError, match="at least one"):
        CLIPImageProcessor(56)([])
    with pytest.raises(InputError, match="return_tensors"):
        CLIPImageProcessor(56)(noise(56, 56), return_tensors="tf")
