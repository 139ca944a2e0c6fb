"""What files are written from and read into: told apart here, because to the Rust half text is a path as well."""

from __future__ import annotations

from os import PathLike
from typing import IO


def content(given: bytes | PathLike[str] | IO[bytes]) -> bytes | PathLike[str] | IO[bytes]:
    """Raises `TypeError` for what is none of the three."""
    if isinstance(given, (bytearray, memoryview)):
        return bytes(given)
    if isinstance(given, (bytes, PathLike)) or callable(getattr(given, "read", None)):
        return given
    hint = ": encode it, or pass a pathlib.Path" if isinstance(given, str) else ""
    raise TypeError(f"content must be bytes, a path or a binary file, not {type(given).__name__}{hint}")


def destination(given: PathLike[str] | IO[bytes]) -> PathLike[str] | IO[bytes]:
    """Raises `TypeError` for what is neither."""
    if isinstance(given, PathLike) or callable(getattr(given, "write", None)):
        return given
    hint = ": pass a pathlib.Path" if isinstance(given, str) else ""
    raise TypeError(f"destination must be a path or a binary file, not {type(given).__name__}{hint}")
