"""The journal's file: appended after writes, rewritten at start. Loss of it, or of its end, is harmless."""

from __future__ import annotations

import os
from pathlib import Path

from hansa.dataplanes.windows.ownership import Journal, read_journal


class JournalFile:
    """`path` "" keeps the journal in memory only. `fault` says why the file cannot be used, "" = it can."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self.fault = ""

    def load(self) -> Journal:
        """What earlier runs left behind; the file is shortened. Empty if there is none or it cannot be read."""
        if self._path is None:
            return Journal()
        try:
            journal = read_journal(self._path.read_text(encoding="utf-8", errors="replace").splitlines())
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
        journal.news.clear()

    def _rewrite(self, journal: Journal) -> None:
        assert self._path is not None
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fresh.write_text("".join(f"{line}\n" for line in journal.lines()), encoding="utf-8")
            os.replace(fresh, self._path)
        except OSError as error:
            self.fault = f"journal {self._path}: {error.strerror or error}"
