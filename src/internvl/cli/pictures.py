"""Pictures from the command line in batches: of files, folders, lists, tar shards and tables.

One that cannot be read is noted, the others go on. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from internvl.cli import output
from internvl.cli.media import IMAGE_LIMITS
from internvl.errors import InputError
from internvl.processing.image import load_image
from internvl.search.inputs import Inputs

Named = tuple[str, Image.Image]
"""The key of a picture, and the picture."""


@dataclass(slots=True)
class Reader:
    """Reads all pictures of `inputs`, `batch` at a time; `failed` are the others, each with the reason."""

    inputs: Inputs
    batch: int
    what: str
    num_done: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"--batch must be at least 1, got {self.batch}")

    def __iter__(self) -> Iterator[list[Named]]:
        found: list[Named] = []
        with output.progress(self.what) as advance:
            for row in range(len(self.inputs)):
                for named in self._row(row):
                    found.append(named)
                    if len(found) == self.batch:
                        yield self._counted(found)
                        found = []
                advance("", row + 1, len(self.inputs))
            if found:
                yield self._counted(found)

    def tell(self) -> int:
        """How it went, to stderr; the exit status."""
        output.note(f"{self.num_done} pictures done, {len(self.failed)} failed")
        return 1 if self.failed else 0

    def failures(self) -> list[dict[str, str]]:
        """As JSON has them."""
        return [{"key": key, "error": error} for key, error in self.failed]

    def _row(self, row: int) -> Iterator[Named]:
        try:
            items = self.inputs.items(row)
        except InputError as error:
            self._fail(self.inputs.where(row), error)
            return
        for item in items:
            try:
                yield item.key, load_image(item.source, IMAGE_LIMITS)
            except InputError as error:
                self._fail(item.key, error)

    def _fail(self, key: str, error: InputError) -> None:
        output.note(f"{key}: {error}")
        self.failed.append((key, str(error)))

    def _counted(self, found: list[Named]) -> list[Named]:
        self.num_done += len(found)
        return found
