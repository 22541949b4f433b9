"""Scores as pure functions; answers arrive as text."""
