"""kube-proxy's command line: one table of flags, and a parser that reads it as kube-proxy's does.

The table is what parser, help, reference and tests are made of. Flags of hansa's own stand in it beside kube-proxy's.
Evidence: operations.md section 2; the conventions of GNU getopt_long as Go programs of the Kubernetes family have them.
"""

from __future__ import annotations

import csv
import difflib
import enum
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from hansa.config import OWN_SETTINGS, Setting, go_duration, parse_duration
from hansa.kubeproxy.gates import parse_gates
from hansa.kubeproxy.keys import BOTH, BY_PATH, FALSE, LINUX_ONLY, NOWHERE, TRUE, WINDOWS_ONLY
from hansa.net import parse_address

PROGRAM = "kube-proxy"


class Type(enum.Enum):
    """How the text of a flag is read; the value is the word for it in the help."""

    STRING = "string"
    BOOL = "bool"
    INT = "int32"
    LEVEL = "Level"  # a whole number from 0 to 2**31 - 1
    COUNT = "count"  # a whole number above 0
    FLOAT = "float"
    DURATION = "duration"
    IP = "ip"
    IP_PORT = "ipport"
    LIST = "strings"
    WORDS = "assignments"  # each use adds one text as it stands
    GATES = "mapStringBool"
    VMODULE = "pattern=N,..."
    QUANTITY = "quantity"
    VERSION = "version[=true]"


class Origin(enum.Enum):
    """Whose flag it is."""

    KUBE_PROXY = "kube-proxy"
    WINDOWS = "kube-proxy on Windows"
    OWN = "hansa"
    GONE = "kube-proxy of old"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    key: the path of the configuration key that it stands for, "" = none. default: as help shows it. planes: as for a
    `Key`. deprecated: "" or what is said when it is used; such flags are not in the help.
    """

    name: str
    type: Type
    default: str
    meaning: str
    key: str = ""
    origin: Origin = Origin.KUBE_PROXY
    planes: frozenset[str] = BOTH
    why: str = ""
    short: str = ""
    deprecated: str = ""

    @property
    def needs_no_value(self) -> bool:
        return self.type in (Type.BOOL, Type.VERSION)


Value = str | bool | int | float | tuple[str, ...] | Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Given:
    """A flag that was given, with what all its uses come to."""

    flag: Flag
    value: Value


@dataclass(frozen=True, slots=True)
class Parsed:
    """A command line that could be read. given: in the order of first use. wants_help: nothing else counts then.

    notes: what is to be said on standard error, each a line.
    """

    given: tuple[Given, ...] = ()
    notes: tuple[str, ...] = ()
    wants_help: bool = False

    def get(self, name: str) -> Value | None:
        """The value of a flag that was given, else None."""
        return next((one.value for one in self.given if one.flag.name == name), None)

    def text(self, name: str) -> str:
        """The same for flags that are texts; "" if it was not given."""
        value = self.get(name)
        return value if isinstance(value, str) else ""

    def is_set(self, name: str) -> bool:
        """The same for flags that are true or false."""
        return self.get(name) is True

    def texts(self, name: str) -> tuple[str, ...]:
        """The same for lists."""
        value = self.get(name)
        return value if isinstance(value, tuple) else ()


class FlagError(Exception):
    """A command line that cannot be read; the text is the one that kube-proxy has for it, as far as there is one."""


_HEALTHZ_PORT = (
    "This flag is deprecated and will be removed in a future release. Please use --healthz-bind-address instead."
)
_METRICS_PORT = (
    "This flag is deprecated and will be removed in a future release. Please use --metrics-bind-address instead."
)
_T, _O = Type, Origin
_LOGS = "hansa logs to standard error"


def _of(name: str, kind: Type, default: str, key: str, meaning: str = "") -> Flag:
    """A flag that stands for a key: what the key says of itself need not be said again."""
    about = BY_PATH[key]
    return Flag(name, kind, default, meaning or about.meaning, key, planes=about.planes, why=about.why)


def _windows(name: str, kind: Type, default: str, key: str) -> Flag:
    about = BY_PATH[key]
    return Flag(name, kind, default, about.meaning, key, _O.WINDOWS, planes=about.planes, why=about.why)


def _process(name: str, kind: Type, default: str, meaning: str, *, short: str = "") -> Flag:
    """A flag of kube-proxy's that no key stands for."""
    return Flag(name, kind, default, meaning, short=short)


def _gone(name: str, kind: Type, why: str) -> Flag:
    return Flag(name, kind, "", "", origin=_O.GONE, planes=NOWHERE, why=why)


