"""build_rules(): what was selected for a Service becomes one rule per frontend, with an action for each origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from hansa.api.objects import Policy
from hansa.config import Config
from hansa.net import Address, Prefix, Protocol
from hansa.rules.model import (
    Action,
    Because,
    Drop,
    Forward,
    FrontendKey,
    FrontendKind,
    Reject,
    Rule,
    Surroundings,
)
from hansa.rules.surroundings import detects_pods
from hansa.services.model import Endpoint, ServicePort, ServicePortView


def build_rules(view: Iterable[ServicePortView], config: Config, surroundings: Surroundings) -> tuple[Rule, ...]:
    """Every frontend of every service port in `view`, in the view's order; () if there is none.

    Several rules may claim one frontend, even of one port (an external IP that is also a load balancer VIP): `RuleSet`
    settles that. Costs what the view costs: endpoint tuples are shared with it, never copied.
    Evidence: service-semantics sections 5, 6, 10 to 12 and F1-F7.
    """
    return tuple(rule for one in view for rule in _rules_of_port(one, config, surroundings))


@dataclass(frozen=True, slots=True)
class _Actions:
    """What the three origins meet at frontends of one kind; lingering: as in `Rule`."""

    pod: Action
    node: Action
    outside: Action
    lingering: tuple[Endpoint, ...] = ()


def _rules_of_port(view: ServicePortView, config: Config, surroundings: Surroundings) -> Iterator[Rule]:
    # The view leaves external IPs out where they are switched off (A5).
    port = view.port
    detector = detects_pods(surroundings, port.family)
    internal = _internal_actions(view, detector=detector, masquerade_all=config.masquerade_all)
    if port.name.protocol is Protocol.UDP:
        internal = _let_linger(internal, view)
    yield _rule(port, FrontendKind.CLUSTER_IP, port.cluster_ip, internal)
    if not port.externally_accessible:
        return
    external = _external_actions(view, detector=detector)
    if port.name.protocol is Protocol.UDP:
        external = _let_linger(external, view)
    for address in port.external_ips:
        yield _rule(port, FrontendKind.EXTERNAL_IP, address, external)
    if port.load_balancer_vips:
        source_ranges = _widened_source_ranges(port, surroundings)
        for address in port.load_balancer_vips:
            yield _rule(port, FrontendKind.LOAD_BALANCER_IP, address, external, source_ranges)
    if port.node_port:
        yield _rule(port, FrontendKind.NODE_PORT, None, external)


def _internal_actions(view: ServicePortView, *, detector: bool, masquerade_all: bool) -> _Actions:
    """The internal policy and M1 to M3: at the ClusterIP, origins differ only in whether they are masqueraded."""
    local = view.port.internal_policy is Policy.LOCAL
    endpoints = view.selection.local if local else view.selection.cluster
    verdict = _without_endpoints(view, endpoints)
    if verdict is not None:
        return _Actions(verdict, verdict, verdict)
    because = Because.LOCAL_POLICY if local else Because.CLUSTER_POLICY
    pod = Forward(endpoints or (), masquerade_all, because)
    rest = Forward(endpoints or (), masquerade_all or detector, because)
    return _Actions(pod, rest, rest)


def _external_actions(view: ServicePortView, *, detector: bool) -> _Actions:
    """The external policy, the short-circuit (X6-X9, X11) and M4, M5."""
    cluster = view.selection.cluster
    everywhere = _without_endpoints(view, cluster)
    if everywhere is not None:
        return _Actions(everywhere, everywhere, everywhere)
    if view.port.external_policy is not Policy.LOCAL:
        everyone = Forward(cluster or (), True, Because.CLUSTER_POLICY)
        return _Actions(everyone, everyone, everyone)
    local = view.selection.local
    outside: Action = _without_endpoints(view, local) or Forward(local or (), False, Because.LOCAL_POLICY)
    # X9: without a detector nobody can tell a pod from the outside, so pods meet what the outside meets.
    pod: Action = Forward(cluster or (), False, Because.SHORT_CIRCUIT) if detector else outside
    return _Actions(pod, Forward(cluster or (), True, Because.SHORT_CIRCUIT), outside)


def _let_linger(actions: _Actions, view: ServicePortView) -> _Actions:
    """K4, K13: what no policy and no hint chose for these frontends may still have flows."""
    chosen = {
        endpoint
        for action in (actions.pod, actions.node, actions.outside)
        if isinstance(action, Forward)
        for endpoint in action.endpoints
    }
    lingering = tuple(endpoint for endpoint in view.selection.enduring if endpoint not in chosen)
    return replace(actions, lingering=lingering) if lingering else actions


def _without_endpoints(view: ServicePortView, endpoints: tuple[Endpoint, ...] | None) -> Reject | Drop | None:
    """R1 to R3: refuse if nobody could serve, stay silent if only this set is empty; None if the set has endpoints."""
    if not view.selection.any_usable:
        return Reject(Because.NO_ENDPOINTS)
    return None if endpoints else Drop(Because.NO_LOCAL_ENDPOINTS)


def _widened_source_ranges(port: ServicePort, surroundings: Surroundings) -> tuple[Prefix, ...] | None:
    """F7: a VIP that is bound to the node appears as source there, so it may enter wherever the node itself may."""
    ranges = port.source_ranges
    node_ip = surroundings.node.node_ips.get(port.family)
    if ranges is None or node_ip is None or not any(node_ip in prefix for prefix in ranges):
        return ranges
    return (*ranges, *(ip_network(vip) for vip in port.load_balancer_vips))


def _rule(
    port: ServicePort,
    kind: FrontendKind,
    address: Address | None,
    actions: _Actions,
    source_ranges: tuple[Prefix, ...] | None = None,
) -> Rule:
    number = port.node_port if kind is FrontendKind.NODE_PORT else port.port
    policy = port.internal_policy if kind is FrontendKind.CLUSTER_IP else port.external_policy
    return Rule(
        kind=kind,
        key=FrontendKey(port.family, address, port.name.protocol, number),
        owner=port.name,
        pod=actions.pod,
        node=actions.node,
        outside=actions.outside,
        local=policy is Policy.LOCAL,
        source_ranges=source_ranges,
        affinity_timeout_s=port.affinity_timeout_s,
        health_check_node_port=port.health_check_node_port if kind is FrontendKind.LOAD_BALANCER_IP else 0,
        preserve_destination=port.preserve_destination,
        created=port.created,
        lingering=actions.lingering,
    )
