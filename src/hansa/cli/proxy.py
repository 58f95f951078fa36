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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import yaml

from hansa import __version__, logs
from hansa.bounded import LONGEST_CONFIG_BYTES, read_file
from hansa.cli import file_watch, windows_service
from hansa.cli.windows_service import NoServiceManager, Service
from hansa.config import Config, LogConfig
from hansa.errors import ConfigError, DataplaneError, SourceError
from hansa.kubeproxy import configuration, flags, settle
from hansa.kubeproxy.configuration import KUBERNETES_VERSION, Decoded, DecodeError
from hansa.kubeproxy.flags import FlagError, Parsed
from hansa.kubeproxy.settle import Completed, Documents, Level, Reload, StartError, Surroundings
from hansa.logs import Logger
from hansa.net import IPFamily, family_of
from hansa.sources.host import read_host
from hansa.sources.yaml_text import YamlFault, load, split_documents

if TYPE_CHECKING:
    from hansa.api.objects import Node
    from hansa.cli.planes import Plane
    from hansa.engine import Engine
    from hansa.health import Servers
    from hansa.health_pages import Shown
    from hansa.sources import Source
    from hansa.sources.node_gate import NodeFailure, Notice

_log = Logger("hansa.proxy")

FAILED = 1  # kube-proxy's code for every error
STACKS_SHOWN = 2  # after SIGQUIT


def main(arguments: Sequence[str]) -> int:
    """Be kube-proxy with these arguments; returns the exit code."""
    windows_service.give_output(_log_file(arguments))
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
    logs.configure(LogConfig())
    try:
        return _start(parsed)
    except StartError as error:
        return _fail(str(error), error.remedies)
    except ConfigError as error:
        stopped = settle.stop_by_faults("", error.faults)
        return _fail(str(stopped), stopped.remedies)
    except (DataplaneError, SourceError) as error:
        return _fail(str(error), ())


def _log_file(arguments: Sequence[str]) -> str:
    """Before anything can go wrong: where a process without output is to say so."""
    given = [word.partition("=")[2] for word in arguments if word.startswith("--service-log-file=")]
    return given[-1] if given else ""


def _fail(text: str, remedies: Sequence[str]) -> int:
    _log.error("command failed", err=text)
    for remedy in remedies:
        _log.error("how to mend it", remedy=remedy)
    return FAILED


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
    digests = file_watch.read_digests(_config_files(parsed))  # before they are read: no change is missed
    completed = settle.complete(parsed, _read_documents(parsed), surroundings)
    log_config = settle.check_logging(completed)
    logs.configure(log_config)
    for remark in completed.remarks:
        say = _log.warning if remark.level is Level.WARNING else _log.info
        say(remark.text)
    if log_config.verbosity >= 1:
        for name, value in flags.flag_values(parsed):
            logging.getLogger("hansa.proxy").log(logging.INFO - 1, "%s", f'FLAG: --{name}="{value}"')
    config = settle.check(completed)
    if target := parsed.text("write-config-to"):
        return _write(completed, Path(target))
    if parsed.is_set("cleanup"):
        return _clean_up(parsed, completed)
    if parsed.is_set("init-only"):
        return _initialise(completed, config)
    proxy = _Proxy(parsed, completed, config, digests)
    # kube-proxy knows the flag only, for it has no file yet when it asks (quirk 1).
    if not (parsed.is_set("windows-service") or completed.values["windowsRunAsService"]):
        return proxy.run()
    try:
        return windows_service.run(proxy.serve)
    except NoServiceManager as error:
        remedy = "--windows-service: leave it out, unless `sc.exe create` made a service of this command line"
        raise StartError("", [f"windows service: {error}"], [remedy]) from None


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


def _config_files(parsed: Parsed) -> list[Path]:
    return [_on_host(name) for name in (parsed.text("config"), parsed.text("hansa-config")) if name]


def _load(name: str) -> list[tuple[object, list[str]]]:
    path = _on_host(name)
    try:
        text = read_file(path, LONGEST_CONFIG_BYTES).decode("utf-8-sig")
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
    _log.info("Wrote configuration", file=target)
    return 0


# -- one-shot modes --------------------------------------------------------------------------------------------------


def _clean_up(parsed: Parsed, completed: Completed) -> int:
    from hansa.cli import inputs, planes

    if completed.surroundings.windows:
        return _fail("--cleanup is not implemented on Windows", ["--cleanup: use `hansa cleanup`"])
    failed: list[str] = []
    with ExitStack() as stack:
        inputs.hold_lock(stack.enter_context, _lock(parsed), "hansa proxy --cleanup", always=True)
        for cleaned in (planes.clean_kube_proxy(), planes.clean_nftables(dry_run=False)):
            for change in cleaned.changes:
                _log.info("removed", kind=change.kind, key=change.key)
            failed += cleaned.failed
    return _fail("encountered an error while tearing down rules", failed) if failed else 0