def _own(name: str, kind: Type, default: str, meaning: str, *, planes: frozenset[str] = BOTH) -> Flag:
    return Flag(name, kind, default, meaning, origin=_O.OWN, planes=planes)


_OWN_TYPES = {"bool": _T.BOOL, "duration": _T.DURATION, "count": _T.COUNT, "list of namespace/name": _T.LIST}


def _of_setting(one: Setting) -> Flag:
    planes = WINDOWS_ONLY if one.path.startswith("winkernel.") else BOTH
    kind = _OWN_TYPES.get(one.form, _T.STRING)
    why = "it is about the host networking service of Windows" if planes is WINDOWS_ONLY else ""
    return Flag(one.flag, kind, "", one.meaning, one.path, _O.OWN, planes=planes, why=why)


FLAGS: tuple[Flag, ...] = (
    # -- files and one-shot modes
    _process(
        "config", _T.STRING, "", "the configuration file; what it says, or leaves out, replaces all flags but few"
    ),
    _process("write-config-to", _T.STRING, "", "write the configuration as it is resolved to this file, and end"),
    _process("cleanup", _T.BOOL, "false", "remove the rules of kube-proxy and of hansa from this node, and end"),
    _process("init-only", _T.BOOL, "false", "set the kernel as the configuration asks for, which needs root, and end"),
    _process("version", _T.VERSION, "false", "print the version and end; =raw: in full; =vX.Y.Z: report that one"),
    # -- the API server
    _of("kubeconfig", _T.STRING, "", "clientConnection.kubeconfig"),
    _process("master", _T.STRING, "", "the address of the API server; wins over the kubeconfig's"),
    _of("kube-api-content-type", _T.STRING, "application/vnd.kubernetes.protobuf", "clientConnection.contentType"),
    _of("kube-api-qps", _T.FLOAT, "5", "clientConnection.qps"),
    _of("kube-api-burst", _T.INT, "10", "clientConnection.burst"),
    # -- the node and its servers
    _of("hostname-override", _T.STRING, "", "hostnameOverride", "this node's name; wins over the file"),
    _of("bind-address", _T.IP, "0.0.0.0", "bindAddress"),
    _of(
        "healthz-bind-address", _T.IP_PORT, "0.0.0.0:10256", "healthzBindAddress", 'where health is asked; "": nowhere'
    ),
    _of("metrics-bind-address", _T.IP_PORT, "127.0.0.1:10249", "metricsBindAddress", 'where metrics are; "": nowhere'),
    Flag("healthz-port", _T.INT, "10256", "the port of healthz-bind-address; 0: nowhere", deprecated=_HEALTHZ_PORT),
    Flag("metrics-port", _T.INT, "10249", "the port of metrics-bind-address; 0: nowhere", deprecated=_METRICS_PORT),
    _of("bind-address-hard-fail", _T.BOOL, "false", "bindAddressHardFail"),
    _of("profiling", _T.BOOL, "false", "enableProfiling"),
    _of("show-hidden-metrics-for-version", _T.STRING, "", "showHiddenMetricsForVersion"),
    # -- the dataplane
    _of("proxy-mode", _T.STRING, "", "mode"),
    _of(
        "feature-gates", _T.GATES, "", "featureGates", "A=true,B=false; AllowServiceExternalIPs is the one that counts"
    ),
    _of("config-sync-period", _T.DURATION, "15m0s", "configSyncPeriod"),
    _of(
        "iptables-sync-period",
        _T.DURATION,
        "30s",
        "iptables.syncPeriod",
        "a failed sync is repeated after this time; in all modes but ipvs",
    ),
    _of(
        "iptables-min-sync-period",
        _T.DURATION,
        "1s",
        "iptables.minSyncPeriod",
        "pause after a sync before the next; in all modes but ipvs",
    ),
    _of("ipvs-sync-period", _T.DURATION, "30s", "ipvs.syncPeriod"),
    _of("ipvs-min-sync-period", _T.DURATION, "1s", "ipvs.minSyncPeriod"),
    _of("iptables-masquerade-bit", _T.INT, "14", "iptables.masqueradeBit"),
    _of("iptables-localhost-nodeports", _T.BOOL, "true", "iptables.localhostNodePorts"),
    _of("masquerade-all", _T.BOOL, "false", "iptables.masqueradeAll"),
    _of("ipvs-scheduler", _T.STRING, "", "ipvs.scheduler"),
    _of("ipvs-exclude-cidrs", _T.LIST, "[]", "ipvs.excludeCIDRs"),
    _of("ipvs-strict-arp", _T.BOOL, "false", "ipvs.strictARP"),
    _of("ipvs-tcp-timeout", _T.DURATION, "0s", "ipvs.tcpTimeout"),
    _of("ipvs-tcpfin-timeout", _T.DURATION, "0s", "ipvs.tcpFinTimeout"),
    _of("ipvs-udp-timeout", _T.DURATION, "0s", "ipvs.udpTimeout"),
    _of("detect-local-mode", _T.STRING, "ClusterCIDR", "detectLocalMode"),
    _of("cluster-cidr", _T.STRING, "", "clusterCIDR"),
    _of("pod-bridge-interface", _T.STRING, "", "detectLocal.bridgeInterface"),
    _of("pod-interface-name-prefix", _T.STRING, "", "detectLocal.interfaceNamePrefix"),
    _of(
        "nodeport-addresses",
        _T.LIST,
        "[]",
        "nodePortAddresses",
        "primary, or CIDRs: local addresses that serve node ports",
    ),
    # -- the Linux kernel
    _of("oom-score-adj", _T.INT, "-999", "oomScoreAdj"),
    _of("conntrack-max-per-core", _T.INT, "32768", "conntrack.maxPerCore"),
    _of("conntrack-min", _T.INT, "131072", "conntrack.min"),
    _of("conntrack-tcp-timeout-established", _T.DURATION, "24h0m0s", "conntrack.tcpEstablishedTimeout"),
    _of("conntrack-tcp-timeout-close-wait", _T.DURATION, "1h0m0s", "conntrack.tcpCloseWaitTimeout"),
    _of("conntrack-tcp-be-liberal", _T.BOOL, "false", "conntrack.tcpBeLiberal"),
    _of("conntrack-udp-timeout", _T.DURATION, "0s", "conntrack.udpTimeout"),
    _of("conntrack-udp-timeout-stream", _T.DURATION, "0s", "conntrack.udpStreamTimeout"),
    Flag(
        "boot-id-file",
        _T.STRING,
        "/proc/sys/kernel/random/boot_id",
        "",
        planes=NOWHERE,
        why="unused by kube-proxy too",
    ),
    Flag(
        "machine-id-file",
        _T.STRING,
        "/etc/machine-id,/var/lib/dbus/machine-id",
        "",
        planes=NOWHERE,
        why="unused by kube-proxy too",
    ),
    # -- logging
    Flag("v", _T.LEVEL, "0", "how much is logged: 0 to 9", "logging.verbosity", short="v"),
    _of("vmodule", _T.VMODULE, "", "logging.vmodule"),
    _of("logging-format", _T.STRING, "text", "logging.format"),
    _of("log-flush-frequency", _T.DURATION, "5s", "logging.flushFrequency"),
    _of("log-text-split-stream", _T.BOOL, "false", "logging.options.text.splitStream"),
    _of("log-json-split-stream", _T.BOOL, "false", "logging.options.json.splitStream"),
    _of("log-text-info-buffer-size", _T.QUANTITY, "0", "logging.options.text.infoBufferSize"),
    _of("log-json-info-buffer-size", _T.QUANTITY, "0", "logging.options.json.infoBufferSize"),
    # -- Windows
    _windows("windows-service", _T.BOOL, "false", "windowsRunAsService"),
    _windows("source-vip", _T.STRING, "", "winkernel.sourceVip"),
    _windows("network-name", _T.STRING, "", "winkernel.networkName"),
    _windows("enable-dsr", _T.BOOL, "false", "winkernel.enableDSR"),
    _windows("root-hnsendpoint-name", _T.STRING, "cbr0", "winkernel.rootHnsEndpointName"),
    _windows("forward-healthcheck-vip", _T.BOOL, "false", "winkernel.forwardHealthCheckVip"),
    # -- hansa's own
    _own("hansa-config", _T.STRING, "", "a file with hansa's own settings (kind HansaConfiguration)"),
    _own("config-override", _T.WORDS, "", "key=value; wins over --config; may be repeated"),
    _own("config-reload", _T.STRING, "exit", "when the configuration file changes: exit, apply or ignore"),
    _own(
        "accept-mode",
        _T.LIST,
        "[]",
        "modes of kube-proxy, like iptables or ipvs, in whose place nftables may work",
        planes=LINUX_ONLY,
    ),
    _own("dataplane", _T.STRING, "", "another dataplane than the mode implies, as `hansa run --dataplane` takes it"),
    _own("strict-config", _T.BOOL, "false", "refuse keys of the file that nobody knows, instead of warning"),
    _own("strict-flags", _T.BOOL, "false", "refuse flags that kube-proxy once had, instead of warning"),
    _own("lock", _T.STRING, "", "lock file against a second instance; default: one per host"),
    _own(
        "service-log-file",
        _T.STRING,
        "",
        "where a process without output, as a service is, logs; default: %ProgramData%\\hansa\\hansa.log",
        planes=WINDOWS_ONLY,
    ),
    _own("source", _T.STRING, "kubernetes", "where objects come from: kubernetes, or a manifest file or folder"),
    _own("hns", _T.STRING, "", "be a Windows proxy: native, emulator, emulator:FILE or remote:ADDRESS"),
    _own("hns-listen", _T.STRING, "", "offer an emulated HNS to other programs at this address", planes=WINDOWS_ONLY),
    _own("emulated-network", _T.STRING, "overlay", "pod network of a fresh emulated node", planes=WINDOWS_ONLY),
    _own("emulated-build", _T.STRING, "ws2022", "Windows build of a fresh emulated node", planes=WINDOWS_ONLY),
    *(_of_setting(one) for one in OWN_SETTINGS if one.flag),
    # -- gone
    _gone("logtostderr", _T.BOOL, _LOGS),
    _gone("alsologtostderr", _T.BOOL, _LOGS),
    _gone("log-dir", _T.STRING, _LOGS),
    _gone("log-file", _T.STRING, _LOGS),
    _gone("log-file-max-size", _T.STRING, _LOGS),
    _gone("one-output", _T.BOOL, _LOGS),
    _gone("skip-headers", _T.BOOL, "every line has its header"),
    _gone("skip-log-headers", _T.BOOL, _LOGS),
    _gone("stderrthreshold", _T.STRING, _LOGS),
    _gone("add-dir-header", _T.BOOL, "lines name the file alone"),
    _gone("log-backtrace-at", _T.STRING, "errors have their traceback"),
    _gone("proxy-port-range", _T.STRING, "it was for the userspace mode of old releases"),
    _gone("udp-timeout", _T.STRING, "it was for the userspace mode of old releases"),
    _gone("cleanup-iptables", _T.BOOL, "use --cleanup"),
    _gone("cleanup-ipvs", _T.BOOL, "use --cleanup"),
)
BY_NAME: Mapping[str, Flag] = {one.name: one for one in FLAGS}
_BY_SHORT = {one.short: one for one in FLAGS if one.short}


