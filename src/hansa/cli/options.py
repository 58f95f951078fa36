"""What several commands take: settings, the source of objects, and which HNS to talk to."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import yaml

from hansa.api.change import Malformed, Upsert
from hansa.api.objects import EndpointSlice, Node
from hansa.bounded import LONGEST_CONFIG_BYTES, LONGEST_DUMP_BYTES, read_file
from hansa.config import Config, LogConfig, VModule, ignored_settings, make_config
from hansa.errors import ConfigError, Fault
from hansa.kubeproxy.flags import read_vmodule
from hansa.sources import News
from hansa.sources.host import read_host
from hansa.sources.yaml_text import in_one_line

if TYPE_CHECKING:
    from hansa.dataplanes.windows.apply import WindowsDataplane
    from hansa.hns.api import Guid, HnsApi
    from hansa.hns.dumps import Dump
    from hansa.hns.emulator.builds import Build
    from hansa.hns.emulator.server import Server
    from hansa.hns.emulator.service import Emulator
    from hansa.hns.port_ranges import TakenPorts
    from hansa.hns.remote import RemoteHns
    from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer, HnsNetwork
    from hansa.net import Address
    from hansa.sources import Source

_T = TypeVar("_T")

KUBERNETES = "kubernetes"
DEFAULT_BUILD = "ws2022"
# What collectlogs.ps1 and networkhealth.ps1 leave in a folder and hansa reads.
DUMP_NAMES = ("hnsdiag.txt", "network.txt", "endpoint.txt", "policy.txt", "loadbalancerdata.json")


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration, and what was given but has no effect (to be said once)."""

    config: Config
    notes: tuple[str, ...]


LOG_FORMATS = ("text", "json")


def log_config(form: str, verbosity: int, vmodule: str) -> LogConfig:
    """How a command logs that goes on. Raises ConfigError."""
    if form not in LOG_FORMATS:
        raise ConfigError(Fault("--logging-format", f"{form!r} is not known", f"give one of {', '.join(LOG_FORMATS)}"))
    try:
        modules = tuple(VModule(pattern, number) for pattern, number in read_vmodule(vmodule))
    except ValueError as error:
        raise ConfigError(Fault("--vmodule", str(error), "give pattern=number,...")) from None
    if modules and form != "text":
        raise ConfigError(Fault("--vmodule", "only text has it", "leave it out, or take --logging-format text"))
    return LogConfig(form, verbosity, modules)


