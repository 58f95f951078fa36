"""Config: one frozen value, made once from flags, environment and file; passed, never fetched.

Parsing of texts happens here (`make_config`); contradictions raise one ConfigError that lists all of them.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import assert_never

from hansa.errors import ConfigError, Fault
from hansa.kubeproxy.gates import ALLOW_SERVICE_EXTERNAL_IPS, GATES, judge, parse_gates
from hansa.kubeproxy.keys import FALSE, KEYS, TRUE
from hansa.kubeproxy.keys import KIND as _KIND
from hansa.net import Address, IPFamily, Prefix, address_port, family_of, parse_address, parse_prefix


class DetectLocalMode(enum.Enum):
    """How a pod of this node is recognised as the source of a packet (service-semantics section 11)."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


@dataclass(frozen=True, slots=True)
class NodePortAddresses:
    """Which local addresses serve node ports: `primary`, all, or those inside `prefixes` (N4-N8).

    primary=True and prefixes=() is the default; primary=False and prefixes=() means all local addresses.
    """

    primary: bool = True
    prefixes: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class BindAddress:
    """Where a server listens. An unspecified address (0.0.0.0, ::) means all of both families; port 0: any free one."""

    address: Address
    port: int

    def __str__(self) -> str:
        return address_port(self.address, self.port)


HEALTHZ_PORT = 10256  # kube-proxy's ports, which load balancers and monitoring already know
METRICS_PORT = 10249
# Where no server is wanted. "" in a file means the default, as kubeadm writes it; the flags' "" means this.
OFF = "off"


@dataclass(frozen=True, slots=True)
class WindowsConfig:
    """Settings of the Windows dataplane (windows-proxy A.1).

    network_name: "" = take environment KUBE_NETWORK, else the only l2bridge/overlay network of the host.
    source_vip: per family; on l2bridge the default is the node IP. source_vip_endpoint: name of an HNS endpoint whose
    address is the source VIP when `source_vip` is not given (#123014). create_source_vip: hansa makes the endpoint.
    critical: services whose frontends go first in every pass. takeover: whether leftovers of kube-proxy may be deleted.
    dns_probe_period_s: how often the cluster DNS is asked through its frontend, 0 = never.
    """

    network_name: str = ""
    source_vip: tuple[Address, ...] = ()
    source_vip_endpoint: str = ""
    create_source_vip: bool = True
    enable_dsr: bool = False
    root_endpoint_name: str = "cbr0"
    forward_health_check_vip: bool = False
    takeover: bool = True
    journal_path: str = ""
    critical: tuple[str, ...] = ("kube-system/kube-dns", "default/kubernetes")
    call_budget: int = 2000
    pass_budget_s: float = 20.0
    verify_per_period: int = 32
    dns_probe_period_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LinuxConfig:
    """What the kernel of a Linux node is set to at the start; None = what it has is left alone.

    max_per_core, min_entries: size of the connection table, by processor and at least. ip_forward: both families'
    forwarding is switched on; without it, what is switched off is only told. oom_score_adj: of this process.
    """

    max_per_core: int | None = None
    min_entries: int | None = None
    tcp_established_timeout_s: float | None = None
    tcp_close_wait_timeout_s: float | None = None
    tcp_be_liberal: bool = False
    udp_timeout_s: float | None = None
    udp_stream_timeout_s: float | None = None
    ip_forward: bool = False
    oom_score_adj: int | None = None


