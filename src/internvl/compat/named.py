"""Results that are read by name, as `out.pixel_values` or `out["pixel_values"]`.

Knows nothing of what they hold.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Named(dict[str, Any]):
    """A dictionary whose entries are attributes too; `to` moves its tensors."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"there is no {name!r} here, only {', '.join(self) or 'nothing'}")
        return self[name]

    def to(self, *args: Any, **kwargs: Any) -> Named:
        """The same with every tensor moved, as `Tensor.to`. Whole numbers keep their dtype."""
        return Named({name: _moved(value, args, kwargs) for name, value in self.items()})


def _moved(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not isinstance(value, Tensor):
        return value
    moved = value.to(*args, **kwargs)
    return moved if value.is_floating_point() else moved.to(value.dtype)
