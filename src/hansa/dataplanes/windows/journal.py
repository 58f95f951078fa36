"""The journal's file: appended around writes, rewritten at start and when most of it is past.

Loss of it, or of its end, costs marks: an object may then be taken for somebody else's, never the other way round.
"""

from __future__ import annotations

import os
from pathlib import Path

from hansa.bounded import read_file
from hansa.dataplanes.windows.ownership import Journal, read_journal

# Lines beyond which the file is rewritten if it has become this many times as long as its content: a week of pods
# coming and going on a busy node fits into a few hundred kilobytes.
REWRITE_BEYOND, REWRITE_RATIO = 4096, 4

# 100,000 objects are 4 MB; beyond this it is no journal.
LONGEST_BYTES = 64 * 1024 * 1024


class JournalFile:
    """`path` "" keeps the journal in memory only. `fault` says why the file cannot be used, "" = it can."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self.fault = ""
        self._lines = 0

    def load(self) -> Journal:
        """What earlier runs left behind; the file is shortened. Empty if there is none or it cannot be read."""
        if self._path is None:
            return Journal()
        try:
            content = read_file(self._path, LONGEST_BYTES)
            journal = read_journal(content.decode("utf-8", "replace").splitlines())
        except FileNotFoundError:
            return Journal()
        except OSError as error:
            self.fault = f"journal {self._path}: {error.strerror or error}"
            return Journal()
        self._rewrite(journal)
        return journal

    def append(self, journal: Journal) -> None:
        """Write what is new. A failed write is tried again with the next one."""
        if self._path is None:
            journal.news.clear()
            return
        if not journal.news:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in journal.news))
        except OSError as error:
            self.fault = f"journal {self._path}: {error.strerror or error}"
            return
        self.fault = ""
        self._lines += len(journal.news)
        journal.news.clear()
        if self._lines > max(REWRITE_BEYOND, REWRITE_RATIO * (len(journal.made) + len(journal.intents))):
            self._rewrite(journal)

    def _rewrite(self, journal: Journal) -> None:
        assert self._path is not None
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            lines = journal.lines()
            fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(fresh, self._path)
            self._lines = len(lines)
        except OSError as error:
            self.fault = f"journal {self._path}: {error.strerror or error}"