@dataclass(frozen=True, slots=True)
class VModule:
    """Verbosity for the files whose name, without its ending, matches a pattern with `*` and `?`."""

    file_pattern: str
    verbosity: int


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How the process logs (operations.md 15).

    format: text, klog's lines, or json. verbosity: 0 = life cycle and errors, up to 9. vmodule: in text only; the first
    pattern that matches counts. flush_frequency_s, info_buffer_bytes: how long, and how much of, information lines may
    be kept back where they are buffered; 0 bytes = not at all. split_stream: they go to standard output, the rest to
    standard error.
    """

    format: str = "text"
    verbosity: int = 0
    vmodule: tuple[VModule, ...] = ()
    flush_frequency_s: float = 5.0
    split_stream: bool = False
    info_buffer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the stages need to know and that does not come from the API or the host.

    proxy_name: this proxy's service-proxy-name, None = the default proxy (S4, S5).
    bind_addresses: replace the Node's primary IP per family (I6). Times are seconds.
    full_check_period_s: how often the host is compared with the rules though nothing changed (F30).
    healthz_bind_address, metrics_bind_address: None = no such server. bind_address_hard_fail: a port that is taken ends
    the process instead of being tried again (Z14).
    """

    node_name: str
    proxy_name: str | None = None
    bind_addresses: tuple[Address, ...] = ()
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    cluster_cidrs: tuple[Prefix, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    masquerade_all: bool = False
    node_port_addresses: NodePortAddresses = NodePortAddresses()
    localhost_node_ports: bool = False
    allow_external_ips: bool = True
    min_sync_period_s: float = 1.0
    sync_period_s: float = 30.0
    full_sync_period_s: float = 3600.0
    full_check_period_s: float = 30.0
    healthz_bind_address: BindAddress | None = BindAddress(IPv4Address(0), HEALTHZ_PORT)
    metrics_bind_address: BindAddress | None = BindAddress(IPv4Address("127.0.0.1"), METRICS_PORT)
    bind_address_hard_fail: bool = False
    windows: WindowsConfig = WindowsConfig()
    linux: LinuxConfig = LinuxConfig()

    @property
    def takeover(self) -> bool:
        """Whether leftovers of kube-proxy may be deleted, on any dataplane."""
        return self.windows.takeover

    def cluster_cidr(self, family: IPFamily) -> Prefix | None:
        """The first cluster CIDR of the family; None = ClusterCIDR detection is not possible there."""
        for prefix in self.cluster_cidrs:
            if (prefix.version == 4) == (family is IPFamily.IPV4):
                return prefix
        return None


def make_config(values: Mapping[str, object], *, node_name: str) -> Config:
    """Read settings in kube-proxy's words into one Config, or say everything that is wrong with them at once.

    `values` is nested as KubeProxyConfiguration is; where kube-proxy has no key for it, a setting is hansa's own (see
    `SETTINGS`). Values may also be texts as flags give them; None means "not given". `node_name` is this machine's host
    name; `hostnameOverride` replaces it (I5). `syncPeriod`, `minSyncPeriod`, `masqueradeAll`, `localhostNodePorts` may
    stand at top level; else the section that kube-proxy would read counts, in which a period of 0 means "not given".

    Raises ConfigError naming every fault by its path. Evidence: operations.md 3 to 5; service-semantics B7, I5, N4, N9.
    """
    reader = _Reader(values)
    default = Config(node_name="")
    sync_period_s = reader.period("syncPeriod", default=default.sync_period_s)
    min_sync_period_s = reader.period("minSyncPeriod", default=default.min_sync_period_s, zero=True)
    if sync_period_s < min_sync_period_s:
        reader.fault(
            reader.given_path("minSyncPeriod"),
            f"{min_sync_period_s:g} s is longer than the sync period of {sync_period_s:g} s",
            remedy="lower minSyncPeriod or raise syncPeriod",
        )
    config = Config(
        node_name=_read_node_name(reader, node_name),
        proxy_name=reader.text("proxyName") or None,
        bind_addresses=_read_bind_addresses(reader),
        detect_local_mode=_read_detect_local_mode(reader),
        cluster_cidrs=_read_prefixes(reader, "clusterCIDR"),
        bridge_interface=reader.text("detectLocal.bridgeInterface"),
        interface_name_prefix=reader.text("detectLocal.interfaceNamePrefix"),
        masquerade_all=reader.flag(reader.given_path("masqueradeAll"), default=False),
        node_port_addresses=_read_node_port_addresses(reader),
        localhost_node_ports=reader.flag(reader.given_path("localhostNodePorts"), default=False),
        allow_external_ips=_read_gates(reader).get(ALLOW_SERVICE_EXTERNAL_IPS, True),
        min_sync_period_s=min_sync_period_s,
        sync_period_s=sync_period_s,
        full_sync_period_s=reader.period("fullSyncPeriod", default=default.full_sync_period_s),
        full_check_period_s=reader.period("fullCheckPeriod", default=sync_period_s),
        healthz_bind_address=_read_bind_address(
            reader, "healthzBindAddress", port=HEALTHZ_PORT, defaults=(IPv4Address(0), IPv6Address(0))
        ),
        metrics_bind_address=_read_bind_address(
            reader, "metricsBindAddress", port=METRICS_PORT, defaults=(IPv4Address("127.0.0.1"), IPv6Address("::1"))
        ),
        bind_address_hard_fail=reader.flag("bindAddressHardFail", default=default.bind_address_hard_fail),
        windows=_read_windows(reader),
        linux=_read_linux(reader),
    )
    _check_detector(reader, config)
    reader.check_document()
    if reader.faults:
        raise ConfigError(*reader.faults)
    return config


def ignored_settings(values: Mapping[str, object]) -> tuple[Fault, ...]:
    """The settings given in `values` that are kube-proxy's but have no effect in hansa, each with the reason.

    Unknown feature gates are among them: kube-proxy goes on without them, and start scripts rely on that.
    """
    found = []
    for path, value in _leaves(values):
        reason = next((why for prefix, why in _IGNORED.items() if _is_under(path, prefix)), None)
        if reason is not None and value not in (None, "", [], {}):
            found.append(Fault(path, f"has no effect: {reason}"))
    reader = _Reader(values)
    locked = {gate.name for gate in GATES.values() if gate.locked}
    for gate in sorted(_read_gates(reader).keys() - locked - {ALLOW_SERVICE_EXTERNAL_IPS}):
        found.append(Fault(f"featureGates.{gate}", "has no effect: hansa has no such gate"))
    return tuple(found)


def config_warnings(config: Config, node_families: frozenset[IPFamily]) -> tuple[Fault, ...]:
    """What is allowed but probably not meant, given the families in which this node has an address.

    Evidence: service-semantics N5, N12, M3, M9; operations.md 5, configuration warnings.
    """
    found: list[Fault] = []
    for family in sorted(node_families):
        prefixes = config.node_port_addresses.prefixes
        if prefixes and not any(family_of(prefix) is family for prefix in prefixes):
            text = f"no CIDR for {family}, which this node has: its node ports answer on every local {family} address"
            found.append(Fault("nodePortAddresses", text, f"add {family} CIDRs, or use [primary]"))
        if config.detect_local_mode is DetectLocalMode.CLUSTER_CIDR and config.cluster_cidr(family) is None:
            text = (
                f"no CIDR for {family}: pods cannot be told from outside there, nothing to a ClusterIP is masqueraded"
            )
            found.append(Fault("clusterCIDR", text, "add the pods' CIDR, or choose another detectLocalMode"))
    given: tuple[tuple[str, tuple[Address | Prefix, ...]], ...] = (
        ("clusterCIDR", config.cluster_cidrs),
        ("bindAddress", config.bind_addresses),
        ("winkernel.sourceVip", config.windows.source_vip),
    )
    for path, entries in given:
        for entry in entries:
            if node_families and family_of(entry) not in node_families:
                found.append(Fault(path, f"{entry} is {family_of(entry)}, but this node has no address of that family"))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Setting:
    """A key that `make_config` reads: its path, what may stand there, and what it does.

    flag: the name of the flag of `hansa proxy` that stands for it; "" where kube-proxy has one, or none is needed.
    """

    path: str
    form: str
    meaning: str
    flag: str = ""


# What KubeProxyConfiguration does not have. Those without a flag have kube-proxy's, by way of a section of its file.
OWN_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "winkernel.sourceVipEndpoint",
        "name",
        "HNS endpoint whose address is the source VIP, if that is not given",
        flag="source-vip-endpoint",
    ),
    Setting(
        "winkernel.createSourceVip",
        "bool",
        "whether hansa makes the source VIP's endpoint",
        flag="create-source-vip",
    ),
    Setting("winkernel.journalPath", "path", "where the ids of own objects are noted", flag="journal-path"),
    Setting(
        "winkernel.callBudget",
        "count",
        "HNS calls per pass; the rest follows at once in the next",
        flag="hns-call-budget",
    ),
    Setting(
        "winkernel.passBudget",
        "duration",
        "time per pass; the rest follows at once in the next",
        flag="hns-pass-budget",
    ),
    Setting(
        "winkernel.verifyPerPeriod", "count", "objects read in full per check, in turn", flag="hns-verify-per-period"
    ),
    Setting(
        "winkernel.dnsProbePeriod",
        "duration",
        "ask the cluster DNS through its frontend, and make that anew if only its endpoints answer; 0 = never",
        flag="dns-probe-period",
    ),
    Setting("syncPeriod", "duration", "a failed sync is repeated after this time"),
    Setting("minSyncPeriod", "duration", "pause after a sync before the next; 0 = none"),
    Setting(
        "fullSyncPeriod",
        "duration",
        "all rules are handed to the dataplane anew after this time",
        flag="full-sync-period",
    ),
    Setting(
        "fullCheckPeriod",
        "duration",
        "the host is compared with the rules; default: syncPeriod",
        flag="full-check-period",
    ),
    Setting("masqueradeAll", "bool", "masquerade everything sent to a ClusterIP"),
    Setting("localhostNodePorts", "bool", "node ports on 127.0.0.1 too, where the dataplane can"),
    Setting("proxyName", "name", "handle only Services with this service-proxy-name label", flag="service-proxy-name"),
    Setting(
        "ipForward",
        "bool",
        "Linux: switch forwarding on at the start; false: only tell if it is off",
        flag="ip-forward",
    ),
    Setting("takeover", "bool", "whether leftovers of kube-proxy may be deleted", flag="takeover"),
    Setting(
        "criticalServices",
        "list of namespace/name",
        "Services that go first in every sync",
        flag="critical-services",
    ),
)
# Sections that are about the process and not about the proxy; `hansa run` has options of its own for them.
_OF_THE_PROCESS = ("clientConnection", "logging", "enableProfiling", "windowsRunAsService")
_GATE = f"featureGates.{ALLOW_SERVICE_EXTERNAL_IPS}"