def _lock(parsed: Parsed) -> Path | None:
    return Path(parsed.text("lock")) if parsed.text("lock") else None


def _initialise(completed: Completed, config: Config) -> int:
    from hansa.cli import planes

    if completed.surroundings.windows:
        return _fail("--init-only is not implemented on Windows", ["--init-only: leave it out"])
    for note in planes.set_up_linux(config):
        _log.warning("host", note=note)
    _log.info("the kernel is set up")
    return 0


# -- running ---------------------------------------------------------------------------------------------------------


class _Proxy:
    """The proxy itself, from the API connection on."""

    def __init__(self, parsed: Parsed, completed: Completed, config: Config, digests: file_watch.Digests) -> None:
        """digests: of the configuration files, as they were read."""
        self._parsed = parsed
        self._digests = digests
        self._completed = completed
        self._supported = frozenset(IPFamily)
        self._config = config
        self._failure = ""
        self._stop: Callable[[], None] = lambda: None
        self._servers: Servers | None = None
        self._service: Service | None = None
        self._reloading: asyncio.Task[None] | None = None

    def serve(self, service: Service) -> int:
        """As a service, which the service manager ends."""
        self._service = service
        return self.run()

    def run(self) -> int:
        from hansa.cli import inputs, options, planes
        from hansa.sources.kubernetes.client import ClientSettings, load_connection
        from hansa.sources.kubernetes.watch import WatchSettings
        from hansa.sources.node_gate import GatedSource, NodeGate

        parsed, config = self._parsed, self._config
        access = settle.api_access(self._completed)
        client = ClientSettings(
            watch=WatchSettings(watch_list=access.watch_list),
            qps=access.qps if access.qps > 0 else None,
            burst=access.burst,
        )
        source = parsed.text("source") or options.KUBERNETES
        hns = parsed.text("hns")
        windows = planes.WindowsOptions(
            hns, parsed.text("emulated-network") or "overlay", parsed.text("emulated-build") or options.DEFAULT_BUILD
        )
        name = planes.choose(settle.dataplane(parsed, self._completed), hns)
        connect = partial(load_connection, access.kubeconfig, access.master, os.environ)
        with ExitStack() as stack:
            inputs.hold_lock(stack.enter_context, _lock(parsed), "hansa proxy", always=windows.native)
            cluster = inputs.open_source(source, config, connect, client)
            known = inputs.nodes_ahead(source, connect, fresh=windows.fresh)
            plane = stack.enter_context(planes.open_plane(name, config, known, windows))
            objects = plane.attend(cluster)
            if inputs.is_kubernetes(source) or inputs.is_manifests(source):  # a brain knows the Node by itself
                gate = NodeGate(config.node_name, needs_pod_cidrs=settle.needs_pod_cidrs(self._completed, config))
                objects = GatedSource(objects, gate, tell=self._on_node, fail=self._on_failure)
            if parsed.text("hns-listen"):
                stack.enter_context(options.offer(plane.host, parsed.text("hns-listen")))
            return self._serve(plane, objects, cluster)

    def _serve(self, plane: Plane, objects: Source, cluster: Source) -> int:
        from hansa.cli import inputs
        from hansa.engine import Engine

        _log.info("Version info", version=KUBERNETES_VERSION, hansa=__version__)
        engine = Engine(plane.config, [objects], dataplane=plane.dataplane(), read_addresses=plane.read_addresses)
        inputs.attend(engine, cluster)
        self._config = plane.config
        self._supported = plane.families
        _handle_other_signals()
        return asyncio.run(self._follow(engine, cluster))

    async def _follow(self, engine: Engine, cluster: Source) -> int:
        """Until a signal, or until something says that a new start is needed."""
        from hansa import health
        from hansa.engine import run
        from hansa.sources.kubernetes.client import KubernetesSource

        self._stop = engine.stop
        if self._service is not None:
            loop = asyncio.get_running_loop()
            self._service.on_stop(lambda: loop.call_soon_threadsafe(engine.stop))
        watching = asyncio.create_task(self._watch_files(engine))
        watching.add_done_callback(_log_bug)
        if self._completed.reload is Reload.APPLY and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_soon, engine)
        try:
            kubernetes = cluster if isinstance(cluster, KubernetesSource) else None
            async with health.serving(engine, self._config, cluster=kubernetes, shown=self._shown()) as servers:
                self._servers = servers
                ended_by = await run(engine)
        finally:
            watching.cancel()
        if ended_by is not None:
            return 128 + ended_by
        return _fail(self._failure, ()) if self._failure else 0

    def _shown(self) -> Shown:
        """What /flagz, /configz and metrics tell of flags and file."""
        from hansa.health_pages import Shown
        from hansa.kubeproxy.gates import GATES
        from hansa.meter import FeatureGate

        enabled = self._completed.enabled
        return Shown(
            program="kube-proxy",
            flags=dict(flags.flag_values(self._parsed)),
            gates=tuple(FeatureGate(one.name, one.stage, enabled[one.name]) for one in GATES.values()),
            configuration=self._completed.document,
            profiling=bool(self._completed.values["enableProfiling"]),
        )

    def _end(self, text: str) -> None:
        """End with an error, rules as they are."""
        self._failure = text
        self._stop()

    # -- the node

    def _on_failure(self, failure: NodeFailure) -> None:
        self._end(str(failure))

    def _on_node(self, notice: Notice) -> None:
        from hansa.sources import node_gate

        match notice:
            case node_gate.Waiting(what, longest_s):
                _log.info("waiting", what=what, longest_s=longest_s)
            case node_gate.Opened(node):
                self._judge_node(node)
            case node_gate.AddressesChanged(before, after):
                _log.warning(
                    "node addresses changed, rules follow",
                    before=", ".join(map(str, before)),
                    after=", ".join(map(str, after)),
                )
            case node_gate.NodeGone(name):
                _log.error("Node deleted; what is known of it stays in force", node=name)
            case _:
                assert_never(notice)

    def _judge_node(self, node: Node | None) -> None:
        told, pod_cidrs = (node.addresses, node.pod_cidrs) if node is not None else ((), ())
        addresses = (*self._config.bind_addresses, *told)
        if not addresses:
            text = "Can't determine this node's IP; node ports answer on all its addresses until the Node tells it, "
            _log.error(f"{text}or --bind-address does", node=self._config.node_name)
        elif (primary := family_of(addresses[0])) not in self._supported:
            self._end(f'no support for primary IP family "{primary}"')
            return
        families = frozenset(family_of(address) for address in addresses)
        pods = frozenset(family_of(prefix) for prefix in pod_cidrs)
        plane = self._completed.surroundings.plane
        if wrong := settle.wrong_families(self._config, families, pods, plane):
            self._end(f"kube-proxy configuration is incorrect: {wrong}")
            return
        for text in settle.warnings_on_node(self._config, families, plane):
            _log.warning("configuration", text=text)

    # -- the files

    async def _watch_files(self, engine: Engine) -> None:
        paths = _config_files(self._parsed)
        if not paths or self._completed.reload is Reload.IGNORE:
            return
        async for _ in file_watch.changes(paths, self._digests):
            if self._completed.reload is Reload.EXIT:
                self._end("content of the proxy server's configuration file was updated")
                return
            await self._reload(engine)

    def _reload_soon(self, engine: Engine) -> None:
        """What whoever sends SIGHUP to a process that reloads expects."""
        self._reloading = asyncio.create_task(self._reload(engine))
        self._reloading.add_done_callback(_log_bug)

    async def _reload(self, engine: Engine) -> None:
        """Apply what can be applied under working rules; say what cannot."""
        try:
            new = settle.complete(self._parsed, _read_documents(self._parsed), self._completed.surroundings)
            log_config, config = settle.check_logging(new), settle.check(new)
        except StartError as error:
            _log.error("changed configuration is wrong, the one before stays in force", err=error)
            return
        found = settle.difference(self._completed, new)
        if settle.check_logging(self._completed) != log_config:
            logs.configure(log_config)
        self._completed = new
        applied = settle.with_live_fields(self._config, config)
        if applied != self._config:
            self._config = applied
            await engine.reconfigure(applied)
        if self._servers is not None:
            self._servers.reconfigure(applied, self._shown())
        _log.info("changed configuration applied", settings=", ".join(found.live) or "none")
        if found.restart:
            _log.warning("changed configuration needs a restart", settings=", ".join(found.restart))


def _log_bug(task: asyncio.Task[None]) -> None:
    """What ends a task that should go on is a bug; without this nobody would hear of it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.exception("configuration files are watched no more", error)


def _on_host(name: str) -> Path:
    """Where a path of the command line lies; in a HostProcess container that may be elsewhere."""
    from hansa.sources.kubernetes.client import on_host

    return Path(on_host(name, os.environ))


def _handle_other_signals() -> None:
    """SIGQUIT prints every stack and ends, USR1 and USR2 do nothing, HUP ends at once: as with kube-proxy."""
    for name in ("SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGQUIT, lambda *_: os._exit(STACKS_SHOWN))
        faulthandler.register(signal.SIGQUIT, all_threads=True, chain=True)
