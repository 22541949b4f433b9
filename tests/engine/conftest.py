"""The small model that the engine's tests share."""

from __future__ import annotations

import pytest

from internvl.models.vlm import VLM
from tests.engine.tiny import make_vlm


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return make_vlm()
