"""Log lines with keys: the way to say them, and the forms in which the process writes them.

A line is a sentence that is always the same, and keys that tell the case: `log.info("sync", v=2, number=7)`. It goes
through Python's logging, so everything that listens there gets it: as text `sync number=7`, with the sentence as
`event` and the keys as `fields` on the record. `configure` has the process write them as kube-proxy does:

    I1124 01:57:22.749960   21979 engine.py:274] "sync" number=7 kind="full"
    {"ts":1795485510577.25,"caller":"hansa/engine.py:274","msg":"sync","v":2,"number":7,"kind":"full"}

Verbosity n is Python's level 20 - n, so 0 is INFO; warnings and errors are always written. What is said of the same
object in the same words again and again is thinned out, and the next line says how many were left out.

Evidence: operations.md 15 and 21 (wishes 13 and 14); klog's header.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import TextIO

import msgspec

from hansa.bucket import Bucket
from hansa.config import LogConfig

__all__ = ["Logger", "configure", "set_verbosity", "suppressed_count", "verbosity"]

# Per sentence and object: so many lines at once, then one for each pause.
BURST, PAUSE_S = 5, 60.0
REMEMBERED = 4096  # of sentences and objects; a process that says more kinds of things at once has other troubles
MOST_VERBOSE = 10
# Other libraries' lines below a warning are for those who look for something.
LIBRARIES_FROM = 4
_SEVERITIES = ((logging.CRITICAL, "F"), (logging.ERROR, "E"), (logging.WARNING, "W"))
# A field of one of these names says which object a line is about.
_OBJECT_FIELDS = frozenset({"object", "service", "key", "frontend", "server", "observer", "source"})
# What is said about it may differ each time, and is still the same complaint.
_DETAIL_FIELDS = frozenset({"err", "error", "place", "message"})


class Logger:
    """Says lines under a name. `v`: from which verbosity on, 0 = always."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def enabled(self, v: int) -> bool:
        """Whether a line of this verbosity would be written somewhere; for lines whose keys cost something."""
        return self._logger.isEnabledFor(logging.INFO - v)

    def info(self, event: str, /, *, v: int = 0, **fields: object) -> None:
        self._say(logging.INFO - v, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, /, *, err: object = None, **fields: object) -> None:
        """err: what went wrong, None = the sentence says it."""
        self._say(logging.ERROR, event, {"err": err, **fields} if err is not None else fields)

    def exception(self, event: str, error: BaseException, /, *, trace: bool = True, **fields: object) -> None:
        """A bug of ours: the error, and where it comes from if `trace`."""
        fields = {"err": f"{type(error).__name__}: {error}", **fields}
        self._say(logging.ERROR, event, fields, exc_info=error if trace else None)

    def log(self, level: int, event: str, fields: Mapping[str, object], *, above: int = 0) -> None:
        """level: Python's. above: how many callers further up the line is to be ascribed to."""
        self._say(level, event, fields, above=above)

    def _say(
        self,
        level: int,
        event: str,
        fields: Mapping[str, object],
        *,
        exc_info: BaseException | None = None,
        above: int = 0,
    ) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"event": event, "fields": fields}
            self._logger.log(level, _Line(event, fields), extra=extra, exc_info=exc_info, stacklevel=3 + above)


@dataclass(frozen=True, slots=True)
class _Line:
    """The line as plain text, for whoever does not know of fields; made when somebody asks."""

    event: str
    fields: Mapping[str, object]

    def __str__(self) -> str:
        return " ".join((self.event, *(f"{key}={_bare(value)}" for key, value in self.fields.items())))


def _bare(value: object) -> str:
    text = "" if value is None else str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text)


# --- forms ---


def text_line(record: logging.LogRecord, extra: Mapping[str, object] | None = None) -> str:
    """As klog writes it. extra: further fields."""
    severity = next((letter for level, letter in _SEVERITIES if record.levelno >= level), "I")
    when = f"{datetime.fromtimestamp(record.created):%m%d %H:%M:%S.%f}"
    head = f"{severity}{when} {record.process or 0:7} {record.filename}:{record.lineno}] "
    event, fields = _parts(record)
    if event is None:
        return head + record.getMessage()
    shown = "".join(f" {key}={go_value(value)}" for key, value in {**fields, **(extra or {})}.items())
    return f"{head}{_quoted(event)}{shown}"


