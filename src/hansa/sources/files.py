"""Manifests in a file or a folder as a source: read at the start, and again whenever one of them changes.

Files are looked at by polling, which works on every file system, in containers and for ConfigMap volumes alike. A file
that is being written must look the same in two polls before it is read again: half a file would look like deletions.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hansa.api.change import Change, Synced
from hansa.api.objects import Kind
from hansa.bounded import LONGEST_DUMP_BYTES, read_file
from hansa.config import Config
from hansa.errors import Fault, SourceError
from hansa.logs import Logger
from hansa.sources.manifests import (
    Merged,
    Reading,
    State,
    continue_reading,
    differences,
    merge,
    read_manifest,
    unreadable,
)

__all__ = ["FileSource", "read_once"]

_log = Logger("hansa.sources")

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")
POLL_INTERVAL_S = 1.0  # a person who saves a file expects an effect about now; a poll costs one stat per file


@dataclass(frozen=True, slots=True)
class Signature:
    """By what a file is seen to have changed."""

    modified_ns: int
    size_bytes: int
    inode: int


def read_once(
    path: str, config: Config | None = None, *, on_fault: Callable[[Fault], None] | None = None
) -> tuple[Change, ...]:
    """Read a manifest file, a folder of them, or `-` for standard input, for commands that end by themselves.

    config: whose selection of objects counts, None = take all objects. on_fault: told of each thing that cannot be
    read, with its place, while the rest goes on; None = such a thing raises SourceError. A broken object is no such
    thing but a Malformed among the changes. Ends with Synced for every kind. Raises SourceError if nothing is there.
    """
    if path == STDIN:
        merged = merge({"stdin": read_manifest(sys.stdin.buffer.read(), name="stdin", config=config)})
    else:
        merged = merge({str(one): _read(one, config) for one in _list_files(Path(path))})
    if merged.faults and on_fault is None:
        raise SourceError("; ".join(str(fault) for fault in merged.faults))
    for fault in merged.faults:
        if on_fault is not None:
            on_fault(fault)
    return (*differences({}, merged.objects), *(Synced(kind) for kind in Kind))


class FileSource:
    """A manifest file, or a folder's `*.yaml`, `*.yml` and `*.json`, as a Source.

    What cannot be read any more stays in force: a document with a syntax error, a file without permission, the whole
    path. Only an object that is missing from a file that was read in full, or a file that is missing from its folder,
    is a deletion.
    """

    def __init__(self, path: str, config: Config | None = None, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._path = Path(path)
        self._config = config
        self._poll_interval_s = poll_interval_s
        self._status = f"reading {path}"
        self._faults: tuple[Fault, ...] = ()
        self._ignored: Mapping[str, int] = {}
        self._is_away = False

    @property
    def status(self) -> str:
        return self._status

    @property
    def troubled(self) -> bool:
        return self._is_away or bool(self._faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What could not be read at the last reading, with file, line and column."""
        return self._faults

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many objects there are of which kinds that hansa does not read."""
        return self._ignored

    async def changes(self) -> AsyncIterator[tuple[Change, ...]]:
        seen: dict[Path, Signature] = {}
        read: dict[Path, Signature] = {}
        readings: dict[Path, Reading] = {}
        known: State = {}
        is_synced = False
        while True:
            try:
                before, seen = seen, await asyncio.to_thread(_signatures, self._path)
            except SourceError as error:
                self._status = f"retrying every {self._poll_interval_s:g} s: {error}"
                if not self._is_away:
                    _log.warning("cannot be read, asked again until it can", source=self._path, err=error)
                self._is_away = True
                await asyncio.sleep(self._poll_interval_s)
                continue
            if self._is_away:
                _log.info("can be read", source=self._path)
            self._is_away = False
            news = unread(seen, read, before if is_synced else seen)
            if news or not is_synced:
                fresh = await asyncio.to_thread(self._read_all, [path for path in news if path in seen])
                for path in news:
                    if path not in fresh:
                        readings.pop(path, None)
                        read.pop(path, None)
                    else:
                        readings[path] = continue_reading(readings.get(path), fresh[path])
                        read[path] = seen[path]
                        if fresh[path].is_open_failure:
                            del read[path]  # permission may be given without a change of the file
                merged = merge({str(path): reading for path, reading in readings.items()})
                batch = differences(known, merged.objects)
                known = merged.objects
                self._report(merged, len(readings))
                if not is_synced and (merged.objects or not merged.faults):
                    is_synced = True
                    batch += tuple(Synced(kind) for kind in Kind)
                if batch:
                    yield batch
            await asyncio.sleep(self._poll_interval_s)

    def _read_all(self, paths: list[Path]) -> dict[Path, Reading]:
        return {path: _read(path, self._config) for path in paths}

    def _report(self, merged: Merged, file_count: int) -> None:
        for fault in merged.faults:
            if fault not in self._faults:
                _log.warning("cannot be used, what it said before stays in force", place=fault.field, err=fault.text)
        self._faults, self._ignored = merged.faults, merged.ignored
        status = f"{len(merged.objects)} objects from {file_count} file{'s' if file_count != 1 else ''}"
        if merged.faults:
            more = f" (and {len(merged.faults) - 1} more)" if len(merged.faults) > 1 else ""
            status += f"; {merged.faults[0]}{more}"
        self._status = status


def unread(
    seen: Mapping[Path, Signature], read: Mapping[Path, Signature], before: Mapping[Path, Signature]
) -> tuple[Path, ...]:
    """The files that have to be read, or forgotten, because they differ from when they were `read`.

    seen: what this poll found. before: what the poll before found; a file that still changes between the two waits.
    """
    return tuple(
        path
        for path in sorted(seen.keys() | read.keys())
        if seen.get(path) != read.get(path) and seen.get(path) == before.get(path)
    )


def _list_files(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            path.stat()
            return [path]
        return sorted(
            one for one in path.iterdir() if one.suffix in SUFFIXES and not one.name.startswith(".") and one.is_file()
        )
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None


def _signatures(path: Path) -> dict[Path, Signature]:
    found = {}
    for one in _list_files(path):
        try:
            facts = one.stat()
        except FileNotFoundError:
            continue  # it went between the two looks
        except OSError as error:
            raise SourceError(f"{one}: {error.strerror or error}") from None
        found[one] = Signature(facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return found


def _read(path: Path, config: Config | None) -> Reading:
    try:
        data = read_file(path, LONGEST_DUMP_BYTES)
    except OSError as error:
        return unreadable(str(path), error.strerror or str(error))
    return read_manifest(data, name=str(path), config=config)
