"""From a command line and a file to what hansa runs on: which of the two counts where, and what is to be said of it.

The steps are kube-proxy's, in its order, because the first that fails decides the message: `complete`, `check_logging`,
`validate`. Evidence: operations.md sections 1, 4, 9, 14 and 20.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hansa.config import (
    HEALTHZ_PORT,
    METRICS_PORT,
    OFF,
    Config,
    DetectLocalMode,
    LogConfig,
    VModule,
    config_warnings,
    make_config,
    parse_duration,
)
from hansa.errors import ConfigError, Fault
from hansa.kubeproxy import flags, gates, keys
from hansa.kubeproxy.configuration import (
    IPTABLES,
    NFTABLES,
    OWN_PATHS,
    OWN_PROCESS_KEYS,
    USERSPACE,
    Decoded,
    Problem,
    Values,
    encode,
    likely_key,
    masquerade_section,
    nested,
    read_typed,
    sync_section,
    validate,
    validate_logging,
    with_defaults,
    with_port,
)
from hansa.kubeproxy.flags import Flag, Origin, Parsed, read_quantity, read_vmodule
from hansa.kubeproxy.keys import BY_PATH, KEYS
from hansa.net import IPFamily, family_of


class Level(enum.Enum):
    INFO = "info"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to be logged once at the start."""

    level: Level
    text: str


class StartError(Exception):
    """The start ends here. The text is kube-proxy's; remedies: how to mend each thing that is wrong."""

    def __init__(self, step: str, texts: Sequence[str], remedies: Sequence[str] = ()) -> None:
        self.remedies = tuple(remedy for remedy in remedies if remedy)
        joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        super().__init__(f"{step}: {joined}" if step else joined)


def _stop(step: str, problems: Sequence[Problem]) -> StartError:
    return StartError(step, [str(one) for one in problems], [f"{one.key}: {one.remedy}" for one in problems])


def stop_by_faults(step: str, faults: Sequence[Fault]) -> StartError:
    """All faults as one end of the start. step: "" = none is named."""
    texts = [f"{one.field}: {one.text}" for one in faults]
    return StartError(step, texts, [f"{one.field}: {one.remedy}" for one in faults if one.remedy])


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the command line runs in. windows: whether the dataplane is that of Windows. kube_network: KUBE_NETWORK."""

    hostname: str
    windows: bool = False
    kube_network: str = ""

    @property
    def plane(self) -> str:
        return keys.WINDOWS if self.windows else keys.NFTABLES


@dataclass(frozen=True, slots=True)
class Documents:
    """What the files say. main: that of `--config`, None = there is none. own: hansa's own settings from both files."""

    main: Decoded | None = None
    own: Values = field(default_factory=dict)


class Reload(enum.Enum):
    """What a changed configuration file leads to."""

    EXIT = "exit"
    APPLY = "apply"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Completed:
    """All values resolved and none checked.

    values: KubeProxyConfiguration's, with the sections' periods as they were given. own: hansa's own settings.
    enabled: every feature gate. accepted_modes: those of kube-proxy in whose place nftables may work.
    """

    values: Values
    own: Values
    surroundings: Surroundings
    master: str
    enabled: Mapping[str, bool]
    remarks: tuple[Remark, ...]
    accepted_modes: tuple[str, ...]
    reload: Reload

    @property
    def mode(self) -> str:
        return str(self.values["mode"])

    @property
    def document(self) -> dict[str, object]:
        """The KubeProxyConfiguration, as `--write-config-to` and /configz have it."""
        return encode(self.values)


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """How the API server is asked. qps: 0 or less = no limit; watch_list: first lists as a stream."""

    kubeconfig: str
    master: str
    qps: float
    burst: int
    watch_list: bool


# -- flags and file --------------------------------------------------------------------------------------------------


