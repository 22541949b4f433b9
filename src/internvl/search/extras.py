"""Libraries of the extra "search", imported when they are needed."""

from __future__ import annotations

from typing import Any

from internvl.errors import InputError


def import_pyarrow() -> Any:
    """Raises InputError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as reason:
        raise InputError("parquet needs pyarrow: pip install 'internvl[search]'") from reason
    return pyarrow


def import_faiss() -> Any:
    """Raises InputError where it is not installed."""
    try:
        import faiss
    except ImportError as reason:
        raise InputError("an index needs faiss: pip install 'internvl[search]'") from reason
    return faiss
