"""The friendly face: models that take pictures and words and give answers."""
