"""KubeProxyConfiguration v1alpha1: decoding, defaults, what is wrong with it, and the way back into a document.

Values are kept by dotted path (`conntrack.min`), texts, numbers and lists as a file has them; durations stay texts.
Evidence: operations.md sections 3 and 5; the order and the words of the problems are kube-proxy's.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from hansa.config import HEALTHZ_PORT, METRICS_PORT, OFF, OWN_SETTINGS, DetectLocalMode, go_duration, parse_duration
from hansa.errors import Fault
from hansa.kubeproxy import gates
from hansa.kubeproxy.flags import INT32, read_quantity
from hansa.kubeproxy.keys import API_VERSION, BY_PATH, KEYS, KIND, SECTIONS, Type
from hansa.net import Address, Prefix, address_port, parse_address, parse_prefix

Values = Mapping[str, object]

OWN_API_VERSION, OWN_KIND = "config.hansa/v1alpha1", "HansaConfiguration"
# What a HansaConfiguration may hold besides the settings of `hansa.config`: about the process, each with its flag.
OWN_PROCESS_KEYS: Mapping[str, str] = {"acceptModes": "accept-mode", "configReload": "config-reload"}
OWN_PATHS = frozenset(one.path for one in OWN_SETTINGS if one.flag) | OWN_PROCESS_KEYS.keys()

IPTABLES, IPVS, NFTABLES, KERNELSPACE = "iptables", "ipvs", "nftables", "kernelspace"
LINUX_MODES = (IPTABLES, IPVS, NFTABLES)
# kube-proxies before 1.26 had a mode of this name; hansa has a dataplane that does the same work, on Linux.
USERSPACE = "userspace"
_YAML_1_1_TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON"})
_YAML_1_1_FALSE = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF"})
# 0 is read as "not given" there.
_ZERO_IS_UNSET = frozenset(
    {
        *("clientConnection.qps", "clientConnection.burst", "configSyncPeriod", "logging.flushFrequency"),
        *("iptables.syncPeriod", "iptables.minSyncPeriod", "nftables.syncPeriod", "nftables.minSyncPeriod"),
        *("ipvs.syncPeriod",),
    }
)
_EMPTY_IS_UNSET = frozenset({"bindAddress", "clientConnection.contentType", "logging.format"})


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a document says. lenient: why strict decoding failed, () if it did not; what could be read counts.

    unknown: keys that nobody knows, by path; each is in `lenient`, too.
    """

    values: Values
    lenient: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reading:
    values: dict[str, object] = field(default_factory=dict)
    lenient: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class DecodeError(Exception):
    """A document that cannot be used at all; `faults` has everything, by key."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(str(fault) for fault in faults))


def decode(document: object, *, doubled: Iterable[str] = ()) -> Decoded:
    """Read a KubeProxyConfiguration. doubled: what the reader of the text says of keys given twice.

    Keys that nobody knows are passed over, as kube-proxy does. Raises DecodeError for another kind or version, and for
    values of the wrong type, all at once.
    """
    found = _of_kind(document, API_VERSION, KIND)
    reading = _Reading(lenient=list(doubled))
    _read_section(found, "", reading)
    if reading.faults:
        raise DecodeError(*reading.faults)
    return Decoded(reading.values, tuple(reading.lenient), tuple(reading.unknown))


def likely_key(unknown: str) -> str | None:
    """The key that was probably meant; None if nothing looks like it.

    >>> likely_key("nftables.syncPerid"), likely_key("bogus")
    ('nftables.syncPeriod', None)
    """
    by_lower = {path.lower(): path for path in (*BY_PATH, *SECTIONS)}
    near = difflib.get_close_matches(unknown.lower(), by_lower, n=1, cutoff=0.75)
    return by_lower[near[0]] if near else None


def is_own(document: object) -> bool:
    """Whether a document is a HansaConfiguration; then `decode_own` reads it."""
    return isinstance(document, Mapping) and document.get("kind") == OWN_KIND


def decode_own(document: object) -> Values:
    """Read a HansaConfiguration. Nobody has one by accident, so an unknown key is a fault. Raises DecodeError."""
    found = _of_kind(document, OWN_API_VERSION, OWN_KIND)
    values: dict[str, object] = {}
    faults: list[Fault] = []
    for path, value in leaves({key: value for key, value in found.items() if key not in ("apiVersion", "kind")}):
        if path in OWN_PATHS:
            values[path] = value
        else:
            remedy = "it belongs into the KubeProxyConfiguration" if path in BY_PATH or path in SECTIONS else ""
            faults.append(Fault(path, "is no setting of hansa's own", remedy or "see the reference of kube-proxy"))
    if faults:
        raise DecodeError(*faults)
    return {path: value for path, value in values.items() if value is not None}


def leaves(values: Mapping[Any, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value that is not a group of others, by dotted path, in the order given."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(values: Values) -> dict[str, Any]:
    """Values by dotted path as the groups of a document."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return found