def complete(parsed: Parsed, documents: Documents, surroundings: Surroundings) -> Completed:
    """Resolve every value. Raises StartError."""
    overrides, own_overrides = _overrides(parsed)
    remarks: list[Remark] = []
    if documents.main is None:
        values = {**_values_of_flags(parsed), **overrides}
        if surroundings.windows and not values["winkernel.rootHnsEndpointName"]:
            values["winkernel.rootHnsEndpointName"] = "cbr0"
    else:
        values = with_defaults({**documents.main.values, **overrides}, windows=surroundings.windows)
        if documents.main.lenient and parsed.get("strict-config") is True:
            raise _not_strict(documents.main)
        remarks += _remarks_on_file(parsed, documents.main)
    own = dict(documents.own)
    own |= {one.flag.key: one.value for one in parsed.given if one.flag.origin is Origin.OWN and one.flag.key}
    own |= own_overrides
    values |= _logging_of_flags(parsed, documents.main)
    values["hostnameOverride"] = _node_name(parsed, values)
    if not values["winkernel.networkName"]:
        values["winkernel.networkName"] = surroundings.kube_network
    asked = values["featureGates"]
    assert isinstance(asked, Mapping)
    judged = gates.judge(asked)
    if judged.faults:
        raise StartError("failed complete", list(judged.faults.values()), ["featureGates: remove what is locked"])
    remarks += [Remark(Level.WARNING, text) for text in judged.warnings]
    remarks += [Remark(Level.INFO, text) for text in judged.infos]
    accepted = _words(parsed.get("accept-mode") or own.pop("acceptModes", ()))
    reload = _reload(parsed.text("config-reload") or str(own.pop("configReload", Reload.EXIT.value)))
    for name in OWN_PROCESS_KEYS:
        own.pop(name, None)
    remarks += _remarks_on_mode(str(values["mode"]), accepted, windows=surroundings.windows)
    remarks += _remarks_without_effect(parsed, documents.main, surroundings.plane)
    return Completed(
        values=values,
        own=own,
        surroundings=surroundings,
        master=parsed.text("master"),
        enabled=judged.enabled,
        remarks=tuple(remarks),
        accepted_modes=accepted,
        reload=reload,
    )


def _overrides(parsed: Parsed) -> tuple[dict[str, object], dict[str, object]]:
    """What `--config-override` says: of kube-proxy's keys, and of hansa's own."""
    values: dict[str, object] = {}
    own: dict[str, object] = {}
    faults: list[Fault] = []
    for assignment in parsed.texts("config-override"):
        path, _, text = assignment.partition("=")
        if path in OWN_PATHS:
            own[path] = text
        elif path in BY_PATH:
            try:
                values[path] = _read_text(BY_PATH[path].type, text)
            except ValueError as error:
                faults.append(Fault(f"--config-override {path}", str(error)))
        else:
            remedy = "name a key by its path, like conntrack.maxPerCore=0"
            faults.append(Fault(f"--config-override {path}", "there is no such key", remedy))
    if faults:
        raise stop_by_faults("failed complete", faults)
    return values, own


_FLAG_TYPES: Mapping[keys.Type, flags.Type] = {
    keys.Type.BOOL: flags.Type.BOOL,
    keys.Type.INTEGER: flags.Type.INT,
    keys.Type.NUMBER: flags.Type.FLOAT,
    keys.Type.LIST: flags.Type.LIST,
    keys.Type.GATES: flags.Type.GATES,
    keys.Type.VMODULE: flags.Type.VMODULE,
}


def _read_text(kind: keys.Type, text: str) -> object:
    return flags.read_value(_FLAG_TYPES[kind], text) if kind in _FLAG_TYPES else read_typed(kind, text)


def _values_of_flags(parsed: Parsed) -> dict[str, object]:
    """Defaults, then flags. What the flags call iptables' periods are those of all modes but ipvs (quirk 3)."""
    values: dict[str, object] = {key.path: key.default for key in KEYS}
    values["ipvs.minSyncPeriod"] = "1s"  # quirk 4
    values["healthzBindAddress"], values["metricsBindAddress"] = "0.0.0.0", "127.0.0.1"
    for one in parsed.given:
        if one.flag.key and one.flag.origin is not Origin.OWN:
            values[one.flag.key] = one.value
    for key, flag, default in (
        ("healthzBindAddress", "healthz-port", HEALTHZ_PORT),
        ("metricsBindAddress", "metrics-port", METRICS_PORT),
    ):
        port = parsed.get(flag)
        port = port if isinstance(port, int) else default
        values[key] = with_port(str(values[key]), port) if port else ""
    if values["mode"] == NFTABLES:
        for name in ("syncPeriod", "minSyncPeriod", "masqueradeAll"):
            values[f"{NFTABLES}.{name}"] = values[f"{IPTABLES}.{name}"]
    return values