def _settings() -> Iterator[Setting]:
    for key in KEYS:
        if key.planes and key.path.partition(".")[0] not in _OF_THE_PROCESS:
            path, form = (_GATE, "bool") if key.path == "featureGates" else (key.path, key.form or key.type.value)
            yield Setting(path, form, key.meaning)
    yield from OWN_SETTINGS


SETTINGS: tuple[Setting, ...] = tuple(_settings())


def _ignored() -> Iterator[tuple[str, str]]:
    """Keys that are known and not read here, whole sections as one. A path covers everything below it."""
    for path in _OF_THE_PROCESS:
        yield path, "it is about the process: `hansa proxy` reads it"
    for key in KEYS:
        if not key.planes and key.path.partition(".")[0] not in _OF_THE_PROCESS:
            section = key.path.rpartition(".")[0]
            alike = all(not one.planes for one in KEYS if one.path.startswith(f"{section}."))
            yield (section if section and alike else key.path), key.why


_IGNORED: Mapping[str, str] = dict(_ignored())
_DOCUMENT = frozenset({"apiVersion", "kind"})
_SECTIONED: Mapping[str, tuple[str, ...]] = {
    "syncPeriod": ("iptables", "nftables"),
    "minSyncPeriod": ("iptables", "nftables"),
    "masqueradeAll": ("iptables", "nftables"),
    "localhostNodePorts": ("iptables",),
}

