"""What a new dual encoder is made of: settings of a recipe. Knows no files beyond their names."""

from __future__ import annotations

from dataclasses import dataclass

from internvl.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveParts:
    """InternVL-C or -G begun from two models: the tower of `model.checkpoint`, and a language model.

    `language` is a path or a name of the zoo, of a language model or of a chat model that has one. The rest
    is new: query tokens with their cross attention (none with `num_queries` 0: InternVL-C alone), pools and
    projections, as in `config.ContrastiveConfig`.
    """

    language: str
    num_queries: int = 96
    cross_every: int = 2
    embed_dim: int = 768
    pool_heads: int = 16
    image_size: int = 224

    def __post_init__(self) -> None:
        if self.num_queries < 0:
            raise RecipeError(f"contrastive.num_queries is not negative, got {self.num_queries}")
        for name in ("cross_every", "embed_dim", "pool_heads", "image_size"):
            if (number := getattr(self, name)) < 1:
                raise RecipeError(f"contrastive.{name} counts from 1, got {number}")