def _logging_of_flags(parsed: Parsed, file: Decoded | None) -> dict[str, object]:
    """Flags about logging win over a file; what `--vmodule` says comes before what the file says."""
    found: dict[str, object] = {one.flag.key: one.value for one in parsed.given if one.flag.key.startswith("logging.")}
    vmodule = found.get("logging.vmodule")
    before = file.values.get("logging.vmodule") if file is not None else None
    if isinstance(vmodule, tuple) and isinstance(before, tuple):
        found["logging.vmodule"] = vmodule + before
    return found


def _node_name(parsed: Parsed, values: Values) -> str:
    """The flag, else the file, else the machine; trimmed, and in lower case."""
    flag = parsed.get("hostname-override")
    given = str(flag if flag else values["hostnameOverride"])
    if given and not given.strip():
        raise StartError(
            "failed complete", ["empty hostname-override is invalid"], ["give the Node's name, or nothing"]
        )
    return given.strip().lower()


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return tuple(str(word) for word in value) if isinstance(value, tuple | list) else ()


def _reload(word: str) -> Reload:
    try:
        return Reload(word)
    except ValueError:
        known = ", ".join(one.value for one in Reload)
        raise StartError(
            "failed complete", [f"--config-reload: {word!r} is unknown"], [f"choose one of {known}"]
        ) from None


# -- what is said once -----------------------------------------------------------------------------------------------

# Flags that count though a file is given: no key stands for them, or they are for single nodes.
_WINS_OVER_FILE = ("hostnameOverride", "logging.")


def _ignored_flags(parsed: Parsed) -> Iterator[Flag]:
    for one in parsed.given:
        flag = one.flag
        has_a_key = flag.key and flag.origin is not Origin.OWN and not flag.key.startswith(_WINS_OVER_FILE)
        if has_a_key or flag.deprecated:
            yield flag


def _not_strict(file: Decoded) -> StartError:
    near = ((path, likely_key(path)) for path in file.unknown)
    remedies = [f"{path}: {f'did you mean {meant}?' if meant else 'remove it'}" for path, meant in near]
    text = f"failed to decode: strict decoding error: {', '.join(file.lenient)}"
    return StartError("failed complete", [text], remedies or ["give each key once"])


def _remarks_on_file(parsed: Parsed, file: Decoded) -> Iterator[Remark]:
    if file.lenient:
        text = f"Using lenient decoding as strict decoding failed: {'; '.join(file.lenient)}"
        yield Remark(Level.INFO, text)
    if file.unknown:
        meant = ((path, likely_key(path)) for path in file.unknown)
        shown = (f"{path} (did you mean {near}?)" if near else path for path, near in meant)
        yield Remark(Level.WARNING, f"keys that nobody knows have no effect: {', '.join(shown)}")
    ignored = [f"--{flag.name}" for flag in _ignored_flags(parsed)]
    if ignored:
        text = (
            f"flags ignored because --config is given: {', '.join(ignored)}; --config-override KEY=VALUE wins over it"
        )
        yield Remark(Level.WARNING, text)


def _remarks_on_mode(mode: str, accepted: Sequence[str], *, windows: bool) -> Iterator[Remark]:
    if windows or mode in (NFTABLES, USERSPACE):
        return
    if mode == "":
        yield Remark(
            Level.INFO,
            "no mode is given, which to kube-proxy means iptables: nftables works in its place, with node ports and "
            "masquerading as in mode iptables; write mode: nftables to have that mode's defaults",
        )
    elif mode in accepted:
        yield Remark(Level.WARNING, f"mode {mode} is asked for: nftables works in its place, as --accept-mode allows")


def _remarks_without_effect(parsed: Parsed, file: Decoded | None, plane: str) -> Iterator[Remark]:
    """What was given, differs from its default, and changes nothing here."""
    found: dict[str, list[str]] = {}
    if file is not None:
        for path, value in file.values.items():
            key = BY_PATH[path]
            is_default = value in (key.default, "", 0, "0s", False, ()) or value == {}
            if plane not in key.planes and not is_default:
                found.setdefault(key.why, []).append(path)
    for one in parsed.given:
        flag = one.flag
        if file is not None and flag.key and flag.origin is not Origin.OWN:
            continue  # named as ignored
        if plane not in flag.planes and flag.origin is not Origin.GONE and flags.shown(one.value) != flag.default:
            found.setdefault(flag.why, []).append(f"--{flag.name}")
    for why, names in found.items():
        yield Remark(Level.WARNING, f"without effect: {', '.join(names)}" + (f" ({why})" if why else ""))


