"""`hansa proxy`: kube-proxy's command line, files, order of steps, messages and exit codes.

What is decided, `hansa.kubeproxy` decides; here files are read, processes wait, and steps follow each other.
Evidence: operations.md sections 1, 6, 9 and 16.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from hansa import __version__
from hansa.config import Config, LogConfig
from hansa.errors import ConfigError, DataplaneError, SourceError
from hansa.kubeproxy import configuration, flags, settle
from hansa.kubeproxy.configuration import KUBERNETES_VERSION, Decoded, DecodeError
from hansa.kubeproxy.flags import FlagError, Parsed
from hansa.kubeproxy.settle import Completed, Documents, Level, StartError, Surroundings
from hansa.sources.host import read_host
from hansa.sources.yaml_text import YamlFault, load, split_documents

if TYPE_CHECKING:
    from hansa.api.objects import Node
    from hansa.cli.planes import Plane
    from hansa.engine import Engine
    from hansa.sources import Source

_logger = logging.getLogger("hansa.proxy")

FAILED = 1  # kube-proxy's code for every error
STACKS_SHOWN = 2  # after SIGQUIT


def main(arguments: Sequence[str]) -> int:
    """Be kube-proxy with these arguments; returns the exit code."""
    is_windows = sys.platform == "win32"
    try:
        parsed = flags.parse(arguments, windows=is_windows)
    except FlagError as error:
        print(flags.usage(windows=is_windows), file=sys.stderr)
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    if parsed.wants_help:
        print(flags.usage(windows=is_windows), end="")
        return 0
    for note in parsed.notes:
        print(note, file=sys.stderr)
    asked = parsed.text("version")
    if asked in ("true", "raw"):
        print(f"Kubernetes {KUBERNETES_VERSION}" if asked == "true" else _raw_version())
        return 0
    _log_to(LogConfig())
    try:
        return _start(parsed)
    except StartError as error:
        return _fail(str(error), error.remedies)
    except ConfigError as error:
        texts = [f"{fault.field}: {fault.text}" for fault in error.faults]
        remedies = [f"{fault.field}: {fault.remedy}" for fault in error.faults if fault.remedy]
        return _fail(texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]", remedies)
    except (DataplaneError, SourceError) as error:
        return _fail(str(error), ())


def _fail(text: str, remedies: Sequence[str]) -> int:
    _say(logging.ERROR, "command failed", err=text)
    for remedy in remedies:
        _say(logging.ERROR, "how to mend it", remedy=remedy)
    return FAILED


def _say(level: int, event: str, **fields: object) -> None:
    """One line; the fields are on the record for structured logs, and in the text for others."""
    text = " ".join((event, *(f"{name}={_quoted(value)}" for name, value in fields.items())))
    _logger.log(level, "%s", text, extra={"fields": fields, "event": event})


def _quoted(value: object) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _raw_version() -> str:
    major, minor, *_ = KUBERNETES_VERSION.removeprefix("v").split(".")
    facts = {
        "Major": major,
        "Minor": minor,
        "GitVersion": KUBERNETES_VERSION,
        "GitCommit": f"hansa-{__version__}",
        "GoVersion": f"python{sys.version_info.major}.{sys.version_info.minor}",
        "Compiler": sys.implementation.name,
        "Platform": f"{sys.platform}/{os.environ.get('PROCESSOR_ARCHITECTURE') or _machine()}",
    }
    return "version.Info{" + ", ".join(f'{name}:"{value}"' for name, value in facts.items()) + "}"


def _machine() -> str:
    import platform

    return platform.machine().lower()


def _start(parsed: Parsed) -> int:
    """All steps after the command line has been read, in kube-proxy's order."""
    _check_version(parsed)
    surroundings = Surroundings(
        hostname=read_host().hostname,
        windows=sys.platform == "win32" or bool(parsed.text("hns")),
        kube_network=os.environ.get("KUBE_NETWORK", ""),
    )
    completed = settle.complete(parsed, _read_documents(parsed), surroundings)
    log_config = settle.check_logging(completed)
    _log_to(log_config)
    for remark in completed.remarks:
        _say(logging.WARNING if remark.level is Level.WARNING else logging.INFO, remark.text)
    if log_config.verbosity >= 1:
        for name, value in flags.flag_values(parsed):
            _logger.info("%s", f'FLAG: --{name}="{value}"')
    config = settle.check(completed)
    if target := parsed.text("write-config-to"):
        return _write(completed, Path(target))
    if parsed.is_set("cleanup"):
        return _clean_up(completed)
    if parsed.is_set("init-only"):
        return _initialise(completed, config)
    return _Proxy(parsed, completed, config).run()


def _check_version(parsed: Parsed) -> None:
    asked = parsed.text("version")
    if asked not in ("", "false") and asked.partition("-")[0].partition("+")[0] != KUBERNETES_VERSION:
        text = f"--version={asked} does not match {KUBERNETES_VERSION}"
        raise StartError("", [text], ["--version: give no other version than its own, with a suffix of your own"])


# -- files -----------------------------------------------------------------------------------------------------------


