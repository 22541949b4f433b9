"""Recipes, objectives and the one loop that carries them out."""