def _of_kind(document: object, version: str, kind: str) -> Mapping[Any, object]:
    if not isinstance(document, Mapping):
        raise DecodeError(
            Fault("document", "couldn't get version/kind: it holds no mapping", f"begin with kind: {kind}")
        )
    found_kind, found_version = document.get("kind"), document.get("apiVersion")
    if not found_kind:
        raise DecodeError(Fault("kind", "Object 'Kind' is missing", f"write kind: {kind}"))
    if not found_version:
        raise DecodeError(Fault("apiVersion", "Object 'apiVersion' is missing", f"write apiVersion: {version}"))
    if (found_version, found_kind) != (version, kind):
        text = f"no kind {json.dumps(str(found_kind))} is registered for version {json.dumps(str(found_version))}"
        raise DecodeError(Fault("kind", text, f"write apiVersion: {version} and kind: {kind}"))
    return document


def _read_section(section: Mapping[Any, object], prefix: str, reading: _Reading) -> None:
    for name, value in section.items():
        path = f"{prefix}{name}"
        if not prefix and name in ("apiVersion", "kind"):
            continue
        if path in BY_PATH:
            if value is not None:
                _read_key(path, value, reading)
        elif path not in SECTIONS:
            reading.lenient.append(f'unknown field "{path}"')
            reading.unknown.append(path)
        elif isinstance(value, Mapping):
            _read_section(value, f"{path}.", reading)
        elif value is not None:
            reading.faults.append(Fault(path, f"cannot unmarshal {_json_type(value)} into a group of settings"))


def _read_key(path: str, value: object, reading: _Reading) -> None:
    try:
        reading.values[path] = read_typed(BY_PATH[path].type, value)
    except ValueError as error:
        reading.faults.append(Fault(path, str(error), _TYPE_REMEDIES.get(BY_PATH[path].type, "")))


_TYPE_REMEDIES: Mapping[Type, str] = {
    Type.TEXT: "put it in quotes",
    Type.BOOL: "write true or false",
    Type.DURATION: "write it with a unit, like 30s or 1h15m",
    Type.LIST: "write a list of texts",
    Type.GATES: "write a group of names with true or false",
}


def read_typed(kind: Type, value: object) -> object:
    """A value of a document, checked for its type. Raises ValueError."""
    wrong = f"cannot unmarshal {_json_type(value)} into {kind.value}"
    match kind:
        case Type.TEXT:
            if not isinstance(value, str):
                raise ValueError(wrong)
            return value
        case Type.BOOL:
            return _read_bool(value, wrong)
        case Type.INTEGER:
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(wrong)
            if not -INT32 - 1 <= value <= INT32:
                raise ValueError(f"{value} does not fit into 32 bits")
            return value
        case Type.NUMBER:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(wrong)
            return float(value)
        case Type.DURATION:
            if not isinstance(value, str):
                raise ValueError(wrong)
            return go_duration(parse_duration(value))
        case Type.FLUSH_PERIOD:
            if isinstance(value, int) and not isinstance(value, bool):
                return go_duration(value / 1e9)
            return read_typed(Type.DURATION, value)
        case Type.LIST:
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                raise ValueError(wrong)
            return tuple(value)
        case Type.GATES:
            if not isinstance(value, Mapping):
                raise ValueError(wrong)
            return {str(name): _read_bool(on, f"{name}: {wrong}") for name, on in value.items() if on is not None}
        case Type.VMODULE:
            return _read_vmodule(value, wrong)
        case Type.QUANTITY:
            text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
            if not isinstance(text, str):
                raise ValueError(wrong)
            read_quantity(text)
            return text
        case _:
            assert_never(kind)


