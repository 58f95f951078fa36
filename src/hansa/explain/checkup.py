"""What a node and its way to the API server look like to a service proxy: facts in, findings with remedies out. Pure.

Whoever gathers the facts (`hansa.cli.doctor`) only looks; what a fact means, and how bad it is, is decided here. What
is wrong with single objects in HNS is `doctor`'s, which known defect left it there `defects`'.
Evidence: operations.md 8, 9, 13, 14; hcn.md 4; windows-proxy F66, F67.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from hansa.api.objects import Kind
from hansa.config import Config
from hansa.dataplanes.base import Change, Verb
from hansa.dataplanes.nftables import needs
from hansa.dataplanes.nftables.needs import Missing, Rival, Setting
from hansa.errors import DataplaneError, Fault
from hansa.explain.defects import Severity
from hansa.hns.api import HnsVersion
from hansa.hns.features import Feature, needed, supports
from hansa.net import IPFamily
from hansa.sources.kubernetes.calls import Tried

__all__ = [
    "ApiFacts",
    "Check",
    "LinuxFacts",
    "NodeFacts",
    "Topic",
    "WindowsFacts",
    "check_api",
    "check_linux",
    "check_node",
    "check_windows",
    "worst",
]


class Topic(enum.Enum):
    API = "API server"
    CLOCK = "clock"
    NODE = "Node"
    PROXY = "proxies"
    KERNEL = "kernel"
    SETTINGS = "settings"
    HNS = "HNS"
    RULES = "rules"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check came to. severity: None = it is well. remedy: what to do, "" where there is nothing to."""

    topic: Topic
    severity: Severity | None
    text: str
    remedy: str = ""


def worst(severities: Iterable[Severity | None]) -> Severity | None:
    """The worst of them; None = nothing is wrong."""
    order = list(Severity)
    return min((each for each in severities if each is not None), key=order.index, default=None)


# -- the API server --------------------------------------------------------------------------------------------------

SKEW_NOTICED_S = 10.0  # above it times of events and latencies of this node mislead
SKEW_HARMFUL_S = 300.0  # above it new tokens and certificates are not valid yet, or old ones valid no more


@dataclass(frozen=True, slots=True)
class ApiFacts:
    """How the API server answered, request by request.

    tried: one list and one watch for each kind. warnings: about the connection as such. is_encrypted, checks_server: of
    the connection. nodes: how many Nodes have this node's name, None = it could not be asked.
    """

    server: str
    tried: Mapping[tuple[Kind, str], Tried]
    warnings: tuple[Fault, ...] = ()
    is_encrypted: bool = True
    checks_server: bool = True
    is_loopback: bool = False
    nodes: int | None = None

    @property
    def readable(self) -> bool:
        """Whether everything that is needed can be listed and watched."""
        return all(each.code == 200 or _may_lack(kind, each) for (kind, _), each in self.tried.items())


# What roles and refusals call them.
RESOURCES: Mapping[Kind, str] = {
    Kind.SERVICE: "services",
    Kind.ENDPOINT_SLICE: "endpointslices.discovery.k8s.io",
    Kind.NODE: "nodes",
    Kind.SERVICE_CIDR: "servicecidrs.networking.k8s.io",
}


def _may_lack(kind: Kind, tried: Tried) -> bool:
    return kind is Kind.SERVICE_CIDR and tried.code == 404


def check_api(facts: ApiFacts, config: Config) -> tuple[Check, ...]:
    """Whether the server can be reached, trusts this account, lets it read what it has to, and has the same time."""
    found = [
        *(Check(Topic.API, Severity.WARNING, f"{each.field}: {each.text}", each.remedy) for each in facts.warnings),
        *_check_connection(facts),
        *_check_answers(facts),
        *_check_clock(facts),
    ]
    if facts.nodes == 0:
        found.append(
            Check(
                Topic.NODE,
                Severity.ERROR,
                f"there is no Node called {config.node_name!r}: every pod of this node looks like one of another node",
                "give the Node's own name: hostnameOverride, --hostname-override=$(NODE_NAME), or --node-name",
            )
        )
    elif facts.nodes:
        found.append(Check(Topic.NODE, None, f"the Node {config.node_name} is there"))
    return tuple(found)


