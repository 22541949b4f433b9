"""From scores to answers: ids and tensors in, ids out; text only through a `decode` callable."""
