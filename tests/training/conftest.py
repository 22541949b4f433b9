"""A tiny chat model."""

from __future__ import annotations

import pytest

from internvl.models.vlm import VLM
from tests.training.tiny import chat_model


@pytest.fixture
def model() -> VLM:
    return chat_model()