def _check_connection(facts: ApiFacts) -> Iterator[Check]:
    if not facts.is_encrypted and not facts.is_loopback:
        yield Check(
            Topic.API,
            Severity.WARNING,
            f"{facts.server} is reached without TLS: whoever is in between reads tokens and changes answers",
            "give an https:// address, and the authority of its certificate",
        )
    if facts.is_encrypted and not facts.checks_server:
        yield Check(
            Topic.API,
            Severity.WARNING,
            f"the certificate of {facts.server} is not checked: whoever is in between can be the server",
            "take insecure-skip-tls-verify out of the kubeconfig, and give certificate-authority",
        )


def _check_answers(facts: ApiFacts) -> Iterator[Check]:
    silent = {each.words for each in facts.tried.values() if each.code == 0}
    if silent and all(each.code == 0 for each in facts.tried.values()):
        remedy = "check the address in the kubeconfig, and the way there: route, firewall, HTTPS_PROXY and NO_PROXY"
        yield Check(Topic.API, Severity.ERROR, f"{facts.server}: {', '.join(sorted(silent))}", remedy)
        return
    if all(each.code == 401 for each in facts.tried.values()):
        remedy = "check the token or client certificate of the kubeconfig, and this node's clock"
        yield Check(Topic.API, Severity.ERROR, f"{facts.server} does not accept these credentials", remedy)
        return
    wrong = False
    for (kind, verb), each in facts.tried.items():
        if each.code == 200:
            continue
        if _may_lack(kind, each):
            if verb == "list":
                yield Check(Topic.API, None, "this server has no ServiceCIDRs, and hansa does without")
            continue
        wrong = True
        yield _refused(kind, verb, each)
    if not wrong:
        yield Check(Topic.API, None, f"{facts.server} answers, and this account may list and watch what hansa needs")


def _refused(kind: Kind, verb: str, tried: Tried) -> Check:
    what = f"{verb} {RESOURCES[kind]}"
    if tried.code == 403:
        remedy = "bind ClusterRole system:node-proxier to this account, or the one in deploy/kubernetes"
        return Check(Topic.API, Severity.ERROR, f"this account may not {what}: {tried.words}", remedy)
    said = f"{tried.code} {tried.words}".strip() if tried.code else tried.words
    return Check(Topic.API, Severity.ERROR, f"{what}: {said}", "try it with kubectl; if it stays, look at the server")


def _check_clock(facts: ApiFacts) -> Iterator[Check]:
    skews = [each for each in map(skew_s, facts.tried.values()) if each is not None]
    if not skews:
        return
    skew = min(skews, key=abs)  # what took long only widens it
    if abs(skew) < SKEW_NOTICED_S:
        yield Check(Topic.CLOCK, None, "agrees with the API server's")
        return
    severity = Severity.ERROR if abs(skew) >= SKEW_HARMFUL_S else Severity.WARNING
    direction = "behind" if skew > 0 else "ahead of"
    text = f"{abs(skew):.0f} s {direction} the API server's: tokens, certificates and latencies are judged wrongly"
    yield Check(Topic.CLOCK, severity, text, "let NTP (chrony, w32time) set this node's clock")


def skew_s(tried: Tried) -> float | None:
    """How far the server's clock is ahead of ours, good to a second; None = it did not tell its time."""
    try:
        server = parsedate_to_datetime(tried.date).timestamp()
    except ValueError:
        return None
    # Servers cut off the fraction, so the middle of that second is the best guess.
    return server + 0.5 - tried.at


# -- any node --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """kube_proxies: its processes as far as they can be seen. holder: who holds hansa's lock, "" = nobody."""

    kube_proxies: tuple[int, ...] = ()
    holder: str = ""


def check_node(facts: NodeFacts, config: Config) -> tuple[Check, ...]:
    """Whether exactly one proxy works here."""
    found = []
    if facts.kube_proxies and config.proxy_name is None:
        pids = ", ".join(map(str, facts.kube_proxies))
        text = f"kube-proxy runs on this node (process {pids}): two proxies undo each other's work"
        found.append(Check(Topic.PROXY, Severity.ERROR, text, "stop it, or keep its DaemonSet from this node"))
    if facts.holder:
        found.append(Check(Topic.PROXY, None, f"{facts.holder} works here"))
    else:
        found.append(Check(Topic.PROXY, Severity.WARNING, "hansa does not run here, so nothing heals", "start it"))
    return tuple(found)


