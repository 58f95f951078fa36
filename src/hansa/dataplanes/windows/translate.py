"""One rule, and host facts, to desired load balancers, HNS endpoints and shortfalls. Pure.

What HNS cannot express, for every service and therefore said here once instead of once per service: a load balancer
without DSR always rewrites the source to the source VIP and one with DSR never does, whatever the rule says about
masquerading; packets of the node itself to a ClusterIP meet no load balancer (hcn.md 5.5 W7); nothing answers for
ports of a ClusterIP that no service uses. Everything else that is lost becomes a `Shortfall`.

Evidence: windows-proxy C.2 (fields of each load balancer), C.3 and KEP-5100 (source VIP), D.2 and D.3 (endpoints).
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from hansa.config import Config
from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.windows.objects import (
    NO_LB_FLAGS,
    NO_MAPPING_FLAGS,
    DesiredEndpoint,
    DesiredLoadBalancer,
    EndpointKind,
    HostFacts,
    LbKey,
    LbRole,
    address_order,
    conjured_mac,
    service_key,
)
from hansa.hns.features import Feature
from hansa.hns.features import needed as needed_versions
from hansa.hns.schema import Distribution, LbFlags, MappingFlags
from hansa.net import Address, IPFamily, Protocol, family_of
from hansa.rules.model import Action, Because, Drop, Forward, FrontendKind, Reject, Rule
from hansa.services.model import Endpoint

MAX_BACKENDS_DSR = 1024  # documented limit of a Windows node (windows-proxy S25)
MAX_BACKENDS = 64  # without DSR HNS answers "invalid number of destinations" beyond it (hcn.md 5.9)
DSR_VERSIONS = f"HNS {needed_versions(Feature.DSR)}"
AFFINITY_VERSIONS = f"HNS {needed_versions(Feature.SESSION_AFFINITY)}"


@dataclass(frozen=True, slots=True)
class RenderedRule:
    """What one rule asks of the host."""

    load_balancers: tuple[DesiredLoadBalancer, ...] = ()
    shortfalls: tuple[Shortfall, ...] = ()


def render_rule(rule: Rule, facts: HostFacts, config: Config) -> RenderedRule:
    """The load balancers of one frontend: its own, and the one for health checks of a load balancer VIP.

    A frontend of ClusterIP follows the action for pods, every other the action for outside: HNS cannot tell them apart.
    """
    impossible = _impossible(rule, facts)
    if impossible is not None:
        return RenderedRule(shortfalls=(impossible,))
    own, shortfalls = _service_load_balancer(rule, facts, config)
    health = _health_load_balancer(rule, facts, config)
    return RenderedRule(
        tuple(balancer for balancer in (own, health) if balancer is not None),
        (*shortfalls, *_lost(rule, facts)),
    )


def _short(rule: Rule, feature: str, text: str, *, needed: str = "", found: str = "") -> Shortfall:
    return Shortfall(feature, rule.key, rule.owner, text, needed, found)


def _impossible(rule: Rule, facts: HostFacts) -> Shortfall | None:
    """Why nothing of this frontend can be programmed, None if something can."""
    family = rule.key.family
    if rule.key.protocol is Protocol.SCTP:
        return _short(rule, "sctp", "HNS has no documented load balancing of SCTP")
    if family is IPFamily.IPV6 and facts.overlay:
        return _short(rule, "ipv6", "overlay networks of HNS have no IPv6", needed="an l2bridge network")
    if family is IPFamily.IPV6 and not facts.supports(Feature.IPV6_DUAL_STACK):
        needed = f"HNS {needed_versions(Feature.IPV6_DUAL_STACK)}"
        return _short(rule, "ipv6", "this HNS has no IPv6", needed=needed, found=f"HNS {facts.version}")
    if not facts.overlay and family not in facts.source_vips and facts.node_ip(family) is None:
        return _short(rule, "family", f"this node has no {family} address", needed=f"a node address of {family}")
    return None


def wanted_action(rule: Rule) -> Action:
    """The one action that HNS can be given for this frontend."""
    return rule.pod if rule.kind is FrontendKind.CLUSTER_IP else rule.outside


def _service_load_balancer(
    rule: Rule, facts: HostFacts, config: Config
) -> tuple[DesiredLoadBalancer | None, list[Shortfall]]:
    action = wanted_action(rule)
    if not isinstance(action, Forward):
        return None, [_no_verdict(rule, action)]
    preserve = _preserves_destination(rule, facts)
    candidates = [endpoint for endpoint in action.endpoints if endpoint.local or not preserve]
    if not candidates:
        text = "preserve-destination uses endpoints on this node only, and there is none"
        return None, [_short(rule, "preserve-destination", text)]
    dsr = _uses_dsr(rule, facts, config)
    port, members, shortfalls = _largest_group(rule, candidates)
    if len(candidates) < len(action.endpoints):
        text = "preserve-destination uses endpoints on this node only; those on other nodes get no traffic from here"
        shortfalls.append(_short(rule, "preserve-destination", text))
    backends, excess = _limited(rule, members, MAX_BACKENDS_DSR if dsr else MAX_BACKENDS, facts)
    source_vip, mix = _source_vip(rule, facts, local_only=dsr or all(each.local for each in backends))
    balancer = DesiredLoadBalancer(
        key=service_key(rule.key),
        backends=tuple(each.address for each in backends),
        local=frozenset(each.address for each in backends if each.local),
        internal_port=port,
        source_vip=source_vip,
        distribution=_distribution(rule, facts),
        lb_flags=_lb_flags(rule.key.family, dsr=dsr),
        mapping_flags=_mapping_flags(rule, preserve=preserve),
        owners=(str(rule.owner),),
        critical=is_critical(rule, config),
    )
    return balancer, [*shortfalls, *excess, *mix]


def is_critical(rule: Rule, config: Config) -> bool:
    return str(rule.owner.service_key) in config.windows.critical


def _no_verdict(rule: Rule, action: Drop | Reject) -> Shortfall:
    wanted = "dropped" if isinstance(action, Drop) else "rejected"
    text = (
        f"packets should be {wanted} ({action.because.value}); without a load balancer they go where routing sends them"
    )
    return _short(rule, "verdict", text)


def _preserves_destination(rule: Rule, facts: HostFacts) -> bool:
    """Table C.2: P counts for node ports and load balancer VIPs, and needs DSR in HNS."""
    counts = rule.kind in (FrontendKind.NODE_PORT, FrontendKind.LOAD_BALANCER_IP)
    return counts and rule.preserve_destination and facts.supports(Feature.DSR)


def _uses_dsr(rule: Rule, facts: HostFacts, config: Config) -> bool:
    """Table C.2: the configuration decides for ClusterIPs; elsewhere a Local policy, and P on load balancer VIPs."""
    if not facts.supports(Feature.DSR):
        return False
    if rule.kind is FrontendKind.CLUSTER_IP:
        return config.windows.enable_dsr
    return rule.local or (rule.kind is FrontendKind.LOAD_BALANCER_IP and rule.preserve_destination)


def _lb_flags(family: IPFamily, *, dsr: bool) -> LbFlags:
    flags = LbFlags.DSR if dsr else NO_LB_FLAGS
    return flags | LbFlags.IPV6 if family is IPFamily.IPV6 else flags


def _mapping_flags(rule: Rule, *, preserve: bool) -> MappingFlags:
    match rule.kind:
        case FrontendKind.CLUSTER_IP:
            return NO_MAPPING_FLAGS
        case FrontendKind.NODE_PORT:
            return MappingFlags.VIP_EXTERNAL_IP | MappingFlags.LOCAL_ROUTED_VIP
        case FrontendKind.EXTERNAL_IP:
            return MappingFlags.VIP_EXTERNAL_IP
        case FrontendKind.LOAD_BALANCER_IP:
            kept = MappingFlags.USE_MUX | MappingFlags.PRESERVE_DIP if preserve else NO_MAPPING_FLAGS
            return MappingFlags.VIP_EXTERNAL_IP | kept


def _distribution(rule: Rule, facts: HostFacts) -> Distribution:
    if rule.affinity_timeout_s is None or not facts.supports(Feature.SESSION_AFFINITY):
        return Distribution.NONE
    return Distribution.SOURCE_IP


def _largest_group(rule: Rule, endpoints: Sequence[Endpoint]) -> tuple[int, list[Endpoint], list[Shortfall]]:
    """A load balancer has one backend port: the one that most endpoints serve, the lowest of equals (F79)."""
    groups: dict[int, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        groups[endpoint.port].append(endpoint)
    port = min(groups, key=lambda candidate: (-len(groups[candidate]), candidate))
    if len(groups) == 1:
        return port, groups[port], []
    rest = ", ".join(str(endpoint) for endpoint in endpoints if endpoint.port != port)
    text = f"an HNS load balancer has one backend port; port {port} is used, without traffic stay {rest}"
    return port, groups[port], [_short(rule, "endpoint-ports", text)]


def _limited(
    rule: Rule, members: Sequence[Endpoint], limit: int, facts: HostFacts
) -> tuple[list[Endpoint], list[Shortfall]]:
    """At most `limit` of them, local ones first; every node picks other remote ones, so that all get traffic."""
    found = {each.address: each for each in members}
    for each in members:  # the same address may come from two slices: on this node if either says so
        if each.local:
            found[each.address] = each
    distinct = sorted(found.values(), key=lambda each: address_order(each.address))
    if len(distinct) <= limit:
        return distinct, []

    def rank(each: Endpoint) -> tuple[bool, int, tuple[int, int]]:
        spread = zlib.crc32(f"{facts.node_name}/{each.address}".encode())
        return (not each.local, spread, address_order(each.address))

    chosen = sorted(sorted(distinct, key=rank)[:limit], key=lambda each: address_order(each.address))
    text = f"HNS takes at most {limit} backends here; {len(distinct) - limit} of {len(distinct)} get none"
    return chosen, [_short(rule, "backend-limit", text, needed=str(len(distinct)), found=str(limit))]


def _source_vip(rule: Rule, facts: HostFacts, *, local_only: bool) -> tuple[Address | None, list[Shortfall]]:
    """The address that backends see as client; None = not known, and it is needed.

    l2bridge: the configured one, else the node IP. overlay: the source VIP, but the node IP as soon as one endpoint of
    the rule that is not on this node is another node's address or outside the cluster. Evidence: windows-proxy C.3.
    """
    family = rule.key.family
    node_ip = facts.node_ip(family)
    configured = facts.source_vips.get(family)
    if not facts.overlay:
        return configured or node_ip, []
    away = [endpoint.address for endpoint in rule.endpoints if not endpoint.local]
    off_overlay = [address for address in away if _off_overlay(address, facts)]
    if not off_overlay:
        return configured or (node_ip if local_only else None), []
    if len(off_overlay) == len(away):
        return node_ip, []
    text = f"{off_overlay[0]} is outside the pod network: every backend sees the node IP {node_ip} as client"
    return node_ip, [_short(rule, "source-vip-mix", text)]


def _off_overlay(address: Address, facts: HostFacts) -> bool:
    subnets = facts.remote_subnets
    return subnets.is_provider(address) or (subnets.provider_of(address) is None and not facts.is_own(address))


def _health_load_balancer(rule: Rule, facts: HostFacts, config: Config) -> DesiredLoadBalancer | None:
    """Hands the health check of a load balancer VIP to this host: TCP whatever the service speaks (F42, F75)."""
    family = rule.key.family
    root = facts.root_addresses.get(family)
    if rule.kind is not FrontendKind.LOAD_BALANCER_IP or not rule.health_check_node_port or root is None:
        return None
    preserve = _preserves_destination(rule, facts)
    kept = MappingFlags.USE_MUX | MappingFlags.PRESERVE_DIP if preserve else NO_MAPPING_FLAGS
    return DesiredLoadBalancer(
        key=LbKey(LbRole.HEALTH, family, rule.key.address, Protocol.TCP, rule.health_check_node_port),
        backends=(root,),
        local=frozenset({root}),
        internal_port=rule.health_check_node_port,
        source_vip=_source_vip(rule, facts, local_only=True)[0],
        lb_flags=_lb_flags(family, dsr=False),
        mapping_flags=kept,
        owners=(str(rule.owner),),
        critical=is_critical(rule, config),
    )


def _lost(rule: Rule, facts: HostFacts) -> Iterator[Shortfall]:
    """What a programmed frontend does not do as the rule says. Texts are equal for all frontends of a service port."""
    external = rule.kind is not FrontendKind.CLUSTER_IP
    version = f"HNS {facts.version}"

    def of_service(feature: str, text: str, *, needed: str = "", found: str = "") -> Shortfall:
        return Shortfall(feature, None, rule.owner, text, needed, found)

    if rule.source_ranges is not None:
        yield _short(rule, "source-ranges", "HNS does not filter by source; every client may use this frontend")
    if rule.affinity_timeout_s is not None and not facts.supports(Feature.SESSION_AFFINITY):
        yield of_service(
            "session-affinity", "connections are spread without affinity", needed=AFFINITY_VERSIONS, found=version
        )
    elif rule.affinity_timeout_s is not None:
        text = f"HNS has no time limit for affinity; {rule.affinity_timeout_s} s is not applied"
        yield of_service("session-affinity-timeout", text)
    if external and rule.local and not facts.supports(Feature.DSR):
        text = "the client's address is not preserved; endpoints on this node only, as the policy says"
        yield of_service("client-ip", text, needed=DSR_VERSIONS, found=version)
    if external and rule.local and _short_circuited(rule):
        text = "pods and this node reach external addresses by endpoints on this node only: HNS cannot tell who asks"
        yield of_service("short-circuit", text)
    if rule.preserve_destination and external and not facts.supports(Feature.DSR):
        text = "the destination address is not preserved"
        yield of_service("preserve-destination", text, needed=DSR_VERSIONS, found=version)


def _short_circuited(rule: Rule) -> bool:
    return rule.pod != rule.outside and isinstance(rule.pod, Forward) and rule.pod.because is Because.SHORT_CIRCUIT


def remote_endpoint(address: Address, facts: HostFacts) -> DesiredEndpoint:
    """The stand-in for a backend elsewhere. Evidence: windows-proxy D.2, D.3."""
    provider = None
    if facts.overlay:
        provider = facts.remote_subnets.provider_of(address) or facts.node_ip(family_of(address))
    return DesiredEndpoint(address, EndpointKind.REMOTE, conjured_mac(address), provider)


def service_vip_endpoint(address: Address, facts: HostFacts) -> DesiredEndpoint | None:
    """Overlay: answers the ARP of pods for a ClusterIP; None = of IPv6, which an overlay has not. Evidence: D.4."""
    if family_of(address) is IPFamily.IPV6:
        return None
    return DesiredEndpoint(address, EndpointKind.SERVICE_VIP, facts.host_mac, facts.node_ip(family_of(address)))


def source_vip_endpoints(facts: HostFacts, config: Config) -> list[DesiredEndpoint]:
    """Overlay: holds the configured source VIP, unless the CNI is said to make it. Evidence: windows-proxy D.4."""
    if not (facts.overlay and config.windows.create_source_vip):
        return []
    return [
        DesiredEndpoint(address, EndpointKind.SOURCE_VIP, facts.host_mac)
        for address in config.windows.source_vip
        if family_of(address) is IPFamily.IPV4 and facts.source_vips.get(IPFamily.IPV4) == address
    ]


def general_shortfalls(facts: HostFacts, config: Config) -> list[Shortfall]:
    """What is lost for the whole node."""
    found = []
    if config.windows.enable_dsr and not facts.supports(Feature.DSR):
        text = "DSR is configured, but this HNS cannot do it"
        found.append(Shortfall("dsr", None, None, text, DSR_VERSIONS, f"HNS {facts.version}"))
    return found


def merged(asked: Iterable[DesiredLoadBalancer]) -> DesiredLoadBalancer:
    """One load balancer that several service ports ask for under one key: the first by owner, owned by all (F08)."""
    first, *others = sorted(asked, key=lambda balancer: balancer.owners)
    if not others:
        return first
    owners = {owner for balancer in (first, *others) for owner in balancer.owners}
    critical = first.critical or any(other.critical for other in others)
    return replace(first, owners=tuple(sorted(owners)), critical=critical)