_UNIT_S: Mapping[str, float] = {
    "ns": 1e-9,
    "us": 1e-6,
    "\N{MICRO SIGN}s": 1e-6,
    "\N{GREEK SMALL LETTER MU}s": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
# Possessive, so that thousands of digits without a unit take no quadratic time.
_DURATION = re.compile(r"[+-]?(?:(?:\d++\.?+\d*+|\.\d++)(?:ns|us|\u00b5s|\u03bcs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([a-z\u00b5\u03bc]+)")


def parse_duration(text: str) -> float:
    """Read a duration as Go writes it (`300ms`, `1h15m`, `-1.5h`, `0`) in seconds. Raises ValueError."""
    if text in ("0", "+0", "-0"):
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration: expected a number with a unit, like 30s, 500ms or 1h15m")
    seconds = math.fsum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))
    return -seconds if text.startswith("-") else seconds


def go_duration(seconds: float) -> str:
    """A duration as Go prints it.

    >>> go_duration(0), go_duration(0.5), go_duration(30), go_duration(90.25), go_duration(3600)
    ('0s', '500ms', '30s', '1m30.25s', '1h0m0s')
    """
    nanoseconds = round(seconds * 1e9)
    if nanoseconds < 0:
        return f"-{go_duration(-seconds)}"
    for unit, size in (("ns", 1), ("\N{MICRO SIGN}s", 1_000), ("ms", 1_000_000)):
        if 0 < nanoseconds < size * 1000:
            return f"{_decimal(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, 1_000_000_000)}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    fraction = str(rest).zfill(len(str(size)) - 1).rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)