def read_settings(
    file: Path | None, assignments: Sequence[str], node_name: str, *, flags: Mapping[str, str | None] | None = None
) -> Settings:
    """Configuration from a YAML file in kube-proxy's words, then `key=value` assignments, then flags; the latter win.

    node_name: "" = hostnameOverride, else this machine's name. flags: settings at top level, None = not given. Raises
    ConfigError with every fault.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = _read_yaml_mapping(file)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(Fault("--set", f"{assignment!r} is no assignment", "write --set key=value"))
        _assign(values, key.split("."), _read_yaml_value(text))
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    if node_name:
        values["hostnameOverride"] = node_name
    if "networkName" not in values.get("winkernel", {}) and os.environ.get("KUBE_NETWORK"):
        _assign(values, ["winkernel", "networkName"], os.environ["KUBE_NETWORK"])
    config = make_config(values, node_name=read_host().hostname)
    return Settings(config, tuple(str(fault) for fault in ignored_settings(values)))


def _read_yaml_mapping(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(read_file(file, LONGEST_CONFIG_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(Fault("--config", f"{file} cannot be read: {error.strerror}")) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a date that is none
        raise ConfigError(Fault("--config", f"{file} is not YAML: {in_one_line(error)}")) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(Fault("--config", f"{file} holds no mapping", "see docs/reference/settings.md"))
    return found


def _read_yaml_value(text: str) -> object:
    """A value as in the file; what is no YAML, like `[::]:10256`, is a text."""
    try:
        return yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _assign(values: dict[str, Any], path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(Fault(".".join(path), f"{part} is a value, not a group"))
        values = inner
    values[path[-1]] = value


def nodes(changes: Iterable[News]) -> list[Node]:
    return [change.object for change in changes if isinstance(change, Upsert) and isinstance(change.object, Node)]


def check_node_name(config: Config, known: Sequence[Node]) -> None:
    """Raise ConfigError if the input has Nodes but not ours: every pod would look remote (F67)."""
    names = sorted(node.name for node in known)
    if names and config.node_name not in names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise ConfigError(Fault("--node-name", f"no Node is called {config.node_name!r}", f"the input has {shown}"))


@dataclass(frozen=True, slots=True)
class Input:
    """What a source held when a command looked. faults: what could not be read at all, with its place."""

    changes: tuple[News, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def lost(self) -> list[str]:
        """What is missing from the input, one line for each fault, with object and field."""
        left_out = [
            f"object: {change.key} is left out: {fault}"
            for change in self.changes
            if isinstance(change, Malformed)
            for fault in change.faults
        ]
        return [*(f"source: {fault}" for fault in self.faults), *left_out]

    @property
    def skipped(self) -> list[str]:
        """Single entries that were left out of objects that are used."""
        return [
            f"object: {change.key}: skipped {fault}"
            for change in self.changes
            if isinstance(change, Upsert)
            for fault in change.skipped
        ]


@dataclass(slots=True)
class Host:
    """The HNS that a command works on; a context that closes the way to it.

    emulator: set if it lives in this process; `lock` is held while several threads use it. machine: the addresses of
    the machine that HNS runs on, each with its interface's MAC, "" = unknown; as far as can be told at the moment.
    dump: set if it is made of files, which may fail to tell something. file: where a saved emulator came from.
    taken_ports: which ports that machine gives away by itself, () = it cannot be told.
    """

    api: HnsApi
    emulator: Emulator | None = None
    machine: Callable[[], Mapping[Address, str]] = dict
    close: Callable[[], None] = lambda: None
    lock: threading.Lock = field(default_factory=threading.Lock)
    dump: Dump | None = None
    file: Path | None = None
    taken_ports: Callable[[], tuple[TakenPorts, ...]] = tuple

    def save(self) -> Path | None:
        """Write a changed emulator back to its file, at once or not at all; None: it came from none.

        Raises ConfigError.
        """
        if self.file is None or self.emulator is None:
            return None
        fresh = self.file.with_name(self.file.name + ".new")
        try:
            fresh.write_text(self.emulator.dump(), encoding="utf-8")
            fresh.replace(self.file)
        except OSError as error:
            raise ConfigError(Fault("--hns", f"{self.file} cannot be written: {error.strerror}")) from error
        return self.file

    @property
    def addresses(self) -> frozenset[Address]:
        return frozenset(self.machine())

    def mac_of(self, address: Address) -> str | None:
        return self.machine().get(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_source_vip(config: Config, host: Host) -> Config:
    """On an emulated overlay whose source VIP nobody named, that of its load balancers, else the usual place (.2).

    A dump has that of its load balancers or none. Never for a real node: there the address belongs to the CNI's plan,
    and guessing would collide with a pod.
    """
    from hansa.hns.dumps import Dump
    from hansa.lab.cni import spare_source_vips

    if config.windows.source_vip or config.windows.source_vip_endpoint:
        return config
    found: tuple[Address, ...] = ()
    if host.dump is not None:
        found = host.dump.source_vips
    elif (node := host.emulator) is not None:
        held = Dump(node.networks(), node.endpoints(), node.load_balancers())
        found = held.source_vips or spare_source_vips(node)
    return replace(config, windows=replace(config.windows, source_vip=found)) if found else config


def with_kubelet(objects: Source, host: Host, config: Config) -> Source:
    """On an emulated node somebody must give new pods their HNS endpoints; on others a real CNI does."""
    from hansa.hns.emulator.server import SharedHns
    from hansa.lab.cni import CniSource

    if host.emulator is None:
        return objects
    host.api = SharedHns(host.emulator, host.lock)
    return CniSource(objects, host.emulator, config.node_name, lock=host.lock)


def offer(host: Host | None, address: str) -> Server:
    """Let other programs use the emulated HNS, too. Raises ConfigError for a real one or none, or a bad address."""
    from hansa.hns.emulator.server import serve

    if host is None or host.emulator is None:
        raise ConfigError(Fault("--hns-listen", "only an emulated HNS can be offered", "use it with --hns emulator"))
    return serve(host.emulator, address, lock=host.lock, machine=host.machine())


def windows_dataplane(host: Host, config: Config) -> WindowsDataplane:
    from hansa.dataplanes.windows.apply import WindowsDataplane
    from hansa.hns.client import HnsClient

    return WindowsDataplane(
        HnsClient(host.api, time.monotonic),
        config,
        mac_of=host.mac_of,
        rng=random.Random(),
        clock=time.monotonic,
        taken_ports=host.taken_ports,
    )


def open_host(text: str, config: Config, known: Sequence[Node], *, network: str, build: str) -> Host:
    """The HNS that `--hns` names.

    `native`: this Windows machine's. `emulator`: a fresh emulated node, made for this Node as its CNI would. `emulator:
    FILE`: one that was saved. `dump:FILE,...`: what was saved of a real one. `remote:ADDRESS`: one that `hansa hns
    serve` offers. build: "" = as a dump tells, else DEFAULT_BUILD. Raises ConfigError, DataplaneError.
    """
    word, _, rest = text.partition(":")
    match word:
        case "native":
            from hansa.hns.native import NativeHns
            from hansa.hns.port_ranges import read_taken_ports

            native, own = NativeHns(), _this_machine()
            taken = read_taken_ports if sys.platform == "win32" else tuple
            return Host(native, machine=lambda: own, close=native.shutdown, taken_ports=taken)
        case "remote" if rest:
            from hansa.hns.remote import RemoteHns

            remote = RemoteHns(rest)
            return Host(remote, machine=_RemoteMachine(remote), close=remote.disconnect)
        case "emulator":
            emulator = _load_emulator(rest) if rest else _fresh_emulator(config, known, network=network, build=build)
            macs = dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address)
            from hansa.hns.port_ranges import PortRange, uniform

            first, count = emulator.machine.dynamic_ports
            taken = partial(uniform, PortRange(first, first + count - 1))
            file = Path(rest) if rest else None
            return Host(emulator, emulator, lambda: macs, file=file, taken_ports=taken)
        case "dump" if rest:
            node = next((node for node in known if node.name == config.node_name), None)
            return _open_dump(read_dump(rest.split(",")), node.addresses if node else (), build)
        case _:
            forms = "native, emulator, emulator:FILE, dump:FILE,... or remote:ADDRESS"
            raise ConfigError(Fault("--hns", f"{text!r} is no HNS that hansa knows", f"give {forms}"))


def _this_machine() -> dict[Address, str]:
    facts = read_host()
    return {address: facts.macs.get(address, "") for address in facts.addresses}


class _RemoteMachine:
    """The machine behind a served HNS, asked for as soon as it answers; this one if the server does not say."""

    def __init__(self, remote: RemoteHns) -> None:
        self._remote = remote
        self._known: Mapping[Address, str] | None = None

    def __call__(self) -> Mapping[Address, str]:
        from hansa.hns.api import HnsError

        if self._known is None:
            try:
                told = self._remote.machine()
            except HnsError:
                return {}  # the dataplane meets the same error and reports it; the next check asks again
            self._known = _this_machine() if told is None else told
        return self._known


def _fresh_emulator(config: Config, known: Sequence[Node], *, network: str, build: str) -> Emulator:
    from hansa.lab.cni import PodNetwork, emulated_node

    kinds = {kind.value: kind for kind in PodNetwork}
    if network not in kinds:
        raise ConfigError(Fault("--network", f"{network!r} is no pod network", f"give one of {', '.join(kinds)}"))
    own = next((node for node in known if node.name == config.node_name), None)
    return emulated_node(own, known, network=kinds[network], build=named_build(build))


def named_build(text: str) -> Build:
    """The emulated build of that name; "" = the default one. Raises ConfigError."""
    from hansa.hns.emulator.builds import BUILDS

    name = text or DEFAULT_BUILD
    if name not in BUILDS:
        raise ConfigError(Fault("--build", f"{name!r} is no emulated build", f"give one of {', '.join(BUILDS)}"))
    return BUILDS[name]


def read_dump(names: Sequence[str]) -> Dump:
    """Files of a node, or folders with what collectlogs.ps1 writes. Raises ConfigError if one cannot be opened."""
    from hansa.hns.dumps import DumpFile, read_dumps

    files = []
    for name in names:
        path = Path(name)
        inside = [path / each for each in DUMP_NAMES if (path / each).exists()] if path.is_dir() else [path]
        if not inside:
            raise ConfigError(Fault(name, "holds nothing that hansa reads", f"it reads {', '.join(DUMP_NAMES)}"))
        for each in inside:
            try:
                files.append(DumpFile(str(each), read_file(each, LONGEST_DUMP_BYTES)))
            except OSError as error:
                raise ConfigError(Fault(name, f"cannot be read: {error.strerror}")) from error
    return read_dumps(files)


def emulated_dump(dump: Dump, addresses: Iterable[Address], build: str) -> Emulator:
    """The node of a dump. addresses: used if the dump does not tell the node's own. Raises ConfigError."""
    from hansa.hns.dumps import emulate, likely_build

    chosen = named_build(build) if build else likely_build(dump.version, named_build(""))
    try:
        return emulate(dump, chosen, dump.management_addresses or tuple(addresses))
    except ValueError as error:
        remedy = "add the network (network.txt), a Node object, or --node-ip of `hansa hns import`"
        raise ConfigError(Fault("dump", str(error), remedy)) from error


def _open_dump(dump: Dump, addresses: Iterable[Address], build: str) -> Host:
    emulator = emulated_dump(dump, addresses, build)
    macs = dict.fromkeys(emulator.host_addresses, dump.host_mac)
    return Host(emulator, machine=lambda: macs, dump=dump)


def _load_emulator(file: str) -> Emulator:
    from hansa.hns.emulator.service import Emulator

    try:
        return Emulator.load(read_file(Path(file), LONGEST_DUMP_BYTES).decode())
    except OSError as error:
        raise ConfigError(Fault("--hns", f"{file} cannot be read: {error.strerror}")) from error
    except UnicodeDecodeError as error:
        raise ConfigError(Fault("--hns", f"{file} is no text: {error.reason}")) from error


def open_filled(text: str) -> Host:
    """The HNS that `--hns` names, for commands that look at what is there: a fresh emulated node would be empty."""
    word, _, rest = text.partition(":")
    match word:
        case "native":
            from hansa.hns.native import NativeHns

            native = NativeHns()
            return Host(native, close=native.shutdown)
        case "remote" if rest:
            from hansa.hns.remote import RemoteHns

            remote = RemoteHns(rest)
            return Host(remote, close=remote.disconnect)
        case "emulator" if rest:
            emulator = _load_emulator(rest)
            return Host(emulator, emulator, file=Path(rest))
        case _:
            forms = "native, emulator:FILE or remote:ADDRESS"
            raise ConfigError(Fault("--hns", f"{text!r} holds nothing that could be listed", f"give {forms}"))


@dataclass(frozen=True, slots=True)
class Listing:
    """What an HNS holds. malformed: what could not be understood, one line each."""

    networks: tuple[HnsNetwork, ...]
    endpoints: tuple[HnsEndpoint, ...]
    load_balancers: tuple[HnsLoadBalancer, ...]
    malformed: tuple[str, ...]


def list_dump(names: Sequence[str]) -> Listing:
    """What files tell of a node."""
    dump = read_dump(names)
    return Listing(dump.networks, dump.endpoints, dump.load_balancers, tuple(str(each) for each in dump.unread))


def named_addresses(changes: Iterable[News]) -> frozenset[Address]:
    """Every address in an EndpointSlice, ready or not."""
    slices = (each.object for each in changes if isinstance(each, Upsert) and isinstance(each.object, EndpointSlice))
    return frozenset(endpoint.address for one in slices for endpoint in one.endpoints)


def read_hns(api: HnsApi) -> Listing:
    """Read every object; one that vanishes or cannot be understood costs only itself."""
    from hansa.hns import schema
    from hansa.hns.api import HnsError, HnsKind
    from hansa.hns.client import HnsClient
    from hansa.hns.errors import ErrorClass, classify

    client = HnsClient(api)
    malformed: list[str] = []

    def read_one(kind: HnsKind, guid: Guid, decode: Callable[[str], _T]) -> _T | None:
        for is_last in (False, True):
            try:
                return decode(client.read(kind, guid))
            except schema.MalformedHnsObject as error:
                malformed.append(str(error))
                return None
            except HnsError as error:
                match classify(error):
                    case ErrorClass.UNAVAILABLE:
                        raise
                    case ErrorClass.GONE:
                        return None
                    case _ if is_last:  # once may be chance: torn down, say, between open and query
                        malformed.append(f"{kind} {guid} cannot be read: {error}")
        return None

    def read(kind: HnsKind, decode: Callable[[str], _T]) -> tuple[_T, ...]:
        found = (read_one(kind, guid, decode) for guid in client.list_ids(kind))
        return tuple(one for one in found if one is not None)

    return Listing(
        read(HnsKind.NETWORK, schema.decode_network),
        read(HnsKind.ENDPOINT, schema.decode_endpoint),
        read(HnsKind.LOAD_BALANCER, schema.decode_load_balancer),
        tuple(malformed),
    )