def _read_bool(value: object, wrong: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _YAML_1_1_TRUE | _YAML_1_1_FALSE:  # what kube-proxy's reader takes for bools
        return value in _YAML_1_1_TRUE
    raise ValueError(wrong)


def _read_vmodule(value: object, wrong: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(wrong)
    found = []
    for one in value:
        pattern, level = (one.get("filePattern"), one.get("verbosity")) if isinstance(one, Mapping) else (None, None)
        if not isinstance(pattern, str) or not isinstance(level, int) or isinstance(level, bool) or level < 0:
            raise ValueError(f"{wrong}: each has a filePattern and a verbosity")
        found.append(f"{pattern}={level}")
    return tuple(found)


def _json_type(value: object) -> str:
    match value:
        case bool():
            return "bool"
        case int() | float():
            return f"number {value}"
        case str():
            return "string"
        case list() | tuple():
            return "array"
        case Mapping():
            return "object"
        case _:
            return type(value).__name__


# -- defaults --------------------------------------------------------------------------------------------------------


def with_defaults(given: Values, *, windows: bool) -> dict[str, object]:
    """What a file says, and for the rest the defaults of a file."""
    values: dict[str, object] = {key.path: key.default for key in KEYS}
    for path, value in given.items():
        if (path in _ZERO_IS_UNSET and value in (0, "0s")) or (path in _EMPTY_IS_UNSET and value == ""):
            continue
        values[path] = value
    on_ipv6 = ":" in str(values["bindAddress"])
    for path, port, addresses in (
        ("healthzBindAddress", HEALTHZ_PORT, ("0.0.0.0", "::")),
        ("metricsBindAddress", METRICS_PORT, ("127.0.0.1", "::1")),
    ):
        values[path] = with_port(str(values[path]) or addresses[on_ipv6], port)
    if windows and not values["winkernel.rootHnsEndpointName"]:
        values["winkernel.rootHnsEndpointName"] = "cbr0"
    return values


def with_port(text: str, port: int) -> str:
    """An address with this port, if it is an address alone; anything else as it is."""
    try:
        return address_port(parse_address(text), port)
    except ValueError:
        return text


def sync_section(mode: str) -> str:
    """The section whose periods count in a mode."""
    return mode if mode in (IPVS, NFTABLES) else IPTABLES


def masquerade_section(mode: str) -> str:
    return NFTABLES if mode == NFTABLES else IPTABLES


def encode(values: Values) -> dict[str, Any]:
    """Resolved values as a document. The periods of sections that do not count are 0s, as kube-proxy writes them."""
    mode = str(values["mode"])
    found = dict(values)
    for section in LINUX_MODES:
        if section != sync_section(mode):
            found |= {f"{section}.syncPeriod": "0s", f"{section}.minSyncPeriod": "0s"}
    for section in (IPTABLES, NFTABLES):
        if section != masquerade_section(mode):
            found[f"{section}.masqueradeAll"] = False
    if not found["windowsRunAsService"]:
        del found["windowsRunAsService"]
    for path, value in found.items():
        if path == "logging.vmodule" and isinstance(value, tuple):
            pairs = (str(one).rpartition("=") for one in value)
            found[path] = [{"filePattern": pattern, "verbosity": int(level)} for pattern, _, level in pairs]
        elif isinstance(value, tuple):
            found[path] = list(value)
        elif isinstance(value, Mapping):
            found[path] = dict(value)
    return {"apiVersion": API_VERSION, "kind": KIND, **nested(found)}


# -- what is wrong ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that cannot be used. text: in kube-proxy's words and with its path; key: the path in the file."""

    text: str
    key: str
    remedy: str

    def __str__(self) -> str:
        return self.text


def _invalid(key: str, value: object, detail: str, remedy: str, *, at: str = "") -> Problem:
    path = f"{KIND}.{BY_PATH[key].go}{at}"
    return Problem(f"{path}: Invalid value: {_as_json(value)}: {detail}", key, remedy)


def _as_json(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False, separators=(",", ":"))


def validate(values: Values, *, windows: bool, accepted_modes: Iterable[str] = ()) -> tuple[Problem, ...]:
    """Everything that is wrong with resolved values, in kube-proxy's order."""
    mode = str(values["mode"])
    return tuple(
        problem
        for check in (
            _masquerade_problems(values, mode),
            _ipvs_problems(values) if mode == IPVS else (),
            _kernel_problems(values),
            _mode_problems(mode, windows=windows, accepted=frozenset(accepted_modes)),
            _client_problems(values),
            _period_problems(values, mode),
            _address_problems(values),
            _node_port_problems(values),
            _hidden_problems(values),
            _detection_problems(values),
        )
        for problem in check
    )


def _masquerade_problems(values: Values, mode: str) -> Iterator[Problem]:
    for section in (IPTABLES, NFTABLES):
        if section == NFTABLES and mode != NFTABLES:
            continue
        bit = values[f"{section}.masqueradeBit"]
        if not isinstance(bit, int) or not 0 <= bit <= 31:
            key = f"{section}.masqueradeBit"
            yield _invalid(key, bit, "must be within the range [0, 31]", "leave it out: 14 is the usual one")


def _not_negative(values: Values, key: str) -> Iterator[Problem]:
    value = values[key]
    number = parse_duration(value) if isinstance(value, str) else value
    if isinstance(number, int | float) and number < 0:
        yield _invalid(key, value, "must be greater than or equal to 0", "0 leaves it as it is; or leave it out")


def _ipvs_problems(values: Values) -> Iterator[Problem]:
    for name in ("tcpTimeout", "tcpFinTimeout", "udpTimeout"):
        yield from _not_negative(values, f"ipvs.{name}")
    for index, text in enumerate(_texts(values["ipvs.excludeCIDRs"])):
        if _prefix(text) is None:
            remedy = "write CIDRs like 192.0.2.0/24"
            yield _invalid("ipvs.excludeCIDRs", text, "must be a valid CIDR", remedy, at=f"[{index}]")


def _kernel_problems(values: Values) -> Iterator[Problem]:
    names = ("maxPerCore", "min", "tcpEstablishedTimeout", "tcpCloseWaitTimeout", "udpTimeout", "udpStreamTimeout")
    for name in names:
        yield from _not_negative(values, f"conntrack.{name}")
    score = values["oomScoreAdj"]
    if not isinstance(score, int) or not -1000 <= score <= 1000:
        yield _invalid("oomScoreAdj", score, "must be within the range [-1000, 1000]", "kube-proxy's own is -999")


def _mode_problems(mode: str, *, windows: bool, accepted: frozenset[str]) -> Iterator[Problem]:
    if windows:
        if mode not in ("", KERNELSPACE):
            detail = "must be kernelspace or blank (blank means the most-available proxy [currently kernelspace])"
            yield _invalid("mode", mode, detail, "leave it out")
    elif mode not in ("", *LINUX_MODES, USERSPACE):
        detail = "must be nftables or blank (blank means nftables); iptables and ipvs need --accept-mode"
        remedy = "leave it out; kernelspace is for Windows, or an emulated one with --hns emulator"
        yield _invalid("mode", mode, detail, remedy)
    elif mode in (IPTABLES, IPVS) and mode not in accepted:
        detail = f"hansa has no mode {mode}"
        remedy = f"write mode: nftables, or leave it out, or let nftables stand for it with --accept-mode={mode}"
        yield _invalid("mode", mode, detail, remedy)


def _client_problems(values: Values) -> Iterator[Problem]:
    yield from _not_negative(values, "clientConnection.burst")


def _period_problems(values: Values, mode: str) -> Iterator[Problem]:
    section = sync_section(mode)
    sync_key, least_key = f"{section}.syncPeriod", f"{section}.minSyncPeriod"
    for key in ("configSyncPeriod", sync_key):
        if _seconds(values[key]) <= 0:
            yield _invalid(key, values[key], "must be greater than 0", "write a duration like 30s")
    yield from _not_negative(values, least_key)
    if _seconds(values[sync_key]) < _seconds(values[least_key]):
        # The value named is the other one; kube-proxy's messages are searched for, so it stays.
        detail = f"must be greater than or equal to {KIND}.MinSyncPeriod"
        yield _invalid(sync_key, values[least_key], detail, f"lower {least_key} or raise {sync_key}")


def _address_problems(values: Values) -> Iterator[Problem]:
    bind = str(values["bindAddress"])
    if _address(bind) is None:
        detail = "not a valid textual representation of an IP address"
        yield _invalid("bindAddress", bind, detail, "write an address without brackets or port, or leave it out")
    for key in ("healthzBindAddress", "metricsBindAddress"):
        text = str(values[key])
        if detail := _listen_fault(text):
            yield _invalid(key, text, detail, f"write it like {BY_PATH[key].form}; an IPv6 address in brackets")


def _listen_fault(text: str) -> str:
    """What is wrong with an address to listen at; "" if nothing."""
    if text in ("", OFF):
        return ""
    match = re.fullmatch(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<v4>[^:\[\]]*)):(?P<port>[^:]*)", text)
    if match is None:
        return "must be IP:port"
    host, port = match["v6"] if match["v6"] is not None else match["v4"], match["port"]
    if _address(host) is None:
        return "must be a valid IP"
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        return "must be a valid port"
    return ""


def _node_port_problems(values: Values) -> Iterator[Problem]:
    given = _texts(values["nodePortAddresses"])
    if "primary" in given:
        if len(given) > 1:
            detail = "can't use both 'primary' and CIDRs"
            yield _invalid("nodePortAddresses", given, detail, "use [primary] alone, or CIDRs alone")
        return
    for index, text in enumerate(given):
        if _prefix(text) is None:
            remedy = "write a CIDR like 192.0.2.0/24, or [primary] alone"
            yield _invalid("nodePortAddresses", text, "must be a valid CIDR", remedy, at=f"[{index}]")


def _hidden_problems(values: Values) -> Iterator[Problem]:
    version = str(values["showHiddenMetricsForVersion"])
    if version not in ("", PREVIOUS_MINOR):
        detail = f"invalid showHiddenMetricsForVersion: {version}, only the previous minor version is allowed"
        yield _invalid("showHiddenMetricsForVersion", version, detail, f"write {PREVIOUS_MINOR}, or leave it out")


# The release of Kubernetes whose kube-proxy this is the like of, and the one before.
KUBERNETES_VERSION = "v1.36.2"
PREVIOUS_MINOR = "1.35"


def _detection_problems(values: Values) -> Iterator[Problem]:
    mode = str(values["detectLocalMode"])
    known = [*(one.value for one in DetectLocalMode), ""]
    if mode not in known:
        path = f"{KIND}.{BY_PATH['detectLocalMode'].go}"
        supported = ", ".join(_as_json(one) for one in known)
        text = f"{path}: Unsupported value: {_as_json(mode)}: supported values: {supported}"
        yield Problem(text, "detectLocalMode", "choose one of them")
        return
    if mode in ("", DetectLocalMode.CLUSTER_CIDR.value):
        yield from _cluster_cidr_problems(str(values["clusterCIDR"]))
    for wanted, key in (
        (DetectLocalMode.BRIDGE_INTERFACE, "detectLocal.bridgeInterface"),
        (DetectLocalMode.INTERFACE_NAME_PREFIX, "detectLocal.interfaceNamePrefix"),
    ):
        if mode == wanted.value and not values[key]:
            yield _invalid(key, "", "must not be empty", f"set {key}, or choose another detectLocalMode")


_CIDR_REMEDY = "write 10.244.0.0/16, or for both families 10.244.0.0/16,fd00:10:244::/56 without a space"


def _cluster_cidr_problems(text: str) -> Iterator[Problem]:
    if not text:
        return
    parts = text.split(",")
    path = f"{KIND}.DetectLocalConfiguration.ClusterCIDRs"
    example = "(e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)"
    prefixes = [_prefix(part) for part in parts]
    for index, (part, prefix) in enumerate(zip(parts, prefixes, strict=True)):
        if prefix is None:
            detail = f"must be a valid CIDR block {example}"
            yield Problem(f"{path}[{index}]: Invalid value: {_as_json(part)}: {detail}", "clusterCIDR", _CIDR_REMEDY)
    versions = [prefix.version for prefix in prefixes if prefix is not None]
    if len(parts) > 2 or (len(versions) == 2 and versions[0] == versions[1]):
        detail = f"must be a either a single CIDR or dual-stack pair of CIDRs {example[:-1]} or a pair of them)"
        yield Problem(f"{path}: Invalid value: {_as_json(parts)}: {detail}", "clusterCIDR", _CIDR_REMEDY)


def _texts(value: object) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    return value


def _seconds(value: object) -> float:
    assert isinstance(value, str)
    return parse_duration(value)


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None


def _prefix(text: str) -> Prefix | None:
    """A CIDR as kube-proxy reads it: a blank anywhere is none of it."""
    try:
        return parse_prefix(text)
    except ValueError:
        return None


# -- logging ---------------------------------------------------------------------------------------------------------


def validate_logging(values: Values, enabled: Mapping[str, bool]) -> tuple[Problem, ...]:
    """What is wrong with the logging section; its paths have nothing in front. enabled: feature gates."""
    return tuple(_logging_problems(values, enabled))


def _logging_problems(values: Values, enabled: Mapping[str, bool]) -> Iterator[Problem]:
    def problem(name: str, kind: str, remedy: str) -> Problem:
        return Problem(f"{name}: {kind}", f"logging.{name}", remedy)

    form = str(values["logging.format"])
    if form not in ("text", "json"):
        yield problem("format", f"Invalid value: {_as_json(form)}: Unsupported log format", "write text or json")
    elif form == "json" and not enabled[gates.LOGGING_BETA]:
        text = f"Forbidden: Log format json is disabled, see {gates.LOGGING_BETA} feature"
        yield problem("format", text, f"write text, or leave {gates.LOGGING_BETA} on")
    period = values["logging.flushFrequency"]
    if _seconds(period) <= 0:
        yield problem("flushFrequency", f"Invalid value: {_as_json(period)}: Must be greater than zero", "write 5s")
    level = values["logging.verbosity"]
    if isinstance(level, int) and level < 0:
        yield problem("verbosity", f"Invalid value: {level}: Must be less than or equal to {INT32}", "write 0 to 9")
    vmodule = _texts(values["logging.vmodule"])
    if vmodule and form != "text":
        text = "Forbidden: Only supported for text log format"
        yield problem("vmodule", text, "leave it out, or set logging.format: text")
    for one in ("text", "json"):
        for name in ("splitStream", "infoBufferSize"):
            path = f"options.{one}.{name}"
            value = values[f"logging.{path}"]
            is_given = value is True if name == "splitStream" else read_quantity(str(value)) != 0
            if is_given and not enabled[gates.LOGGING_ALPHA]:
                text = f"Forbidden: Feature {gates.LOGGING_ALPHA} is disabled"
                yield problem(path, text, f"set featureGates: {{{gates.LOGGING_ALPHA}: true}}, or leave it out")