class _Reader:
    """Values by dotted path, each read into its type once; faults are gathered, and a default stands in meanwhile."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values
        self.faults: list[Fault] = []
        self._nftables = self.text("mode") == "nftables"

    def fault(self, path: str, text: str, *, remedy: str = "") -> None:
        self.faults.append(Fault(path, text, remedy))

    def get(self, path: str) -> object:
        """The value at `path`; None = not given."""
        found: object = self.values
        for part in path.split("."):
            if not isinstance(found, Mapping):
                return None
            found = found.get(part)
        return found

    def given_path(self, name: str) -> str:
        """Where a setting that may stand at top level or in a section does stand; the top level wins."""
        if self.get(name) is not None:
            return name
        nftables = self._nftables and "nftables" in _SECTIONED[name]
        path = f"{'nftables' if nftables else 'iptables'}.{name}"
        return name if self.get(path) is None else path

    def text(self, path: str) -> str:
        """A text without surrounding space; "" = not given."""
        value = self.get(path)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(path, f"{_shown(value)} is not a text", remedy="put it in quotes")
            return ""
        return value.strip()

    def flag(self, path: str, *, default: bool) -> bool:
        value = self.get(path)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value in TRUE | FALSE:
            return value in TRUE
        self.fault(path, f"{_shown(value)} is neither true nor false", remedy="write true or false")
        return default

    def count(self, path: str, *, default: int) -> int:
        """A whole number above 0."""
        value = self.get(path)
        if value is None:
            return default
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.fault(path, f"{_shown(value)} is not a whole number above 0")
        return default

    def integer(self, path: str, least: int, most: int) -> int | None:
        """A whole number between two others; None = not given."""
        value = self.get(path)
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value, re.ASCII):
            value = int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
            return value
        self.fault(path, f"{_shown(value)} is not a whole number from {least} to {most}")
        return None

    def limit(self, path: str) -> int | None:
        """A whole number above 0; None = 0 or not given, which leave things as they are."""
        value = self.get(path)
        return None if value in (0, "0") and not isinstance(value, bool) else self.count(path, default=0) or None

    def period(self, name: str, *, default: float, zero: bool = False) -> float:
        """A duration in seconds, above 0; `zero`: or 0. In a section, 0 means that it is not given."""
        path = self.given_path(name) if name in _SECTIONED else name
        value = self.get(path)
        if value is None or value == "":
            return default
        if value == 0 and not isinstance(value, bool):
            seconds = 0.0
        elif isinstance(value, str):
            try:
                seconds = parse_duration(value.strip())
            except ValueError as error:
                self.fault(path, str(error))
                return default
        else:
            self.fault(path, f"{_shown(value)} is not a duration", remedy="write it with a unit, like 30s or 1h15m")
            return default
        if seconds == 0 and path != name:
            return default
        if seconds < 0 or (seconds == 0 and not zero):
            bound = "not be negative" if zero else "be above 0"
            self.fault(path, f"{_shown(value)} must {bound}", remedy=f"leave it out to get {default:g}s")
            return default
        return seconds

    def texts(self, path: str) -> tuple[str, ...] | None:
        """A list of texts, or one text with commas; None = not given, () = given and empty."""
        value = self.get(path)
        if value is None:
            return None
        if isinstance(value, str):
            value = value.split(",") if value.strip() else []
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            self.fault(path, f"{_shown(value)} is not a list of texts")
            return None
        return tuple(one.strip() for one in value)

    def check_document(self) -> None:
        """Name every key that nobody knows, with the nearest one that somebody does."""
        kind = self.get("kind")
        if kind not in (None, _KIND):
            self.fault("kind", f"{_shown(kind)} is not {_KIND}", remedy="give the file with the proxy's configuration")
        known = {setting.path for setting in SETTINGS} | _IGNORED.keys() | _DOCUMENT
        sections = {path.rpartition(".")[0] for path in known} - {""}
        for path in sorted(sections):
            value = self.get(path)
            as_flag = path == "featureGates" and isinstance(value, str)
            if value is not None and not isinstance(value, Mapping) and not as_flag:
                self.fault(path, f"{_shown(value)} is not a group of settings")
        for path, _ in _leaves(self.values):
            if path in known or path in sections or any(_is_under(path, prefix) for prefix in _IGNORED):
                continue
            if _is_under(path, "featureGates"):
                continue  # kube-proxy goes on with unknown gates; `ignored_settings` names them
            meant = _nearest(path, known)
            self.fault(path, "unknown setting", remedy=f"did you mean {meant}?" if meant else "remove it")


def _leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value that is not a group of others, by dotted path, in path order."""
    for key in sorted(values, key=str):
        value = values[key]
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _nearest(path: str, known: Set[str]) -> str | None:
    """The setting that was probably meant: the same name in another group or case, else a similar path."""
    by_lower = {one.lower(): one for one in sorted(known)}
    # The shortest path last: a setting at top level is preferred to its namesake in a group.
    by_name = {one.rpartition(".")[2].lower(): one for one in sorted(known, key=lambda one: (-len(one), one))}
    same_name = by_name.get(path.rpartition(".")[2].lower())
    if same_name is not None:
        return same_name
    near = difflib.get_close_matches(path.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + ".")


