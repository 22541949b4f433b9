"""Arithmetic that has more than one implementation, chosen by device and dtype."""
