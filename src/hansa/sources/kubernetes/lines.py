"""Chunks of a stream become lines. A line may be longer than any chunk; megabytes are normal for large objects."""

from __future__ import annotations


class LineSplitter:
    """Splits at newlines, wherever the chunks were cut. What follows the last newline waits for more."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without line ends; blank lines, which carry nothing, are left out."""
        first, *rest = chunk.split(b"\n")
        self._parts.append(first)
        if not rest:
            return []
        lines = [b"".join(self._parts), *rest[:-1]]
        self._parts = [rest[-1]]
        return [line for line in lines if line.strip()]
