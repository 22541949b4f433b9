"""Files on disk to batches of token ids and features; no model."""
