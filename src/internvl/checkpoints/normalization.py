"""preprocessor_config.json and the statistics of the channels that a tower was trained with.

Knows that file's fields; sizes and tiles are read elsewhere.
"""

from __future__ import annotations

from internvl.checkpoints.fields import Fields
from internvl.config import NORMALIZATION_STATISTICS, Normalization


def read_normalization(preprocessor: Fields) -> Normalization:
    """By the means, to three digits; ImageNet's where the file says nothing.

    Raises:
        ConfigError: other means.
    """
    if not preprocessor.has("image_mean"):
        return "imagenet"
    found = _rounded(preprocessor.numbers("image_mean"))
    for name, (mean, _) in NORMALIZATION_STATISTICS.items():
        if _rounded(mean) == found:
            return name
    raise preprocessor.wrong("image_mean", f"that of {', '.join(NORMALIZATION_STATISTICS)}")


def _rounded(mean: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in mean)