def json_line(record: logging.LogRecord, extra: Mapping[str, object] | None = None) -> str:
    """As kube-proxy's JSON: errors have `err` and no `v`."""
    event, fields = _parts(record)
    found: dict[str, object] = {"ts": round(record.created * 1000, 4)}
    name = record.name.removeprefix("hansa.")
    if name and name != "root":
        found["logger"] = name
    found["caller"] = f"{PurePath(record.pathname).parent.name}/{record.filename}:{record.lineno}"
    found["msg"] = record.getMessage() if event is None else event
    if record.levelno < logging.ERROR:
        found["v"] = max(0, logging.INFO - record.levelno)
    found |= {
        key: value if type(value) in _PLAIN else str(value)
        for key, value in {**fields, **(extra or {})}.items()
        if key not in found
    }
    return msgspec.json.encode(found, enc_hook=str).decode()


def _parts(record: logging.LogRecord) -> tuple[str | None, Mapping[str, object]]:
    """Sentence and fields; None for a line of other libraries, which have none."""
    fields: dict[str, object] = dict(getattr(record, "fields", None) or {})
    if record.exc_info and record.exc_info[0] is not None:
        fields["stack"] = logging.Formatter().formatException(record.exc_info)
    return getattr(record, "event", None), fields


# What JSON has a form for; named tuples, among others, have one of their own.
_PLAIN = frozenset({type(None), bool, int, float, str, list, tuple, dict, set, frozenset})


def go_value(value: object) -> str:
    """A value as klog writes it after `key=`.

    >>> go_value("a b"), go_value(3), go_value(True), go_value(None), go_value(["a", 1])
    ('"a b"', '3', 'true', '<nil>', '["a",1]')
    """
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case list() | tuple() | dict() | set() | frozenset() if type(value) in _PLAIN:
            return msgspec.json.encode(value, enc_hook=str, order="deterministic").decode()
        case _:
            text = str(value)
            if "\n" not in text:
                return _quoted(text)
            lines = "\n".join(f"\t{line}" for line in text.splitlines())
            return f"<\n{lines}\n >"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# --- what is written ---


@dataclass(slots=True)
class _Said:
    """What may be said of one key, and how many lines were held back since the last one."""

    bucket: Bucket = field(default_factory=lambda: Bucket(BURST, PAUSE_S))
    held_back: int = 0


class Thinner:
    """Says which lines are one too many. `now`: monotonic seconds."""

    def __init__(self) -> None:
        self._said: OrderedDict[object, _Said] = OrderedDict()
        self.suppressed = 0

    def admits(self, key: object, now: float) -> int | None:
        """How many lines of this key were held back before this one; None: this one is held back."""
        said = self._said.get(key)
        if said is None:
            said = self._said[key] = _Said()
            if len(self._said) > REMEMBERED:
                self._said.popitem(last=False)
        self._said.move_to_end(key)
        if not said.bucket.has_one(now):
            said.held_back += 1
            self.suppressed += 1
            return None
        said.bucket.take()
        held_back, said.held_back = said.held_back, 0
        return held_back


def thinned_key(record: logging.LogRecord) -> object | None:
    """By what a line is thinned out; None = it is not: it has no object, and is no complaint."""
    fields: Mapping[str, object] = getattr(record, "fields", None) or {}
    if record.levelno < logging.WARNING and _OBJECT_FIELDS.isdisjoint(fields):
        return None
    about = tuple(
        (name, str(value))
        for name, value in fields.items()
        if name not in _DETAIL_FIELDS and not isinstance(value, int | float)
    )
    return (record.name, getattr(record, "event", None) or str(record.msg), about)