def _shown(value: object) -> str:
    return f"{value!r}"[:80]


def _read_node_name(reader: _Reader, hostname: str) -> str:
    override = reader.get("hostnameOverride")
    if isinstance(override, str) and override and not override.strip():
        reader.fault("hostnameOverride", "nothing but blanks", remedy="give the Node's name, or leave it out")
        return ""
    name = (reader.text("hostnameOverride") or hostname.strip()).lower()
    if not name:
        reader.fault("hostnameOverride", "this machine has no host name", remedy="give the Node's name here")
    return name


def _read_addresses(reader: _Reader, path: str) -> tuple[Address, ...]:
    """At most one address per family."""
    found: list[Address] = []
    for text in filter(None, reader.texts(path) or ()):
        try:
            found.append(parse_address(text))
        except ValueError as error:
            reader.fault(path, str(error), remedy="give an IP address, without brackets or port")
    _refuse_twins(reader, path, found)
    return tuple(found)


def _read_prefixes(reader: _Reader, path: str) -> tuple[Prefix, ...]:
    found: list[Prefix] = []
    for text in filter(None, reader.texts(path) or ()):
        try:
            found.append(parse_prefix(text))
        except ValueError as error:
            reader.fault(path, str(error), remedy="write CIDRs like 10.1.0.0/16")
    return tuple(found)


