"""The outside world to model inputs: pictures, video, documents, text."""