def warnings_on_node(config: Config, families: Iterable[IPFamily], plane: str) -> tuple[str, ...]:
    """What is probably not meant, now that the node's families are known; only what matters on this dataplane."""
    found = config_warnings(config, frozenset(families))
    return tuple(str(one) for one in found if one.field not in BY_PATH or plane in BY_PATH[one.field].planes)


def needs_pod_cidrs(completed: Completed, config: Config) -> bool:
    """Whether pods are recognised by what the Node has to be given first."""
    planes = BY_PATH["detectLocalMode"].planes
    return completed.surroundings.plane in planes and config.detect_local_mode is DetectLocalMode.NODE_CIDR


def wrong_families(config: Config, node: frozenset[IPFamily], pods: frozenset[IPFamily], plane: str) -> str:
    """Why pods cannot be recognised on a node of one family, "" if they can. pods: families of the Node's podCIDRs."""
    if plane not in BY_PATH["clusterCIDR"].planes or len(node) != 1:
        return ""
    (family,) = node
    match config.detect_local_mode:
        case DetectLocalMode.CLUSTER_CIDR:
            given, what = frozenset(family_of(prefix) for prefix in config.cluster_cidrs), "clusterCIDR"
        case DetectLocalMode.NODE_CIDR:
            given, what = pods, "the Node's podCIDRs"
        case _:
            return ""
    return f"cannot match {what} with {family}, this node's only family" if given and family not in given else ""


# -- checks ----------------------------------------------------------------------------------------------------------


def check_logging(completed: Completed) -> LogConfig:
    """How the process is to log. Raises StartError with everything that is wrong."""
    values = completed.values
    if problems := validate_logging(values, completed.enabled):
        raise _stop("initialize logging", problems)
    form = str(values["logging.format"])
    vmodule, verbosity = values["logging.vmodule"], values["logging.verbosity"]
    assert isinstance(vmodule, tuple)
    assert isinstance(verbosity, int)
    return LogConfig(
        format=form,
        verbosity=verbosity,
        vmodule=tuple(VModule(*pair) for pair in read_vmodule(",".join(vmodule))),
        flush_frequency_s=parse_duration(str(values["logging.flushFrequency"])),
        split_stream=values[f"logging.options.{form}.splitStream"] is True,
        info_buffer_bytes=int(read_quantity(str(values[f"logging.options.{form}.infoBufferSize"]))),
    )


def check(completed: Completed) -> Config:
    """hansa's Config. Raises StartError with everything that is wrong."""
    windows = completed.surroundings.windows
    problems = validate(completed.values, windows=windows, accepted_modes=completed.accepted_modes)
    if problems:
        raise _stop("failed validate", problems)
    try:
        return make_config(nested(_settings(completed)), node_name=completed.surroundings.hostname)
    except ConfigError as error:
        raise stop_by_faults("failed validate", error.faults) from None


# About the process, or read below from the section that counts.
_NOT_SETTINGS = ("clientConnection.", "logging.", "iptables.", "nftables.", "ipvs.")


def _settings(completed: Completed) -> dict[str, object]:
    """The values as `make_config` reads them: of several sections the one that counts, at top level."""
    values, mode = completed.values, completed.mode
    found = {
        key.path: values[key.path]
        for key in KEYS
        if key.planes
        and not key.path.startswith(_NOT_SETTINGS)
        and key.path not in ("mode", "enableProfiling", "windowsRunAsService")
    }
    section = sync_section(mode)
    found["syncPeriod"] = values[f"{section}.syncPeriod"]
    found["minSyncPeriod"] = values[f"{section}.minSyncPeriod"]
    found["masqueradeAll"] = values[f"{masquerade_section(mode)}.masqueradeAll"]
    is_iptables = mode in ("", IPTABLES) and not completed.surroundings.windows
    found["localhostNodePorts"] = is_iptables and values["iptables.localhostNodePorts"]
    for path in ("healthzBindAddress", "metricsBindAddress"):
        found[path] = values[path] or OFF  # quirk 2: kube-proxy cannot switch metrics off
    addresses = values["nodePortAddresses"]
    found["nodePortAddresses"] = ("primary",) if mode == NFTABLES and not addresses else addresses
    if values["conntrack.maxPerCore"] == 0:
        found["conntrack.min"] = 0
    # What nobody reads may be wrong, as it may be for kube-proxy: one file serves all nodes of a cluster.
    if values["detectLocalMode"] not in ("", DetectLocalMode.CLUSTER_CIDR.value):
        del found["clusterCIDR"]
    if not completed.surroundings.windows:
        found = {path: value for path, value in found.items() if not path.startswith("winkernel.")}
    name = gates.ALLOW_SERVICE_EXTERNAL_IPS
    found["featureGates"] = {name: completed.enabled[name]}
    return {**found, **completed.own}