def _read_documents(parsed: Parsed) -> Documents:
    """What the files of `--config` and `--hansa-config` say. Raises StartError."""
    main: Decoded | None = None
    own: dict[str, object] = {}
    for flag, name in (("config", parsed.text("config")), ("hansa-config", parsed.text("hansa-config"))):
        if not name:
            continue
        for document, doubled in _load(name):
            try:
                if configuration.is_own(document):
                    own |= configuration.decode_own(document)
                elif flag == "hansa-config":
                    configuration.decode_own(document)  # says what it should be
                elif main is None:
                    main = configuration.decode(document, doubled=doubled)
                else:
                    break  # kube-proxy reads the first document and no other
            except DecodeError as error:
                texts = [f"{one.field}: {one.text}" for one in error.faults]
                remedies = [f"{name}: {one.field}: {one.remedy}" for one in error.faults if one.remedy]
                raise StartError("failed complete: failed to decode", texts, remedies) from None
    if main is None and parsed.text("config"):
        text = "couldn't get version/kind: there is no KubeProxyConfiguration in it"
        raise StartError("failed complete: failed to decode", [text], [f"{parsed.text('config')}: see its reference"])
    return Documents(main, own)


def _load(name: str) -> list[tuple[object, list[str]]]:
    from hansa.sources.kubernetes.client import on_host

    path = Path(on_host(name, os.environ))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(
            "failed complete", [f"open {name}: {reason}"], [f"{name}: give a file that can be read"]
        ) from None
    except UnicodeDecodeError:
        raise StartError("failed complete: failed to decode", [f"{name} is not UTF-8"]) from None
    found: list[tuple[object, list[str]]] = []
    try:
        for document in split_documents(text):
            doubled: list[str] = []
            found.append((load(document, doubled), doubled))
    except YamlFault as error:
        raise StartError("failed complete: failed to decode", [f"yaml: {error}"], [f"{name}: mend the line"]) from None
    return found


def _write(completed: Completed, target: Path) -> int:
    text = yaml.safe_dump(completed.document, sort_keys=True)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError("", [f"open {target}: {(error.strerror or str(error)).lower()}"]) from None
    _say(logging.INFO, "Wrote configuration", file=target)
    return 0


# -- one-shot modes --------------------------------------------------------------------------------------------------


def _clean_up(completed: Completed) -> int:
    from hansa.cli import planes

    if completed.surroundings.windows:
        return _fail("--cleanup is not implemented on Windows", ["--cleanup: use `hansa cleanup`"])
    cleaned = planes.clean_nftables(dry_run=False)
    for change in cleaned.changes:
        _say(logging.INFO, "removed", kind=change.kind, key=change.key)
    if cleaned.failed:
        return _fail("encountered an error while tearing down rules", cleaned.failed)
    return 0


def _initialise(completed: Completed, config: Config) -> int:
    if completed.surroundings.windows:
        return _fail("--init-only is not implemented on Windows", ["--init-only: leave it out"])
    from hansa.dataplanes.nftables.host import prepare

    for note in prepare(config).notes:
        _say(logging.WARNING, "host", note=note)
    _say(logging.INFO, "the kernel is set up")
    return 0


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Proxy:
    """The proxy itself, from the API connection on."""

    parsed: Parsed
    completed: Completed
    config: Config

    def run(self) -> int:
        from hansa.cli import inputs, options, planes
        from hansa.sources.kubernetes.client import load_connection

        parsed, config = self.parsed, self.config
        access = settle.api_access(self.completed)
        source = parsed.text("source") or options.KUBERNETES
        hns = parsed.text("hns")
        windows = planes.WindowsOptions(
            hns, parsed.text("emulated-network") or "overlay", parsed.text("emulated-build") or options.DEFAULT_BUILD
        )
        connect = partial(load_connection, access.kubeconfig, access.master, os.environ)
        with ExitStack() as stack:
            lock = Path(parsed.text("lock")) if parsed.text("lock") else None
            inputs.hold_lock(stack.enter_context, lock, "hansa proxy", always=windows.native)
            objects = inputs.open_source(source, config, connect)
            known: Sequence[Node] = ()
            if not inputs.is_kubernetes(source):
                known = options.nodes(inputs.read_once(source).changes)
            elif hns == "emulator":
                known = inputs.cluster_nodes(connect())
            plane = stack.enter_context(planes.open_plane(self.completed.surroundings.plane, config, known, windows))
            objects = plane.attend(objects)
            if parsed.text("hns-listen"):
                stack.enter_context(options.offer(plane.host, parsed.text("hns-listen")))
            return self._serve(plane, objects)

    def _serve(self, plane: Plane, objects: Source) -> int:
        from hansa.engine import Engine

        _say(logging.INFO, "Version info", version=KUBERNETES_VERSION, hansa=__version__)
        engine = Engine(plane.config, [objects], dataplane=plane.dataplane(), read_addresses=plane.read_addresses)
        _handle_other_signals()
        return asyncio.run(self._follow(engine, plane.config))

    async def _follow(self, engine: Engine, config: Config) -> int:
        from hansa import health

        ended_by = await health.run(engine, config)
        return 128 + ended_by if ended_by is not None else 0


def _handle_other_signals() -> None:
    """SIGQUIT prints every stack and ends, USR1 and USR2 do nothing, HUP ends at once: as with kube-proxy."""
    for name in ("SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGQUIT, lambda *_: os._exit(STACKS_SHOWN))
        faulthandler.register(signal.SIGQUIT, all_threads=True, chain=True)


def _log_to(config: LogConfig) -> None:
    logging.basicConfig(
        level=logging.DEBUG if config.verbosity >= 4 else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s %(message)s",
        stream=sys.stderr,
        force=True,
    )