def _read_bind_addresses(reader: _Reader) -> tuple[Address, ...]:
    return tuple(address for address in _read_addresses(reader, "bindAddress") if not address.is_unspecified)


def _read_bind_address(
    reader: _Reader, path: str, *, port: int, defaults: tuple[Address, Address]
) -> BindAddress | None:
    """IP or IP:port; the port is added if missing. Not given: the first default, the second if bindAddress is IPv6."""
    if reader.get(path) is False:  # what YAML makes of an `off` without quotes
        return None
    text = reader.text(path)
    if not text:
        bind_addresses = _Reader({"bindAddress": reader.get("bindAddress")})  # its faults are named elsewhere
        given = _read_addresses(bind_addresses, "bindAddress")
        return BindAddress(defaults[1] if given and given[0].version == 6 else defaults[0], port)
    if text == OFF:
        return None
    try:
        return parse_bind_address(text, port)
    except ValueError:
        remedy = f"write it like 0.0.0.0:{port} or [::]:{port}, or off"
        reader.fault(path, f"{_shown(text)} is neither IP nor IP:port", remedy=remedy)
        return None


def parse_bind_address(text: str, default_port: int) -> BindAddress:
    match = re.fullmatch(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<v4>[^:\[\]]+)):(?P<port>\d{1,5})", text)
    if match is None:
        return BindAddress(parse_address(text), default_port)
    address, port = parse_address(match["v6"] or match["v4"]), int(match["port"])
    if port > 65535 or (match["v6"] and ":" not in match["v6"]):
        raise ValueError(text)
    return BindAddress(address, port)


def _refuse_twins(reader: _Reader, path: str, entries: Sequence[Address | Prefix]) -> None:
    families = [family_of(entry) for entry in entries]
    for family in sorted(set(families)):
        if families.count(family) > 1:
            shown = ", ".join(str(entry) for entry in entries if family_of(entry) is family)
            reader.fault(path, f"two for {family}: {shown}", remedy="give one, or one for each family")


def _read_detect_local_mode(reader: _Reader) -> DetectLocalMode:
    word = reader.text("detectLocalMode")
    if not word:
        return DetectLocalMode.CLUSTER_CIDR
    try:
        return DetectLocalMode(word)
    except ValueError:
        known = ", ".join(mode.value for mode in DetectLocalMode)
        reader.fault("detectLocalMode", f"{word!r} is unknown", remedy=f"choose one of {known}")
        return DetectLocalMode.CLUSTER_CIDR


def _check_detector(reader: _Reader, config: Config) -> None:
    """t137, and section 11: the chosen detector must have exactly what it needs; the others' settings do not matter."""
    match config.detect_local_mode:
        case DetectLocalMode.CLUSTER_CIDR:
            _refuse_twins(reader, "clusterCIDR", config.cluster_cidrs)
        case DetectLocalMode.BRIDGE_INTERFACE:
            if not config.bridge_interface:
                remedy = "name the bridge, or choose another detectLocalMode"
                reader.fault("detectLocal.bridgeInterface", "must not be empty in mode BridgeInterface", remedy=remedy)
        case DetectLocalMode.INTERFACE_NAME_PREFIX:
            if not config.interface_name_prefix:
                remedy = "give the prefix, or choose another detectLocalMode"
                path = "detectLocal.interfaceNamePrefix"
                reader.fault(path, "must not be empty in mode InterfaceNamePrefix", remedy=remedy)
        case DetectLocalMode.NODE_CIDR:
            pass  # what it needs comes with the Node
        case _:
            assert_never(config.detect_local_mode)