# -- Linux -----------------------------------------------------------------------------------------------------------

CONNECTIONS_TIGHT = 0.8  # of the table; when it is full the kernel drops new connections

BRIDGED = "net/bridge/bridge-nf-call-iptables"


@dataclass(frozen=True, slots=True)
class LinuxFacts:
    """What the kernel of this network namespace has.

    problem: why it could not be asked, "" = it could. settings: those that the configuration asks for, with what they
    are, None = not there. forwarding: by family. connections: how many there are and may be. bridged: whether bridged
    packets pass the rules, None = no such switch. changes: what a sync would do, None = it could not be told.
    """

    problem: str = ""
    missing: tuple[Missing, ...] = ()
    rivals: tuple[Rival, ...] = ()
    settings: tuple[tuple[Setting, int | None], ...] = ()
    forwarding: Mapping[IPFamily, int | None] = field(default_factory=dict)
    connections: tuple[int, int] | None = None
    bridged: int | None = None
    changes: tuple[Change, ...] | None = None


def check_linux(facts: LinuxFacts, config: Config, *, runs: bool) -> tuple[Check, ...]:
    """What keeps the nftables dataplane from working as it should. runs: whether hansa is at work here."""
    found: list[Check] = []
    if facts.problem:
        found.append(Check(Topic.KERNEL, Severity.ERROR, facts.problem, "run this as root on the node"))
    for each in facts.missing:
        found.append(Check(Topic.KERNEL, Severity.ERROR, f"missing: {each}", _feature_remedy(each)))
    if not facts.problem and not facts.missing:
        found.append(Check(Topic.KERNEL, None, "nf_tables has everything that the rules are made of"))
    found += _check_rivals(facts, config, runs=runs)
    found += _check_settings(facts)
    found += _check_connections(facts)
    found += _check_rules(facts.changes, runs=runs)
    return tuple(found)


def _feature_remedy(missing: Missing) -> str:
    if missing.feature is needs.PRIVILEGE:
        return "run as root, or with CAP_NET_ADMIN"
    return "use a kernel that is built with it, or load its module"


def _check_rivals(facts: LinuxFacts, config: Config, *, runs: bool) -> Iterator[Check]:
    if not facts.rivals:
        return
    listed = ", ".join(map(str, facts.rivals))
    try:
        replaced = needs.judge_rivals(
            facts.rivals, takeover=config.takeover, beside_another=config.proxy_name is not None
        )
    except DataplaneError as error:
        yield Check(Topic.PROXY, Severity.ERROR, str(error), "see above")
        return
    if replaced and runs:
        text = f"{listed} is there beside hansa's: kube-proxy writes it, or has been started since"
        yield Check(Topic.PROXY, Severity.ERROR, text, "stop kube-proxy, then restart hansa, which removes it")
    elif replaced:
        yield Check(Topic.PROXY, Severity.NOTE, f"{listed} is kube-proxy's; hansa replaces it when it starts")
    else:
        yield Check(Topic.PROXY, None, f"{listed} is left to the proxy of the other Services")


def _check_settings(facts: LinuxFacts) -> Iterator[Check]:
    for setting, value in facts.settings:
        if value != setting.value and not (setting.path == needs.MAX_ENTRIES and (value or 0) > setting.value):
            have = "not there" if value is None else f"{value}"
            text = f"{setting.path} is {have}, the configuration asks for {setting.value}"
            remedy = f"sysctl -w {setting.path.replace('/', '.')}={setting.value}; hansa sets it where it may"
            yield Check(Topic.SETTINGS, Severity.WARNING, text, remedy)
    for family, value in sorted(facts.forwarding.items()):
        if value == 0:
            path = needs.FORWARDING[family]
            text = f"{path} is 0: packets of others, pods among them, end here instead of reaching a service"
            remedy = f"sysctl -w {path.replace('/', '.')}=1, or set ipForward: true"
            yield Check(Topic.SETTINGS, Severity.ERROR, text, remedy)
    if facts.bridged == 0:
        text = f"{BRIDGED} is 0: if pods hang on a Linux bridge, answers between two of them bypass the translation"
        yield Check(Topic.SETTINGS, Severity.NOTE, text, f"sysctl -w {BRIDGED.replace('/', '.')}=1 on such nodes")


