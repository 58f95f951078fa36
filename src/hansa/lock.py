"""HostLock: at most one hansa programs a host.

Two instances would undo each other's work, so `hansa run` and `hansa cleanup` hold this lock while they write. It is a
lock of the operating system on a file: it ends with the process, however that ends, and a file that is left behind
means nothing. Evidence: windows-proxy H.5.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from hansa.errors import ConfigError, Fault

FILE_NAME = "hansa.lock"
# Windows locks bytes, and nobody else can read them meanwhile: a byte far behind the text, which others are to read.
_LOCKED_BYTE = 1 << 20
_TEXT_BYTES = 200  # more than pid and purpose need


def default_path() -> Path:
    """Windows: under ProgramData. Elsewhere /run/hansa, or, for others than root, a folder of their own."""
    return _folder() / FILE_NAME


def holder(path: Path) -> str:
    """Who holds the lock on that file, as `hansa run (pid 4711)`; "" = nobody. Makes and changes nothing."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return ""  # there is none, or it is somebody else's: then its holder cannot be told either
    try:
        return "" if _try_lock(file) else _read(file) or "another hansa"
    finally:
        os.close(file)


class HostLock:
    """A context that holds the lock. Entering raises ConfigError if another process holds it, or for a bad path.

    purpose: the command, told to whoever comes second.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        self._path = path
        self._purpose = purpose
        self._file: int | None = None

    def __enter__(self) -> Self:
        file = self._open()
        if not _try_lock(file):
            holder = _read(file)
            os.close(file)
            raise ConfigError(
                Fault(
                    f"lock {self._path}",
                    f"{holder or 'another hansa'} works on this host already",
                    "stop it first: two at once would undo each other's work",
                )
            )
        self._file = file
        with contextlib.suppress(OSError):  # the text is for people; the lock holds without it
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, f"{os.getpid()} {self._purpose}\n".encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The file stays: taking it away would take it from under somebody who has just opened it."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = None

    def _open(self) -> int:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            text = f"cannot be opened: {error.strerror or error}"
            raise ConfigError(Fault(f"lock {self._path}", text, "name another file with --lock")) from error


def _read(file: int) -> str:
    """`hansa run (pid 4711)`, or "" if the file says nothing that makes sense."""
    os.lseek(file, 0, os.SEEK_SET)
    pid, _, purpose = os.read(file, _TEXT_BYTES).decode(errors="replace").strip().partition(" ")
    return f"{purpose} (pid {pid})" if pid.isdigit() and purpose else ""


if sys.platform == "win32":
    import msvcrt

    def _folder() -> Path:
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "hansa"

    def _try_lock(file: int) -> bool:
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _folder() -> Path:
        user = os.geteuid()
        return Path("/run/hansa") if user == 0 else Path(tempfile.gettempdir()) / f"hansa-{user}"

    def _try_lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
