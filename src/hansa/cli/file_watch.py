"""Files under watch: told when what they hold has changed, however they were replaced.

A ConfigMap volume swaps a link named `..data`, an editor renames a file over the other, a script writes in place: what
counts is what is read at the path, so it is read, once a second; these files are small. A file that is away or is being
written says nothing. Evidence: operations.md section 7.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from hansa.bounded import LONGEST_CONFIG_BYTES, read_file

POLL_S = 1.0

Digests = tuple[bytes | None, ...]


def read_digests(paths: Sequence[Path]) -> Digests:
    """What the files hold now; None for one that cannot be read."""
    return tuple(_digest(path) for path in paths)


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(read_file(path, LONGEST_CONFIG_BYTES)).digest()
    except OSError:
        return None


class Changes:
    """Compares looks at files; a new content counts once two looks in a row have met it."""

    def __init__(self, first: Digests) -> None:
        self._known = first
        self._last = first

    def look(self, found: Digests) -> bool:
        """Whether something has changed since the last time that this was so."""
        settled = found == self._last
        self._last = found
        now = tuple(before if new is None else new for before, new in zip(self._known, found, strict=True))
        if not settled or now == self._known:
            return False
        self._known = now
        return True


async def changes(paths: Sequence[Path], first: Digests, *, poll_s: float = POLL_S) -> AsyncIterator[None]:
    """One item for each change, for ever. first: what the files held when they were read."""
    known = Changes(first)
    while True:
        await asyncio.sleep(poll_s)
        if known.look(await asyncio.to_thread(read_digests, paths)):
            yield None