def parse(arguments: Sequence[str], *, windows: bool) -> Parsed:
    """Read a command line. Raises FlagError at the first thing that is wrong.

    windows: whether this is a Windows machine; `--hns` makes it one as well, for only there are Windows' flags known.
    """
    reading = _Reading()
    words = iter(arguments)
    for word in words:
        if word == "--":
            reading.positional.extend(words)
        elif word.startswith("--"):
            reading.long(word[2:], words)
        elif word.startswith("-") and len(word) > 1:
            reading.short(word[1:], words)
        else:
            reading.positional.append(word)
        if reading.wants_help:
            return Parsed(wants_help=True)
    given = tuple(Given(BY_NAME[name], value) for name, value in reading.values.items())
    windows = windows or "hns" in reading.values
    for one in given:
        if one.flag.origin is Origin.WINDOWS and not windows:
            raise FlagError(f"unknown flag: --{one.flag.name} (known on Windows, or with --hns)")
        if one.flag.origin is Origin.GONE and reading.values.get("strict-flags") is True:
            raise FlagError(f"unknown flag: --{one.flag.name}")
    got = [word for word in reading.positional if word]
    if got:
        quoted = " ".join(_quoted(word) for word in reading.positional)
        raise FlagError(f"{_quoted(PROGRAM)} does not take any arguments, got [{quoted}]")
    return Parsed(given, tuple(dict.fromkeys(_notes(given))))


