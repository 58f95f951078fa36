"""A file in KPNG's format as a source: looked at each second, and read again when it has changed.

What cannot be read leaves in force what the file said before, and is tried again at the next change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey
from hansa.errors import SourceError
from hansa.sources import News
from hansa.sources.kpng.file import read_state

_logger = logging.getLogger("hansa.sources.kpng")

POLL_INTERVAL_S = 1.0  # KPNG's


class KpngFileSource:
    def __init__(self, path: str, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._path = Path(path)
        self._poll_interval_s = poll_interval_s
        self._status = f"reading {path}"
        self._is_troubled = False

    @property
    def status(self) -> str:
        return self._status

    @property
    def troubled(self) -> bool:
        return self._is_troubled

    async def changes(self) -> AsyncIterator[tuple[News, ...]]:
        seen: tuple[int, int, int] | None = None
        known: dict[ObjectKey, ApiObject] = {}
        is_synced = False
        while True:
            try:
                facts = await asyncio.to_thread(self._path.stat)
                signature = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
                if signature != seen:
                    text = await asyncio.to_thread(self._path.read_text, encoding="utf-8")
                    seen = signature
                    found = {item.object_key: item for item in read_state(text, name=str(self._path))}
                    batch: list[News] = [Upsert(item) for key, item in found.items() if known.get(key) != item]
                    batch += [Delete(key) for key in known if key not in found]
                    known = found
                    if not is_synced:
                        is_synced = True
                        batch += [Synced(kind) for kind in Kind]
                    self._status, self._is_troubled = f"{len(found)} objects from {self._path}", False
                    if batch:
                        yield tuple(batch)
            except (OSError, SourceError, UnicodeDecodeError) as error:
                text = (
                    f"{self._path}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
                )
                if not self._is_troubled or text not in self._status:
                    _logger.warning("cannot be read, what it said before stays in force: %s", text)
                self._status, self._is_troubled = text, True
            await asyncio.sleep(self._poll_interval_s)
