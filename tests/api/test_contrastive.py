"""Pictures and texts in one space: batches, fits, what is refused, and models that are half of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import internvl
from internvl import ContrastiveModel
from internvl.api.contrastive import TextModel
from internvl.errors import ConfigError, ImageError, InputError, PromptError
from internvl.models.dual_encoder import DualEncoder, TextEncoder
from internvl.processing.colour import RELEASED_POLICY
from internvl.processing.image import ImageLimits
from tests.api.conftest import noise

TEXTS = ("a red panda", "一张熊猫的照片", "the car is white and the sky is blue")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def contrastive(golden_dir: Path) -> ContrastiveModel:
    loaded = internvl.load(golden_dir / "internvl_14b")
    assert isinstance(loaded, ContrastiveModel)
    return loaded


@pytest.fixture(scope="module")
def alone(contrastive: ContrastiveModel) -> ContrastiveModel:
    """InternVL-C alone, with the same weights."""
    encoder = DualEncoder(replace(contrastive.config, num_queries=0))
    own = encoder.state_dict().keys()
    found = contrastive.encoder.state_dict().items()
    encoder.load_state_dict({name: tensor for name, tensor in found if name in own})
    return ContrastiveModel(encoder, contrastive.processor)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [noise(120, 60, 1), noise(84, 84, 2), noise(60, 200, 3)]


@pytest.mark.parametrize("mode", ["C", "G"])
def test_a_batch_equals_each_picture_alone(
    contrastive: ContrastiveModel, pictures: list[Image.Image], mode: Any
) -> None:
    together = contrastive.embed_images(pictures, mode)
    assert together.shape == (3, 56)
    torch.testing.assert_close(contrastive.embed_images(pictures, mode, batch=1), together, **CLOSE)
    torch.testing.assert_close(contrastive.embed_images(pictures[2], mode)[0], together[2], **CLOSE)
    prepared = contrastive.prepare(pictures)
    torch.testing.assert_close(contrastive.embed_images(prepared, mode), together, **CLOSE)
    unit = contrastive.embed_images(pictures, mode, normalize=True)
    torch.testing.assert_close(unit, together / together.norm(dim=1, keepdim=True), **CLOSE)


def test_texts_of_a_batch_do_not_influence_each_other(contrastive: ContrastiveModel) -> None:
    together = contrastive.embed_texts(TEXTS)
    torch.testing.assert_close(contrastive.embed_texts(TEXTS, batch=2), together, **CLOSE)
    torch.testing.assert_close(contrastive.embed_texts(TEXTS[1])[0], together[1], **CLOSE)
    assert not torch.allclose(contrastive.embed_texts(TEXTS, prefix=""), together)
    norms = contrastive.embed_texts(list(TEXTS), normalize=True).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(3))


def test_fits(contrastive: ContrastiveModel, pictures: list[Image.Image]) -> None:
    squashed, cropped = (contrastive.prepare(pictures, fit=fit) for fit in ("squash", "crop"))
    assert squashed.shape == cropped.shape == (3, 3, 84, 84)
    assert torch.equal(squashed[1], cropped[1])
    assert not torch.equal(squashed[0], cropped[0])
    # What lies beside the centre square is not seen by "crop".
    pixels = np.array(pictures[0])
    pixels[:, :20] = 0
    changed = Image.fromarray(pixels)
    assert torch.equal(contrastive.prepare(changed, fit="crop")[0], cropped[0])
    assert not torch.equal(contrastive.prepare(changed)[0], squashed[0])


def test_logits_are_scaled_cosines(contrastive: ContrastiveModel, pictures: list[Image.Image]) -> None:
    logits = contrastive.logits(pictures, list(TEXTS), "G")
    cosines = (
        contrastive.embed_images(pictures, "G", normalize=True)
        @ contrastive.embed_texts(TEXTS, normalize=True).T
    )
    torch.testing.assert_close(logits, contrastive.encoder.logit_scale.exp() * cosines, atol=1e-4, rtol=1e-4)


def test_matches_of_a_batch(contrastive: ContrastiveModel, pictures: list[Image.Image]) -> None:
    together = contrastive.match(pictures, TEXTS)
    assert together.shape == (3,)
    assert ((together > 0) & (together < 1)).all()
    torch.testing.assert_close(contrastive.match(pictures, TEXTS, batch=2), together, **CLOSE)
    torch.testing.assert_close(contrastive.match(pictures[1], TEXTS[1]), together[1:2], **CLOSE)


def test_captions_of_one_and_of_several(
    contrastive: ContrastiveModel, pictures: list[Image.Image], tmp_path: Path
) -> None:
    together = contrastive.caption(pictures)
    assert len(together) == 3
    path = tmp_path / "a.png"
    pictures[1].save(path)
    assert contrastive.caption(path) == contrastive.caption(str(path)) == together[1]
    assert contrastive.caption([path], batch=1) == together[1:2]
    short = contrastive.caption(pictures[1], num_beams=1, min_new_tokens=0, max_new_tokens=1)
    assert len(contrastive.processor.tokenizer.encode(short, bos=False).ids) <= 2
    assert contrastive.caption(pictures[1], prompt="Chinese caption:") != together[1]


def test_half_precision(contrastive: ContrastiveModel, golden_dir: Path) -> None:
    half = internvl.load(golden_dir / "internvl_14b", dtype="bfloat16")
    assert isinstance(half, ContrastiveModel)
    found = half.logits(noise(84, 84), TEXTS, "G")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrastive.logits(noise(84, 84), TEXTS, "G"), atol=0.5, rtol=0.1)
    assert isinstance(half.caption(noise(84, 84)), str)


def test_the_text_side_alone(contrastive: ContrastiveModel) -> None:
    encoder = TextEncoder(contrastive.config)
    own = encoder.state_dict().keys()
    weights = contrastive.encoder.state_dict().items()
    encoder.load_state_dict({name: tensor for name, tensor in weights if name in own})
    texts = TextModel(encoder, contrastive.processor)
    torch.testing.assert_close(texts.embed_texts(TEXTS), contrastive.embed_texts(TEXTS))
    assert texts.to(torch.float64).embed_texts(TEXTS[0]).dtype == torch.float64


def test_internvl_c_alone(alone: ContrastiveModel, contrastive: ContrastiveModel) -> None:
    picture = noise(84, 84)
    torch.testing.assert_close(alone.embed_images(picture), contrastive.embed_images(picture))
    torch.testing.assert_close(alone.embed_texts(TEXTS), contrastive.embed_texts(TEXTS))
    for call in (
        lambda: alone.embed_images(picture, "G"),
        lambda: alone.match(picture, TEXTS[0]),
        lambda: alone.caption(picture),
    ):
        with pytest.raises(ConfigError, match="InternVL-C alone"):
            call()


def test_limits_and_policy_of_the_model(golden_dir: Path, tmp_path: Path) -> None:
    """Those given to `load` hold for every call, unless it names limits of its own."""
    path = tmp_path / "a.png"
    noise(60, 60).save(path)
    limits = ImageLimits(max_pixels=1000)
    model = internvl.load(golden_dir / "internvl_14b", limits=limits, policy=RELEASED_POLICY)
    assert isinstance(model, ContrastiveModel)
    with pytest.raises(ImageError, match="max_pixels=1000"):
        model.embed_images(path)
    clear = noise(60, 60).convert("RGBA")
    clear.putalpha(0)
    seen = model.embed_images(clear, limits=ImageLimits())
    torch.testing.assert_close(seen, model.embed_images(noise(60, 60), limits=ImageLimits()))


def test_bad_input(contrastive: ContrastiveModel) -> None:
    picture = noise(84, 84)
    with pytest.raises(ImageError, match="at least one"):
        contrastive.embed_images([])
    with pytest.raises(ImageError):
        contrastive.embed_images([picture, b"no picture"])
    with pytest.raises(InputError, match="mode must be 'C' or 'G', not 'InternVL-G'"):
        contrastive.embed_images(picture, "InternVL-G")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fit must be"):
        contrastive.embed_images(picture, fit="pad")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch must be at least 1"):
        contrastive.embed_images(picture, batch=0)
    with pytest.raises(InputError, match="no texts"):
        contrastive.embed_texts([])
    with pytest.raises(PromptError, match="limit is 80"):
        contrastive.embed_texts(["a", "a red panda " * 40])
    assert contrastive.embed_texts("a red panda " * 40, truncate=True).shape == (1, 56)
    with pytest.raises(InputError, match="1 pictures and 3 texts"):
        contrastive.match(picture, TEXTS)
    with pytest.raises(InputError, match="min_new_tokens 8 is above max_new_tokens 4"):
        contrastive.caption(picture, max_new_tokens=4)
    with pytest.raises(InputError, match="no positive multiple"):
        contrastive.embed_images(torch.zeros(1, 3, 83, 84))