def _notes(given: Sequence[Given]) -> Iterator[str]:
    for one in given:
        if one.flag.deprecated:
            yield f"Flag --{one.flag.name} has been deprecated, {one.flag.deprecated}"
        if one.flag.origin is Origin.GONE:
            yield f"Flag --{one.flag.name} is no longer known to kube-proxy and has no effect: {one.flag.why}"


class _Reading:
    """The words read so far."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.positional: list[str] = []
        self.wants_help = False

    def long(self, word: str, rest: Iterator[str]) -> None:
        name, equals, text = word.partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: --{word}")
        name = name.replace("_", "-")
        flag = BY_NAME.get(name)
        if flag is None:
            if name == "help":
                self.wants_help = True
                return
            raise FlagError(f"unknown flag: --{name}{_suggestion(name)}")
        if equals:
            self._note(flag, text)
        elif flag.needs_no_value:
            self._note(flag, "true")
        else:
            following = next(rest, None)
            if following is None:
                raise FlagError(f"flag needs an argument: --{name}")
            self._note(flag, following)

    def short(self, word: str, rest: Iterator[str]) -> None:
        letter, tail = word[0], word[1:]
        if letter == "h":
            self.wants_help = True
            return
        flag = _BY_SHORT.get(letter)
        if flag is None:
            raise FlagError(f"unknown shorthand flag: {letter!r} in -{word}")
        if tail:
            self._note(flag, tail.removeprefix("="))
            return
        following = next(rest, None)
        if following is None:
            raise FlagError(f"flag needs an argument: {letter!r} in -{word}")
        self._note(flag, following)

    def _note(self, flag: Flag, text: str) -> None:
        try:
            value = read_value(flag.type, text)
        except ValueError as error:
            shown = f"-{flag.short}, --{flag.name}" if flag.short else f"--{flag.name}"
            raise FlagError(f"invalid argument {_quoted(text)} for {_quoted(shown)} flag: {error}") from None
        before = self.values.get(flag.name)
        if isinstance(before, tuple) and isinstance(value, tuple):
            value = before + value
        elif isinstance(before, Mapping) and isinstance(value, Mapping):
            value = {**before, **value}
        self.values[flag.name] = value


def _suggestion(name: str) -> str:
    known = [one.name for one in FLAGS if not one.deprecated and one.origin is not Origin.GONE]
    flat = {one.replace("-", ""): one for one in known}
    if name.replace("-", "").lower() in flat:
        return f" (did you mean --{flat[name.replace('-', '').lower()]}?)"
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean --{near[0]}?)" if near else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# -- values ----------------------------------------------------------------------------------------------------------

INT32 = 2**31 - 1
_WHOLE = re.compile(r"[+-]?[0-9]+")
# Of Kubernetes' quantities those that can be a size: digits, perhaps a fraction, and a unit.
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(|[numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)")
_QUANTITY_UNITS = {
    "": 1.0,
    **{letter: 10.0**power for letter, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)},
    **{f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)},
}


def read_value(kind: Type, text: str) -> Value:
    """A flag's text as the value that its key has in a file. Raises ValueError."""
    match kind:
        case Type.STRING:
            return text
        case Type.BOOL:
            if text not in TRUE | FALSE:
                raise ValueError(f"{_quoted(text)} is neither true nor false")
            return text in TRUE
        case Type.INT:
            return _whole(text, -INT32 - 1)
        case Type.LEVEL:
            return _whole(text, 0)
        case Type.COUNT:
            return _whole(text, 1)
        case Type.FLOAT:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError(f"{_quoted(text)} is not a finite number")
            return number
        case Type.DURATION:
            return go_duration(parse_duration(text))
        case Type.IP:
            try:
                parse_address(text.strip())
            except ValueError:
                raise ValueError(f"{_quoted(text)} is not a valid IP address") from None
            return text.strip()
        case Type.IP_PORT:
            return _ip_port(text)
        case Type.LIST:
            return _csv(text)
        case Type.WORDS:
            if not text.partition("=")[0] or "=" not in text:
                raise ValueError("malformed pair, expect key=value")
            return (text,)
        case Type.GATES:
            return parse_gates(text)
        case Type.VMODULE:
            read_vmodule(text)
            return tuple(part for part in text.split(",") if part)
        case Type.QUANTITY:
            read_quantity(text)
            return text
        case Type.VERSION:
            return _version(text)
        case _:
            assert_never(kind)


