"""What tests of real processes and clients share with those of serving."""

from tests.serving.conftest import checkpoint, model
from tests.serving.test_embeddings import both, pair

__all__ = ["both", "checkpoint", "model", "pair"]