@dataclass(slots=True)
class _Sink:
    """One stream. buffer_bytes: how much may wait; 0 = nothing."""

    stream: TextIO
    buffer_bytes: int = 0
    _waiting: list[str] = field(default_factory=list)
    _size: int = 0

    def write(self, line: str) -> None:
        if not self.buffer_bytes:
            self.stream.write(line)
            self.stream.flush()
            return
        self._waiting.append(line)
        self._size += len(line)
        if self._size > self.buffer_bytes:
            self.flush()

    def flush(self) -> None:
        if self.stream.closed:  # by whoever it belongs to; lines that still wait have no place any more
            return
        if self._waiting:
            text = "".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            self.stream.write(text)
        self.stream.flush()


class LogHandler(logging.Handler):
    """Writes every record as its `LogConfig` says."""

    def __init__(
        self,
        config: LogConfig,
        *,
        output: TextIO | None = None,
        errors: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """output, errors: in the place of the process's own. clock: for what is said too often."""
        super().__init__()
        self._form = json_line if config.format == "json" else text_line
        self._modules = config.vmodule if config.format == "text" else ()
        self._errors = _Sink(errors or sys.stderr)
        self._infos = _Sink(output or sys.stdout, config.info_buffer_bytes) if config.split_stream else self._errors
        self._clock = clock
        self.thinner = Thinner()
        self.verbosity = config.verbosity
        self._ended = threading.Event()
        if config.split_stream and config.info_buffer_bytes:
            thread = threading.Thread(
                target=self._flush_for_ever, args=(config.flush_frequency_s,), name="hansa-log", daemon=True
            )
            thread.start()

    @property
    def lowest_level(self) -> int:
        """Python's level below which nothing is written, whichever file it comes from."""
        most = max((self.verbosity, *(module.verbosity for module in self._modules)))
        return logging.INFO - min(most, MOST_VERBOSE)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._is_wanted(record):
                return
            key = thinned_key(record)
            held_back = 0 if key is None else self.thinner.admits(key, self._clock())
            if held_back is None:
                return
            line = self._form(record, {"suppressed": held_back} if held_back else None) + "\n"
            if record.levelno >= logging.WARNING:
                self._infos.flush()  # so that the order of lines stays what it was
                self._errors.write(line)
            else:
                self._infos.write(line)
        except Exception:  # noqa: BLE001 - a line that cannot be written must not end what it tells of
            self.handleError(record)

    def flush(self) -> None:
        self.acquire()
        try:
            self._infos.flush()
            self._errors.flush()
        finally:
            self.release()

    def close(self) -> None:
        self._ended.set()
        super().close()

    def _is_wanted(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        name = PurePath(record.filename).stem
        for module in self._modules:
            if fnmatch.fnmatchcase(name, module.file_pattern):
                return record.levelno >= logging.INFO - module.verbosity
        return record.levelno >= logging.INFO - self.verbosity

    def _flush_for_ever(self, frequency_s: float) -> None:
        while not self._ended.wait(frequency_s):
            self.flush()


def configure(config: LogConfig) -> None:
    """Have the whole process log like this from now on; may be called again."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        if isinstance(old, LogHandler):
            old.flush()
            old.close()
    handler = LogHandler(config)
    root.addHandler(handler)
    _set_levels(handler)


def set_verbosity(number: int) -> None:
    """Change it while the process runs; without `configure` before, nothing happens."""
    handler = _installed()
    if handler is not None:
        handler.verbosity = number
        _set_levels(handler)


def verbosity() -> int:
    handler = _installed()
    return handler.verbosity if handler is not None else 0


def suppressed_count() -> int:
    """How many lines were left out since `configure`."""
    handler = _installed()
    return handler.thinner.suppressed if handler is not None else 0


def _installed() -> LogHandler | None:
    return next((one for one in logging.getLogger().handlers if isinstance(one, LogHandler)), None)


def _set_levels(handler: LogHandler) -> None:
    logging.getLogger("hansa").setLevel(handler.lowest_level)
    libraries = logging.WARNING
    if handler.verbosity >= LIBRARIES_FROM:
        libraries = logging.DEBUG if handler.verbosity >= MOST_VERBOSE else logging.INFO
    logging.getLogger().setLevel(libraries)
