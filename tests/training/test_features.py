"""Kept features are the tower's, are found again, and never belong to another tile or tower."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internvl.config import VisionConfig
from internvl.data.batch import Batch, pack
from internvl.data.example import Branch, Example
from internvl.errors import TrainingError
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from internvl.training.features import FeatureCache, tile_key, tower_key
from tests.training.dual import dual_encoder, pairs


@pytest.fixture
def frozen(model: VLM) -> VLM:
    return model.requires_grad_(False).train()


def make_batch(*seeds: int) -> Batch:
    """A batch with one tile a seed; equal seeds make equal tiles."""
    tiles = [torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    example = Example(
        key="x",
        prefix=(1,),
        branches=(Branch((2,), (True,)),),
        tiles_N3HW=torch.stack(tiles) if tiles else None,
    )
    return pack([example], 56)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("select", [-1, 1])
def test_features_are_the_towers(frozen: VLM, tmp_path: Path, select: int) -> None:
    frozen.config = replace(frozen.config, select_layer=select)
    batch = make_batch(1, 2, 1)
    with torch.no_grad():
        expected_NPC = frozen.vit(batch.tiles_N3HW, select)[:, 1:]
    kept = FeatureCache(frozen, tmp_path).features(batch)
    assert kept.features_NPC is not None
    torch.testing.assert_close(kept.features_NPC, expected_NPC, rtol=1e-5, atol=1e-6)
    assert kept.tiles_N3HW.shape == (0, 3, 56, 56)
    assert kept.keys == batch.keys
    assert len(files(tmp_path)) == 2  # the tile that comes twice is kept once


def test_a_dual_encoder_keeps_the_class_token(tmp_path: Path) -> None:
    model = dual_encoder().requires_grad_(False).train()
    batch, cache = pairs(), FeatureCache(model, tmp_path)
    with torch.no_grad():
        expected_BPC = model.vit(batch.tiles_B3HW)
    for _ in range(2):
        kept = cache.features(batch)
        assert kept.features_BPC is not None
        torch.testing.assert_close(kept.features_BPC, expected_BPC, rtol=1e-5, atol=1e-6)
        assert kept.tiles_B3HW.shape == (0, 3, 28, 28)
        assert (kept.contrastive_ids, kept.keys) == (batch.contrastive_ids, batch.keys)
    assert len(files(tmp_path)) == 5  # two pairs have one picture
    assert cache.of(batch.tiles_B3HW[:0]).shape == (0, 5, 16)


def test_a_second_cache_reads_without_the_tower(
    frozen: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FeatureCache(frozen, tmp_path).features(make_batch(1, 2)).features_NPC
    monkeypatch.setattr(VisionTower, "forward", lambda *_: pytest.fail("the tower must not run"))
    second = FeatureCache(frozen, tmp_path).features(make_batch(2, 1)).features_NPC
    assert first is not None
    assert second is not None
    assert torch.equal(first.flip(0), second)


def test_a_batch_of_text_has_features_of_no_tile(frozen: VLM, tmp_path: Path) -> None:
    kept = FeatureCache(frozen, tmp_path).features(make_batch())
    assert kept.features_NPC is not None
    assert kept.features_NPC.shape == (0, 16, 24)
    assert files(tmp_path) == []


def test_drop_path_is_off_and_the_mode_stays(frozen: VLM, tmp_path: Path) -> None:
    frozen.vit = VisionTower(
        VisionConfig(image_size=56, width=24, num_layers=2, num_heads=3, mlp_width=40, drop_path=0.9)
    ).requires_grad_(False)
    batch = make_batch(1)
    kept = FeatureCache(frozen, tmp_path).features(batch).features_NPC
    assert frozen.vit.training
    with torch.no_grad():
        torch.testing.assert_close(kept, frozen.vit.eval()(batch.tiles_N3HW)[:, 1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_near(frozen: VLM, tmp_path: Path, dtype: torch.dtype) -> None:
    batch = make_batch(1, 2)
    kept = FeatureCache(frozen, tmp_path, dtype).features(batch).features_NPC
    assert kept is not None
    assert kept.dtype == dtype
    with torch.no_grad():
        torch.testing.assert_close(kept.float(), frozen.vit(batch.tiles_N3HW)[:, 1:], rtol=0.05, atol=0.05)


def test_the_key_of_a_tower_follows_all_that_features_depend_on(frozen: VLM) -> None:
    keys = [tower_key(frozen, torch.float32), tower_key(frozen, torch.bfloat16)]
    frozen.projector.fc1.weight.add_(1)
    frozen.config = replace(frozen.config, vision=replace(frozen.config.vision, drop_path=0.5))
    assert tower_key(frozen, torch.float32) == keys[0]
    frozen.config = replace(frozen.config, select_layer=1)
    keys.append(tower_key(frozen, torch.float32))
    frozen.vit.layers[1].mlp.fc2.bias[0] += 1e-3
    keys.append(tower_key(frozen, torch.float32))
    assert len(set(keys)) == 4


def test_the_key_of_a_tile_follows_its_pixels_and_shape() -> None:
    tile_3HW = torch.arange(3 * 4 * 6, dtype=torch.float32).view(3, 4, 6)
    assert tile_key(tile_3HW) == tile_key(tile_3HW.clone())
    assert len({tile_key(t) for t in (tile_3HW, tile_3HW + 1, tile_3HW.view(3, 6, 4))}) == 3


def test_a_file_cut_short_is_made_again(frozen: VLM, tmp_path: Path) -> None:
    cache = FeatureCache(frozen, tmp_path)
    whole = cache.features(make_batch(1)).features_NPC
    (path,) = files(tmp_path)
    for content in (b"", path.read_bytes()[:-5]):
        path.write_bytes(content)
        again = cache.features(make_batch(1)).features_NPC
        assert again is not None
        assert whole is not None
        assert torch.equal(again, whole)
        assert files(tmp_path) == [path]


def test_writers_at_once_leave_whole_files(frozen: VLM, tmp_path: Path) -> None:
    caches = [FeatureCache(frozen, tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda cache: cache.features(make_batch(1, 2, 3)).features_NPC, caches))
    assert all(torch.equal(one, made[0]) for one in made)
    assert len(files(tmp_path)) == 3


def test_values_beyond_the_dtype_are_refused(frozen: VLM, tmp_path: Path) -> None:
    frozen.vit.layers[1].mlp.fc2.bias.fill_(1e30)
    with pytest.raises(TrainingError, match=r"exceed torch\.float16"):
        FeatureCache(frozen, tmp_path, torch.float16).features(make_batch(1))
    assert files(tmp_path) == []


def test_a_trained_tower_and_augmented_pictures_are_refused(frozen: VLM, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"augmented.*coco.*cache_features=false"):
        FeatureCache(frozen, tmp_path, augmented=["coco"])
    frozen.vit.layers[0].norm1.weight.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"1 of its parameters.*vit\.layers\.0\.norm1\.weight"):
        FeatureCache(frozen, tmp_path)
