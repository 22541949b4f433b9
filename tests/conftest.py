"""One thread, fixed seeds, and where the golden fixtures lie."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

os.environ["TOKENIZERS_PARALLELISM"] = "false"
torch.set_num_threads(1)
settings.register_profile("internvl", deadline=None, derandomize=True, database=None)
settings.load_profile("internvl")


class GoldenFixtures:
    """`golden_dir / "internvl2_5_qwen2"` is the real path in the first place that holds it.

    A path that no place holds skips the test with a message that names it and the places.
    """

    def __init__(self, places: tuple[Path, ...]) -> None:
        self.places = places

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        for place in self.places:
            if (place / name).exists():
                return place / name
        looked = ", ".join(str(place) for place in self.places)
        pytest.skip(f"GOLDEN FIXTURE MISSING: {os.fspath(name)} is in none of {looked} (set INTERNVL_GOLDEN)")

    def joinpath(self, *names: str) -> Path:
        return self / os.path.join(*names)  # noqa: PTH118


@pytest.fixture(scope="session")
def golden_dir() -> GoldenFixtures:
    """The reference outputs: $INTERNVL_GOLDEN, then tests/golden, then ../shared/golden."""
    chosen = os.environ.get("INTERNVL_GOLDEN")
    places = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")
    return GoldenFixtures((Path(chosen), *places) if chosen else places)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
