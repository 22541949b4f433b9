"""Statistics of the channels by what preprocessor_config.json says."""

from __future__ import annotations

import pytest

from internvl.checkpoints.fields import Fields
from internvl.checkpoints.normalization import read_normalization
from internvl.config import NORMALIZATION_STATISTICS
from internvl.errors import ConfigError


@pytest.mark.parametrize("name", NORMALIZATION_STATISTICS)
def test_by_the_means(name: str) -> None:
    mean, _ = NORMALIZATION_STATISTICS[name]  # type: ignore[index]
    assert read_normalization(Fields({"image_mean": list(mean)})) == name


def test_more_digits_and_no_digits() -> None:
    assert read_normalization(Fields({"image_mean": [0.48145466, 0.4578275, 0.40821073]})) == "clip"
    assert read_normalization(Fields({"image_mean": None})) == "imagenet"


@pytest.mark.parametrize("mean", [[0.1, 0.2, 0.3], [0.5], "0.5"])
def test_other_means_are_refused(mean: object) -> None:
    with pytest.raises(ConfigError, match="image_mean"):
        read_normalization(Fields({"image_mean": mean}))