def _check_connections(facts: LinuxFacts) -> Iterator[Check]:
    if facts.connections is None:
        return
    count, most = facts.connections
    if most and count >= CONNECTIONS_TIGHT * most:
        text = f"the table of connections holds {count} of {most}: the kernel drops new ones when it is full"
        remedy = "raise conntrack.maxPerCore, or look for what opens so many"
        yield Check(Topic.KERNEL, Severity.WARNING, text, remedy)


SHOWN = 3  # how many objects a sentence names


def _check_rules(changes: Sequence[Change] | None, *, runs: bool) -> Iterator[Check]:
    if changes is None:
        return
    lacking = [each for each in changes if each.verb is not Verb.DELETE]
    stale = [each for each in changes if each.verb is Verb.DELETE]
    wait = "wait one sync period; if it stays, look at /debug/state and the log" if runs else "start hansa"
    if lacking:
        yield Check(
            Topic.RULES,
            Severity.ERROR if runs else Severity.WARNING,
            f"{len(lacking)} objects are missing or not as they should be: {_named(lacking)}",
            wait,
        )
    if stale:
        text = f"{len(stale)} objects are left over: {_named(stale)}"
        yield Check(Topic.RULES, Severity.WARNING, text, wait)
    if not changes:
        yield Check(Topic.RULES, None, "the kernel holds what it should")


def _named(changes: Sequence[Change]) -> str:
    shown = ", ".join(f"{each.kind} {each.key}" for each in changes[:SHOWN])
    return shown + (", ..." if len(changes) > SHOWN else "")


# -- Windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WindowsFacts:
    """problem: why HNS, or its network, could not be read, "" = it was. version: None = HNS did not tell. ports: what
    is to be said of node ports and the ports that Windows gives away by itself.
    """

    problem: str = ""
    version: HnsVersion | None = None
    network: str = ""
    ports: tuple[str, ...] = ()


def check_windows(facts: WindowsFacts, config: Config) -> tuple[Check, ...]:
    """What HNS as such cannot do; the objects in it are looked at by `doctor.diagnose`."""
    found: list[Check] = []
    version = facts.version
    if version is not None:
        found += _check_features(version, config)
    if facts.problem:
        remedy = (
            "check that the HNS service runs and that the CNI has made its network; name it in winkernel.networkName "
            "if there are several"
        )
        found.append(Check(Topic.HNS, Severity.ERROR, facts.problem, remedy))
    elif facts.network:
        found.append(Check(Topic.HNS, None, f"answers, version {version}; the pods' network is {facts.network}"))
    found += [Check(Topic.SETTINGS, Severity.WARNING, text) for text in facts.ports]
    return tuple(found)


def _check_features(version: HnsVersion, config: Config) -> Iterator[Check]:
    if not supports(version, Feature.API_V2):
        text = f"version {version} has no load balancers of schema 2, which need {needed(Feature.API_V2)}"
        yield Check(Topic.HNS, Severity.ERROR, text, "use Windows Server 2019 or newer, with its updates")
        return
    if config.windows.enable_dsr and not supports(version, Feature.DSR):
        text = f"winkernel.enableDSR is on, but version {version} has no DSR, which needs {needed(Feature.DSR)}"
        yield Check(Topic.HNS, Severity.ERROR, text, "set winkernel.enableDSR: false, or update Windows")
    lacking = {
        Feature.MODIFY_LOAD_BALANCER: "each change of endpoints replaces a load balancer, with a short gap",
        Feature.SESSION_AFFINITY: "session affinity is not kept",
        Feature.IPV6_DUAL_STACK: "there are no IPv6 services",
    }
    for feature, means in lacking.items():
        if not supports(version, feature):
            text = f"version {version} lacks {feature}: {means} (needs {needed(feature)})"
            yield Check(Topic.HNS, Severity.NOTE, text)
