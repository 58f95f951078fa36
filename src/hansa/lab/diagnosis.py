"""Why a connection through a lab does not work: from where it died to what is to blame. Pure.

Only what the journey met is looked at, and what HNS holds at those places; no choice is made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hansa.dataplanes.base import Shortfall
from hansa.hns.api import Guid
from hansa.hns.emulator.vswitch_model import HOST_PORT, Cause, Dropped
from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer, LbFlags
from hansa.lab.world import FromNode, FromOutside, FromPod, Journey, Loss, Lost, Step, World
from hansa.net import Address
from hansa.rules.model import Drop, Forward, FrontendKind, NotHandled, Reject, Rule, Verdict


def diagnose(world: World, journey: Journey) -> tuple[str, ...]:
    """Sentences for people, the cause first; () if the connection works or there is no more to say than `loss` does."""
    if journey.loss is None:
        return ()
    return tuple(_sentences(world, journey, journey.loss))


def _sentences(world: World, journey: Journey, loss: Lost) -> Iterator[str]:
    cause = loss.cause.cause if isinstance(loss.cause, Dropped) else loss.cause
    last = (journey.back or journey.there).steps[-1:]
    match cause:
        case Loss.NO_ROUTE if last and last[0].after.outer is not None:
            yield from _led_astray(world, journey, loss)
        case Cause.NO_LOAD_BALANCER | Loss.NO_ROUTE | Loss.NOT_LISTENING:
            yield from _unserved(world, journey)
        case Loss.OVERLAY_ON_WIRE:
            yield from _left_the_overlay(world, journey)
        case Cause.OTHER_NODE | Cause.NO_FLOW | Loss.TURNED_BACK:
            yield from _led_astray(world, journey, loss)
        case Cause.HAIRPIN:
            yield "a pod that is its own endpoint needs the CNI plugin's loopbackDSR, or a load balancer without DSR"
        case Loss.ASYMMETRIC | Loss.STRAY:
            yield from _asymmetric(world, journey)
        case Cause.NO_BACKEND:
            yield "stale load balancer: " + _named(world, journey.steps) + "refers to endpoints that are gone"
        case _:
            return


def _unserved(world: World, journey: Journey) -> Iterator[str]:
    node = journey.node
    header = journey.met
    if node not in world.windows:
        return
    rule = world.rule(node, header)
    if _asks_as_node(journey):
        yield (
            f"{node} itself asks: on Windows its own processes reach node ports only, never ClusterIPs or VIPs "
            "(documented by Microsoft)"
        )
    elif rule is None:
        yield f"no Service that {node} handles has this frontend"
    elif isinstance(journey.wanted, Drop | Reject):
        word = "dropped" if isinstance(journey.wanted, Drop) else "refused"
        silent = "" if isinstance(journey.wanted, Drop) else "; HNS cannot refuse, so the client waits in vain"
        yield f"as the rules want it: {word}, {journey.wanted.because.value}{silent}"
    else:
        yield (
            f"load balancer missing: HNS of {node} holds none for {rule.key}, which the rules want for {rule.owner}; "
            "somebody has deleted it, or hansa has not got to it (`hansa plan` tells)"
        )


def _left_the_overlay(world: World, journey: Journey) -> Iterator[str]:
    last = (journey.back or journey.there).steps[-1]
    peer = next(
        (
            (node.name, prefix)
            for node in world.lab.nodes
            for prefix in node.pod_cidrs
            if last.after.header.destination in prefix
        ),
        None,
    )
    if peer is not None and last.place in world.windows:
        yield f"route missing: HNS of {last.place} does not know that the pods of {peer[1]} are on {peer[0]}"
        return
    for step in journey.there.steps:
        if step.hop is not None and step.hop.behaviour in ("VP-10", "VP-11"):
            source = step.after.header.source
            yield (
                f"missing source VIP: {_balancer(world, step.place, step.hop.balancer)} has none, so the endpoint saw "
                f"{source} as client, and answers to that address do not go through the overlay"
            )
            return
    asymmetric = tuple(_asymmetric(world, journey))
    yield from asymmetric or ["nothing rewrote the overlay address before it left the node: OutBoundNAT passes it by"]


def _led_astray(world: World, journey: Journey, loss: Lost) -> Iterator[str]:
    """Someone sent it to the wrong node; or nobody holds the address at which the answer is awaited."""
    destination = loss.header.destination
    for step in journey.there.steps:
        hop = step.hop
        if hop is not None and hop.behaviour == "VP-09" and step.after.header.source == destination:
            yield (
                f"source-VIP endpoint missing: {_balancer(world, step.place, hop.balancer)} rewrites sources to "
                f"{destination}, and no HNS endpoint of {step.place} holds that address"
            )
            return
    steps = journey.back.steps if journey.back is not None else journey.there.steps
    sender = next(
        (step for step in reversed(steps) if step.hop and step.hop.behaviour in ("VP-19", "VP-20", "VP-22")), None
    )
    if sender is None or sender.hop is None:
        return
    place = sender.place
    remote = _remote(world, place, destination)
    if remote is not None and sender.hop.behaviour != "VP-20":
        provider = f" that leads to node {remote.provider_address}" if remote.provider_address else ""
        what = f"HNS of {place} holds a remote endpoint {_short(remote.guid)} for {destination}{provider}"
        blamed = (
            "stale remote endpoint, wrong provider address"
            if sender.hop.behaviour == "VP-19"
            else "stale remote endpoint"
        )
        yield f"{blamed}: {what}; {_whereabouts(world, destination)}"
    else:
        yield f"HNS of {place} leads {destination} to the wrong node; {_whereabouts(world, destination)}"


def _whereabouts(world: World, address: Address) -> str:
    pod = world.pod_at(address)
    return f"{pod} has this address on {pod.node}" if pod is not None else "no pod has this address"


def _asymmetric(world: World, journey: Journey) -> Iterator[str]:
    changed = next((step for step in journey.there.steps if _redirects(step)), None)
    if changed is None or changed.hop is None:
        return
    back = journey.back.steps if journey.back is not None else ()
    if changed.place in {step.place for step in back}:
        yield f"{changed.place} saw the answer and did not change it back"
        return
    name = _balancer(world, changed.place, changed.hop.balancer)
    yield (
        f"asymmetric return: {name} rewrote the destination and kept the source, so the answer goes straight to the "
        f"client, past {changed.place}, which alone could change it back; DSR is for endpoints of the same node only"
    )


def _redirects(step: Step) -> bool:
    """At the host's port: what a pod's own port changes, answers always pass again."""
    return (
        step.hop is not None
        and step.hop.port == HOST_PORT
        and step.before.header.destination != step.after.header.destination
    )


# -- names -----------------------------------------------------------------------------------------------------------


def _named(world: World, steps: tuple[Step, ...]) -> str:
    """The last load balancer that was met."""
    for step in reversed(steps):
        if step.hop is not None and step.hop.balancer is not None:
            return _balancer(world, step.place, step.hop.balancer) + " "
    return ""


def _balancer(world: World, node: str, guid: Guid | None) -> str:
    found = balancer_at(world, node, guid)
    return (
        f"the load balancer on {node}"
        if found is None
        else f"load balancer {_short(found.guid)} on {node}{_dsr(found)}"
    )


def _dsr(balancer: HnsLoadBalancer) -> str:
    return " (DSR)" if balancer.flags & LbFlags.DSR else ""


def balancer_at(world: World, node: str, guid: Guid | None) -> HnsLoadBalancer | None:
    """The load balancer of that id, if HNS of the node holds it."""
    switch = world.windows.get(node)
    return None if switch is None else next((one for one in switch.load_balancers if one.guid == guid), None)


def _remote(world: World, node: str, address: Address) -> HnsEndpoint | None:
    switch = world.windows.get(node)
    held = switch.endpoints.values() if switch is not None else ()
    return next((one for one in held if one.remote and address in one.addresses), None)


def _short(guid: Guid) -> str:
    return guid[:8].lower()


# What HNS cannot do for any service, so that no shortfall of a service tells of it.
NODE_ASKS = "HNS: a process of the node itself reaches no ClusterIP and no VIP (documented; hcn.md 5.5, W7)"
EVERY_ADDRESS = "HNS: node ports answer on every address of the node, whatever nodePortAddresses says (hcn.md 2.4)"
HAIRPIN = "HNS: with DSR a pod reaches itself only with the CNI plugin's loopbackDSR (seen; hcn.md 5.4, 5.7)"
OWN_NODE = "HNS: with DSR a pod does not reach an endpoint that is its own node (seen: kubernetes/kubernetes#126795)"
_KNOWN = {Cause.HAIRPIN: HAIRPIN, Cause.OWN_NODE: OWN_NODE}
_LOSES = frozenset(
    {
        "sctp",
        "ipv6",
        "family",
        "verdict",
        "endpoint-ports",
        "backend-limit",
        "preserve-destination",
        "short-circuit",
        "source-vip-mix",
    }
)
_LETS_PASS = frozenset({"source-ranges", "verdict", "short-circuit"})


@dataclass(frozen=True, slots=True)
class Situated:
    """A packet as a Windows node's rules met it. cause: why the switch dropped it, None = it did not."""

    rule: Rule | None
    wanted: Verdict
    from_outside: bool
    from_node: bool
    cause: Cause | None = None