def _read_node_port_addresses(reader: _Reader) -> NodePortAddresses:
    path = "nodePortAddresses"
    texts = reader.texts(path)
    if texts is None:
        return NodePortAddresses()
    if "primary" in texts:
        if len(texts) > 1:
            reader.fault(path, "`primary` cannot be mixed with CIDRs", remedy="use [primary] alone, or CIDRs alone")
        return NodePortAddresses()
    prefixes: list[Prefix] = []
    for index, text in enumerate(texts):
        try:
            prefixes.append(parse_prefix(text))
        except ValueError as error:
            reader.fault(f"{path}[{index}]", str(error), remedy="write a CIDR like 192.0.2.0/24, or [primary] alone")
    return NodePortAddresses(primary=False, prefixes=tuple(prefixes))


def _read_gates(reader: _Reader) -> Mapping[str, bool]:
    """Feature gates by name, from a group or from the flag's text `A=true,B=false`."""
    given = reader.get("featureGates")
    if isinstance(given, str):
        try:
            given = parse_gates(given)
        except ValueError as error:
            reader.fault("featureGates", str(error), remedy="write A=true,B=false")
            return {}
    if not isinstance(given, Mapping):
        return {}
    gates = _Reader({"featureGates": given})
    found = {str(name): gates.flag(f"featureGates.{name}", default=True) for name in sorted(given, key=str)}
    reader.faults.extend(gates.faults)
    for name, text in judge(found).faults.items():
        reader.fault(f"featureGates.{name}", text, remedy="remove it")
    return found


def _read_linux(reader: _Reader) -> LinuxConfig:
    def time_s(name: str) -> float | None:
        return reader.period(f"conntrack.{name}", default=0.0, zero=True) or None

    return LinuxConfig(
        max_per_core=reader.limit("conntrack.maxPerCore"),
        min_entries=reader.limit("conntrack.min"),
        tcp_established_timeout_s=time_s("tcpEstablishedTimeout"),
        tcp_close_wait_timeout_s=time_s("tcpCloseWaitTimeout"),
        tcp_be_liberal=reader.flag("conntrack.tcpBeLiberal", default=False),
        udp_timeout_s=time_s("udpTimeout"),
        udp_stream_timeout_s=time_s("udpStreamTimeout"),
        ip_forward=reader.flag("ipForward", default=False),
        oom_score_adj=reader.integer("oomScoreAdj", -1000, 1000),
    )


def _read_windows(reader: _Reader) -> WindowsConfig:
    default = WindowsConfig()
    critical = reader.texts("criticalServices")
    for index, name in enumerate(critical or ()):
        if not re.fullmatch(r"[^/\s]+/[^/\s]+", name):
            reader.fault(f"criticalServices[{index}]", f"{name!r} names no Service", remedy="write namespace/name")
    return WindowsConfig(
        network_name=reader.text("winkernel.networkName"),
        source_vip=_read_addresses(reader, "winkernel.sourceVip"),
        source_vip_endpoint=reader.text("winkernel.sourceVipEndpoint"),
        create_source_vip=reader.flag("winkernel.createSourceVip", default=default.create_source_vip),
        enable_dsr=reader.flag("winkernel.enableDSR", default=default.enable_dsr),
        root_endpoint_name=reader.text("winkernel.rootHnsEndpointName") or default.root_endpoint_name,
        forward_health_check_vip=reader.flag(
            "winkernel.forwardHealthCheckVip", default=default.forward_health_check_vip
        ),
        takeover=reader.flag("takeover", default=default.takeover),
        journal_path=reader.text("winkernel.journalPath"),
        critical=default.critical if critical is None else critical,
        call_budget=reader.count("winkernel.callBudget", default=default.call_budget),
        pass_budget_s=reader.period("winkernel.passBudget", default=default.pass_budget_s),
        verify_per_period=reader.count("winkernel.verifyPerPeriod", default=default.verify_per_period),
        dns_probe_period_s=reader.period("winkernel.dnsProbePeriod", default=default.dns_probe_period_s, zero=True),
    )