def _csv(text: str) -> tuple[str, ...]:
    try:
        return tuple(next(csv.reader([text], strict=True), ()))
    except csv.Error as error:
        raise ValueError(f"{_quoted(text)} is not a list: {error}") from None


def _whole(text: str, least: int) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{_quoted(text)} is not a whole number")
    if not least <= int(text) <= INT32:
        raise ValueError(f"{_quoted(text)} is out of range: {least} to {INT32}")
    return int(text)


def _ip_port(text: str) -> str:
    """An address with or without port, or nothing; in brackets an IPv6 address must have one."""
    bare = text.strip()
    if not bare:
        return ""
    try:
        parse_address(bare)
    except ValueError:
        pass
    else:
        return bare
    host, colon, port = bare.rpartition(":")
    if not colon:
        raise ValueError(
            f"{_quoted(text)} is not in a valid format (ip or ip:port): address {bare}: missing port in address"
        )
    if not port.isascii() or not port.isdigit():
        raise ValueError(f"{_quoted(port)} is not a valid number")
    inner = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    try:
        address = parse_address(inner)
    except ValueError:
        raise ValueError(f"{_quoted(host)} is not a valid IP address") from None
    if address.version == 6 and inner is host:
        raise ValueError(f"{_quoted(text)} is not in a valid format (ip or ip:port): too many colons in address")
    if not 1 <= int(port) <= 65535:
        raise ValueError("must be a valid port number (1 to 65535)")
    return bare