def known_limits(met: Situated, shortfalls: Iterable[Shortfall]) -> tuple[str, ...]:
    """What this host is known not to do for such a packet; () if it should do as the rules want."""
    rule = met.rule
    external = rule is not None and rule.kind is not FrontendKind.CLUSTER_IP
    features = _LOSES if isinstance(met.wanted, Forward) else _LETS_PASS
    found: list[str] = []
    for one in shortfalls:
        about = rule is not None and (one.frontend == rule.key or (one.frontend is None and one.owner == rule.owner))
        if one.feature == "short-circuit" and (met.from_outside or not external):
            continue
        if about and one.feature in features and (external or one.feature != "preserve-destination"):
            found.append(f"{one.feature}: {one.text}")
    if met.from_node and rule is not None and rule.kind is not FrontendKind.NODE_PORT:
        found.append(NODE_ASKS)
    if rule is not None and rule.kind is FrontendKind.NODE_PORT and isinstance(met.wanted, NotHandled):
        found.append(EVERY_ADDRESS)
    if met.cause in _KNOWN:
        found.append(_KNOWN[met.cause])
    return tuple(dict.fromkeys(found))


def excuses(world: World, journey: Journey) -> tuple[str, ...]:
    """What this host is known not to do, where that is why a journey goes another way than the rules want."""
    node, header = journey.node, journey.met
    if isinstance(journey.wanted, NotHandled):  # by every node on the way: the one that did something is to be asked
        redirected = (step for step in journey.there.steps if _redirected(step))
        node, header = next(((step.place, step.before.header) for step in redirected), (node, header))
    if node not in world.windows or journey.wanted is None or not contradictions(world, journey):
        return ()
    dropped = journey.loss.cause if journey.loss is not None else None
    met = Situated(
        world.rule(node, header),
        journey.wanted,
        from_outside=isinstance(journey.ask.client, FromOutside),
        from_node=_asks_as_node(journey),
        cause=dropped.cause if isinstance(dropped, Dropped) else None,
    )
    return known_limits(met, world.shortfalls.get(node, ()))


