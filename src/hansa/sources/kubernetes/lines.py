"""Chunks of a stream become lines. A line may be longer than any chunk; megabytes are normal for large objects."""

from __future__ import annotations

from hansa.errors import SourceError

# etcd takes objects of 1.5 MB, and servers that were told to of some more; a watch event holds one of them.
LONGEST_LINE_BYTES = 32 * 1024 * 1024


class LineSplitter:
    """Splits at newlines, wherever the chunks were cut. What follows the last newline waits for more."""

    def __init__(self, longest_bytes: int = LONGEST_LINE_BYTES) -> None:
        self._longest_bytes = longest_bytes
        self._parts: list[bytes] = []
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without line ends; blank lines, which carry nothing, are left out.

        Raises SourceError for a line that would not end: whoever sends it would fill the memory.
        """
        first, *rest = chunk.split(b"\n")
        self._parts.append(first)
        self._held_bytes += len(first)
        if self._held_bytes > self._longest_bytes:
            raise SourceError(f"the watch sent a line of more than {self._longest_bytes} bytes")
        if not rest:
            return []
        lines = [b"".join(self._parts), *rest[:-1]]
        self._parts = [rest[-1]]
        self._held_bytes = len(rest[-1])
        return [line for line in lines if line.strip()]