def read_vmodule(text: str) -> tuple[tuple[str, int], ...]:
    """`pattern=N,...` as pairs. Raises ValueError."""
    pairs = []
    for part in text.split(","):
        if not part:
            continue
        pattern, equals, level = part.partition("=")
        if not equals or not pattern or not level:
            raise ValueError(f"{_quoted(part)} does not have the pattern=N format")
        pairs.append((pattern, _whole(level, 0)))
    return tuple(pairs)


def read_quantity(text: str) -> float:
    """The number that a Kubernetes quantity like `16Mi` stands for. Raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{_quoted(text)} is not a quantity: expected a number with a unit, like 16Mi")
    number, unit = float(found[1]), found[2]
    try:
        size = number * _QUANTITY_UNITS[unit] if unit in _QUANTITY_UNITS else number * 10.0 ** int(unit[1:])
    except OverflowError:
        raise ValueError(f"{_quoted(text)} is too large") from None
    return -size if text.startswith("-") else size


def _version(text: str) -> str:
    if text in TRUE:
        return "true"
    if text in FALSE:
        return "false"
    if text != "raw" and not re.fullmatch(r"v\d+\.\d+\.\d+([-+.].*)?", text):
        raise ValueError("expected true, false, raw or vX.Y.Z")
    return text


# -- showing ---------------------------------------------------------------------------------------------------------


def shown(value: Value) -> str:
    """A value as it is logged and as /flagz has it."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return f"[{','.join(value)}]"
        case Mapping():
            return ",".join(f"{name}={str(on).lower()}" for name, on in sorted(value.items()))
        case str() | int():
            return str(value)
        case _:
            assert_never(value)


def flag_values(parsed: Parsed) -> tuple[tuple[str, str], ...]:
    """Every flag that this process knows, by name, with the value that is in force on the command line."""
    given = {one.flag.name: shown(one.value) for one in parsed.given}
    known = (
        one
        for one in FLAGS
        if one.origin is not Origin.GONE and (one.origin is not Origin.WINDOWS or one.name in given)
    )
    return tuple(sorted((one.name, given.get(one.name, one.default)) for one in known))


def usage(*, windows: bool, width: int = 100) -> str:
    """What `--help` prints."""
    lines = [
        "A Kubernetes service proxy that stands where kube-proxy stood: its flags, its configuration file, its ports.",
        "",
        "Usage:",
        "  hansa proxy [flags]",
    ]
    groups = [("kube-proxy's flags", (Origin.KUBE_PROXY,)), ("hansa's own flags", (Origin.OWN,))]
    if windows:
        groups.insert(1, ("kube-proxy's flags on Windows", (Origin.WINDOWS,)))
    for title, origins in groups:
        lines += ["", f"{title}:"]
        for one in sorted(FLAGS, key=lambda one: one.name):
            if one.origin in origins and not one.deprecated:
                lines += _help_lines(one, width)
    lines += ["", "      --help, -h", "          this text", ""]
    return "\n".join(lines)


def _help_lines(flag: Flag, width: int) -> list[str]:
    start = f"  -{flag.short}, " if flag.short else "      "
    kind = "" if flag.type is Type.BOOL else f" {flag.type.value}"
    text = flag.meaning or f"without effect: {flag.why}"
    if flag.meaning and not flag.planes:
        text = f"{flag.meaning} (without effect: {flag.why})"
    if flag.default not in ("", "false", "[]"):
        text += f" (default {flag.default})"
    return [
        f"{start}--{flag.name}{kind}",
        *textwrap.wrap(text, width, initial_indent=" " * 10, subsequent_indent=" " * 10),
    ]