def _asks_as_node(journey: Journey) -> bool:
    client = journey.ask.client
    return isinstance(client, FromNode) or (isinstance(client, FromPod) and client.pod.host_network)


def contradictions(world: World, journey: Journey) -> tuple[str, ...]:
    """Where what happened, or might happen to other connections, is not what the rules want; () if it is."""
    return tuple(_contradictions(world, journey))


def _contradictions(world: World, journey: Journey) -> Iterator[str]:
    wanted = journey.wanted
    if isinstance(wanted, Drop | Reject) and journey.endpoint is not None:
        yield f"the rules do not want it anywhere: {wanted.because.value}"
    if isinstance(wanted, NotHandled) and any(_redirected(step) for step in journey.there.steps):
        yield "the rules leave it alone, and a load balancer has led it elsewhere"
    if not isinstance(wanted, Forward):
        return
    names = ", ".join(str(one) for one in wanted.endpoints)
    end = journey.endpoint
    reached = None if end is None else (end.header.destination, end.header.port)
    if end is not None and end.pod is not None and end.header.destination == journey.ask.header.destination:
        right = any(one.address in end.pod.addresses for one in wanted.endpoints)  # the destination was preserved
    else:
        right = reached in {(one.address, one.port) for one in wanted.endpoints}
    if journey.loss is not None or not right:
        yield f"the rules want it at one of {names}"
    for step in journey.there.steps:
        if step.place != journey.node or step.hop is None:
            continue
        balancer = balancer_at(world, step.place, step.hop.balancer)
        if balancer is not None:
            missing = [
                str(one) for one in wanted.endpoints if one.address not in _addresses(world, step.place, balancer)
            ]
            if missing:
                yield f"load balancer {_short(balancer.guid)} on {step.place} does not lead to {', '.join(missing)}"
            return


def _redirected(step: Step) -> bool:
    """By a load balancer, on any node."""
    changed = step.before.header.destination != step.after.header.destination
    return step.hop is not None and step.hop.balancer is not None and changed


def _addresses(world: World, node: str, balancer: HnsLoadBalancer) -> set[Address]:
    held = (world.windows[node].endpoints.get(guid) for guid in balancer.endpoints)
    return {address for one in held if one is not None for address in one.addresses}