def api_access(completed: Completed) -> ApiAccess:
    values = completed.values
    qps, burst = values["clientConnection.qps"], values["clientConnection.burst"]
    assert isinstance(qps, int | float)
    assert isinstance(burst, int)
    return ApiAccess(
        kubeconfig=str(values["clientConnection.kubeconfig"]),
        master=completed.master,
        qps=qps,
        burst=burst,
        watch_list=completed.enabled["WatchListClient"],
    )


def dataplane(parsed: Parsed, completed: Completed) -> str:
    """Which dataplane works: as --dataplane names it, else as the mode implies."""
    return parsed.text("dataplane") or (USERSPACE if completed.mode == USERSPACE else completed.surroundings.plane)


# -- a changed file --------------------------------------------------------------------------------------------------

# Of Config, what can change under a running proxy: rules are rendered anew from it, or times are reckoned anew.
LIVE_FIELDS = frozenset(
    {
        *("bind_addresses", "detect_local_mode", "cluster_cidrs", "bridge_interface", "interface_name_prefix"),
        *("masquerade_all", "node_port_addresses", "localhost_node_ports", "allow_external_ips"),
        *("min_sync_period_s", "sync_period_s", "full_sync_period_s", "full_check_period_s"),
    }
)
# The keys that reach nothing else: the mode, too, for it is one dataplane that stands for all of them. Those of logging
# can change as well.
LIVE_KEYS = frozenset(
    {
        "mode",
        *("bindAddress", "detectLocalMode", "clusterCIDR", "nodePortAddresses"),
        *("detectLocal.bridgeInterface", "detectLocal.interfaceNamePrefix", "fullSyncPeriod", "fullCheckPeriod"),
        *("iptables.syncPeriod", "iptables.minSyncPeriod", "iptables.masqueradeAll", "iptables.localhostNodePorts"),
        *("nftables.syncPeriod", "nftables.minSyncPeriod", "nftables.masqueradeAll"),
    }
)
_GATES_OF_LOGGING = frozenset({gates.LOGGING_ALPHA, gates.LOGGING_BETA})


@dataclass(frozen=True, slots=True)
class Difference:
    """What a new configuration changes, by key: what is live can be applied, the rest needs a new start."""

    live: tuple[str, ...]
    restart: tuple[str, ...]


def difference(old: Completed, new: Completed) -> Difference:
    """Compare two configurations, of which the old one is in force. Keys that nothing reads are in neither list."""
    plane = new.surroundings.plane
    changed = [path for path in old.values if old.values[path] != new.values[path] and plane in BY_PATH[path].planes]
    changed += sorted(path for path in {*old.own, *new.own} if old.own.get(path) != new.own.get(path))
    live, restart = [], []
    for path in changed:
        if path == "featureGates":
            gate_names = {name for name in old.enabled if old.enabled[name] is not new.enabled[name]}
            if gate_names & {gates.ALLOW_SERVICE_EXTERNAL_IPS, *_GATES_OF_LOGGING}:
                live.append(path)
            if gate_names - {gates.ALLOW_SERVICE_EXTERNAL_IPS, *_GATES_OF_LOGGING}:
                restart.append(path)
        elif path in LIVE_KEYS or path.startswith("logging."):
            live.append(path)
        else:
            restart.append(path)
    return Difference(tuple(live), tuple(restart))


def with_live_fields(running: Config, new: Config) -> Config:
    """The running configuration with everything of the new one that can be applied."""
    return replace(running, **{name: getattr(new, name) for name in LIVE_FIELDS})


__all__ = [
    "LIVE_FIELDS",
    "LIVE_KEYS",
    "ApiAccess",
    "Completed",
    "Difference",
    "Documents",
    "Level",
    "Reload",
    "Remark",
    "StartError",
    "Surroundings",
    "api_access",
    "check",
    "check_logging",
    "complete",
    "difference",
    "needs_pod_cidrs",
    "stop_by_faults",
    "warnings_on_node",
    "with_live_fields",
    "wrong_families",
]
