"""Why is it so? The reasons that services, rules, render and plan have given for an endpoint, frontend, load balancer.

Nothing is decided here again: every line repeats what a stage has said of its own choice, in the order of the stages.
Only where no frontend is, no stage has said anything: then `decide` is asked.
Pure; whoever asks brings a pipeline that has made its message and, for Windows, what is wanted and what HNS holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, assert_never

from hansa.api.objects import ServiceKey
from hansa.dataplanes.base import Shortfall
from hansa.dataplanes.windows.compare import Situation, plan_address, plan_frontend, resolve
from hansa.dataplanes.windows.objects import LbRole
from hansa.dataplanes.windows.ownership import Standing
from hansa.errors import ConfigError, Fault
from hansa.hns.schema import HnsLoadBalancer
from hansa.net import Address, IPFamily, Packet, family_of, parse_address, parse_protocol
from hansa.pipeline import Pipeline
from hansa.rules.decide import decide
from hansa.rules.model import Action, Because, Drop, Forward, FrontendKey, Origin, Reject, Rule, RuleChanges
from hansa.services.model import Endpoint, Selection, ServicePortView

FORM = (
    "endpoint ADDRESS for svc/NAMESPACE/NAME, frontend ADDRESS:PORT/tcp, frontend node:PORT/tcp, "
    "frontend svc/NAMESPACE/NAME, or loadbalancer ID"
)
_ENDPOINT = re.compile(r"endpoint\s+(?P<address>\S+?)(?:\s+(?:for|of|in)\s+(?P<service>\S+))?")
_FRONTEND = re.compile(
    r"frontend\s+(?P<host>node|\[[0-9a-fA-F:.]+\]|[0-9.]+):(?P<port>\d+)(?:/(?P<protocol>\w+))?(?:\s+(?P<family>IPv6))?"
)
_SERVICE = re.compile(r"(?:svc/)?(?!svc/)(?P<namespace>[^/\s:]+)/(?P<name>[^/\s:]+)")
_BALANCER = re.compile(r"load\s*balancer\s+(?P<id>[0-9a-fA-F-]+)")


class AboutEndpoint(NamedTuple):
    """service: None = of every Service."""

    address: Address
    service: ServiceKey | None = None


class AboutFrontend(NamedTuple):
    key: FrontendKey


class AboutService(NamedTuple):
    """Its frontends, one and all."""

    service: ServiceKey


class AboutBalancer(NamedTuple):
    """guid: as much of it as people type, upper case."""

    guid: str


Question = AboutEndpoint | AboutFrontend | AboutService | AboutBalancer


class Line(NamedTuple):
    """One reason. stage: whose it is."""

    stage: str
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of a node. situation: of a Windows node, None = no host was asked. shortfalls: of its dataplane."""

    pipeline: Pipeline
    message: RuleChanges
    situation: Situation | None = None
    shortfalls: tuple[Shortfall, ...] = ()


def read_question(text: str) -> Question:
    """As people write it, see FORM. Raises ConfigError."""
    plain = text.strip().rstrip("?")
    try:
        if (match := _ENDPOINT.fullmatch(plain)) is not None:
            service = _service(match["service"]) if match["service"] else None
            return AboutEndpoint(parse_address(match["address"]), service)
        if (match := _FRONTEND.fullmatch(plain)) is not None:
            return AboutFrontend(_frontend(match))
        if (match := _BALANCER.fullmatch(plain)) is not None:
            return AboutBalancer(match["id"].upper())
        word, _, rest = plain.partition(" ")
        if word == "frontend" and rest.startswith("svc/"):
            return AboutService(_service(rest))
    except ValueError as error:
        raise _fault(str(error)) from error
    raise _fault(f"{text!r} is no question")


def _fault(text: str) -> ConfigError:
    return ConfigError(Fault("QUESTION", text, f"ask {FORM}"))


def _service(text: str) -> ServiceKey:
    match = _SERVICE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no Service")
    return ServiceKey(match["namespace"], match["name"])


def _frontend(match: re.Match[str]) -> FrontendKey:
    protocol = parse_protocol(match["protocol"] or "tcp")
    if match["host"] == "node":
        family = IPFamily.IPV6 if match["family"] else IPFamily.IPV4
        return FrontendKey(family, None, protocol, int(match["port"]))
    address = parse_address(match["host"].strip("[]"))
    return FrontendKey(family_of(address), address, protocol, int(match["port"]))


def why(case: Case, question: Question) -> tuple[Line, ...]:
    """The reasons, in the order of the stages; never (), since that nobody knows of a thing is an answer, too."""
    match question:
        case AboutEndpoint(address, service):
            return tuple(_of_endpoint(case, address, service))
        case AboutFrontend(key):
            return tuple(_of_frontend(case, key))
        case AboutService(service):
            return tuple(_of_service(case, service))
        case AboutBalancer(guid):
            return tuple(_of_balancer(case, guid))
        case _:
            assert_never(question)


# -- endpoints -------------------------------------------------------------------------------------------------------


def _of_endpoint(case: Case, address: Address, service: ServiceKey | None) -> Iterator[Line]:
    keys = [service] if service is not None else _naming(case, address)
    if not keys:
        yield Line("sources", f"no EndpointSlice of any Service names {address}")
    for key in keys:
        yield from _of_endpoint_in(case, address, key)
    yield from _on_host(case, address)


def _naming(case: Case, address: Address) -> list[ServiceKey]:
    slices = case.pipeline.store.slices.values()
    found = (one.service_key for one in slices if any(each.address == address for each in one.endpoints))
    return sorted({key for key in found if key is not None})


def _of_endpoint_in(case: Case, address: Address, service: ServiceKey) -> Iterator[Line]:
    named = False
    for one in sorted(case.pipeline.store.slices_of(service), key=lambda piece: piece.name):
        for each in one.endpoints:
            if each.address == address:
                named = True
                flags = (
                    f"ready {_word(each.ready)}, serving {_word(each.serving)}, terminating {_word(each.terminating)}"
                )
                text = f"EndpointSlice {one.namespace}/{one.name}: {flags}, on node {each.node_name or '(none)'}"
                yield Line("sources", text)
    if not named:
        yield Line("sources", f"no EndpointSlice of {service} names {address}")
        return
    view = case.pipeline.view(service)
    if not view:
        yield Line("services", _unhandled(case, service))
    for port in view:
        if port.port.family is family_of(address):
            yield from _selected(port, address)
    for rule in case.pipeline.rules.rules_of(service):
        if rule.key.family is family_of(address):
            yield from _in_rule(case, rule, address)


def _word(flag: bool) -> str:
    return "yes" if flag else "no"


def _unhandled(case: Case, service: ServiceKey) -> str:
    if service not in case.pipeline.store.services:
        return f"no Service is called {service}"
    return f"{service} is not handled here: headless, ExternalName, or meant for another proxy"


def _selected(view: ServicePortView, address: Address) -> Iterator[Line]:
    selection = view.selection
    name = f"{view.port.name} ({view.port.family})"
    used = [word for word, chosen in _sets(selection) if any(one.address == address for one in chosen)]
    reasons = [reason.value for one, reason in selection.excluded if one.address == address]
    if used:
        yield Line("services", f"{name}: chosen for {' and '.join(used)}; {selection.topology.value}")
    for reason in reasons:
        yield Line("services", f"{name}: not used, {reason}")
    if not used and not reasons:
        sets = "; ".join(f"{word} has {_listed(chosen)}" for word, chosen in _sets(selection))
        yield Line("services", f"{name}: not among its endpoints; {sets or 'no policy uses any'}")
    if selection.cluster_fallback or selection.local_fallback:
        yield Line("services", f"{name}: no endpoint is ready, so those that still serve while they terminate are used")


def _sets(selection: Selection) -> Iterator[tuple[str, tuple[Endpoint, ...]]]:
    if selection.cluster is not None:
        yield "traffic policy Cluster", selection.cluster
    if selection.local is not None:
        yield "traffic policy Local", selection.local


def _listed(endpoints: Iterable[Endpoint]) -> str:
    return ", ".join(str(one) for one in endpoints) or "none"


def _in_rule(case: Case, rule: Rule, address: Address) -> Iterator[Line]:
    """What a frontend's rule, its load balancer and HNS make of the endpoint."""
    origins = [origin.value for origin in Origin if _leads_to(rule.action(origin), address)]
    name = f"{rule.kind.value} {rule.key}"
    if not origins:
        kinds = dict.fromkeys(f"{_action_word(rule.action(origin))}" for origin in Origin)
        yield Line("rules", f"{name}: leads nobody there; {'; '.join(kinds)}")
        return
    everybody = len(origins) == len(Origin)
    yield Line(
        "rules", f"{name}: leads there {'whoever asks' if everybody else 'if ' + ' or '.join(origins) + ' asks'}"
    )
    for shortfall in case.shortfalls:
        if shortfall.frontend == rule.key:
            yield Line("render", f"{name}: {shortfall.feature}: {shortfall.text}")
    situation = case.situation
    if situation is None:
        return
    desired = situation.wanted.balancers.get(rule.key)
    if desired is None or desired.key.role is not LbRole.SERVICE:
        yield Line("render", f"{name}: no load balancer is wanted")
    elif address not in desired.backends:
        yield Line("render", f"{name}: its load balancer is to have {', '.join(map(str, desired.backends))}")
    else:
        yield Line("plan", f"{name}: {_held_for(situation, rule.key, address)}")


def _leads_to(action: Action, address: Address) -> bool:
    return isinstance(action, Forward) and any(one.address == address for one in action.endpoints)


def _action_word(action: Action) -> str:
    match action:
        case Forward(endpoints, _, because):
            return f"forward to {_listed(endpoints)}, {because.value}"
        case Drop(because):
            return f"drop, {because.value}"
        case Reject(because):
            return f"reject, {because.value}"
        case _:
            assert_never(action)


def _held_for(situation: Situation, frontend: FrontendKey, address: Address) -> str:
    plan = plan_frontend(situation, frontend)
    guid = resolve(situation, address)
    balancer = situation.observed.balancers.get(plan.guid) if plan.guid else None
    if address in plan.waiting:
        return "waits for the CNI, which has not made the pod's HNS endpoint"
    if balancer is not None and guid is not None and guid in balancer.endpoints:
        state = _state(plan.why, plan.blocked)
        return f"load balancer {_short(balancer.guid)} has it, as HNS endpoint {_short(guid)}{state}"
    if plan.blocked:
        return f"blocked: {plan.blocked}"
    verb = plan.verb.value if plan.verb is not None else "nothing"
    return f"HNS does not have it yet; next step: {verb} ({plan.why or 'an endpoint is missing'})"


def _state(reason: str, blocked: str) -> str:
    if blocked:
        return f"; blocked: {blocked}"
    return f"; to be changed: {reason}" if reason else ""


def _on_host(case: Case, address: Address) -> Iterator[Line]:
    situation = case.situation
    if situation is None or situation.wanted.facts is None:
        return
    held = situation.observed.at_address(address)
    for endpoint in held:
        kind = "remote" if endpoint.remote else "local"
        provider = f", provider address {endpoint.provider_address}" if endpoint.provider_address else ""
        yield Line("host", f"HNS holds the {kind} endpoint {_short(endpoint.guid)} {endpoint.name}".rstrip() + provider)
    plan = plan_address(situation, address)
    if plan.verb is not None:
        yield Line("plan", f"endpoint {address}: {plan.verb.value}, {plan.why}")
    if plan.blocked:
        yield Line("plan", f"endpoint {address}: blocked, {plan.blocked}")
    if plan.surplus:
        yield Line("plan", f"endpoint {address}: {', '.join(map(_short, plan.surplus))} to be deleted, {plan.why}")
    if not held and plan.verb is None:
        yield Line("host", f"HNS holds no endpoint with {address}")


# -- frontends -------------------------------------------------------------------------------------------------------


def _of_service(case: Case, service: ServiceKey) -> Iterator[Line]:
    rules = case.pipeline.rules.rules_of(service)
    if not case.pipeline.view(service):
        yield Line("services", _unhandled(case, service))
    for view in case.pipeline.view(service):
        selection = view.selection
        sets = "; ".join(f"{word}: {_listed(chosen)}" for word, chosen in _sets(selection))
        yield Line(
            "services", f"{view.port.name} ({view.port.family}): {sets or 'no endpoints'}; {selection.topology.value}"
        )
        for endpoint, reason in selection.excluded:
            yield Line("services", f"{view.port.name} ({view.port.family}): {endpoint} not used, {reason.value}")
    for key in dict.fromkeys(rule.key for rule in rules):
        yield from _of_frontend(case, key)


def _of_frontend(case: Case, key: FrontendKey) -> Iterator[Line]:
    rule = case.pipeline.rules.get(key)
    if rule is None:
        yield Line("rules", f"{key}: {_nobodys(case, key)}")
    else:
        yield from _rule_lines(rule)
    for conflict in case.message.conflicts:
        if conflict.key == key:
            yield Line("rules", str(conflict))
    for shortfall in case.shortfalls:
        if shortfall.frontend == key or (
            rule is not None and shortfall.frontend is None and shortfall.owner == rule.owner
        ):
            needs = f" (needs {shortfall.needed}, found {shortfall.found})" if shortfall.needed else ""
            about = key if shortfall.frontend is not None else shortfall.owner
            yield Line("render", f"{about}: {shortfall.feature}: {shortfall.text}{needs}")
    if case.situation is not None:
        yield from _frontend_on_host(case.situation, key)


def _nobodys(case: Case, key: FrontendKey) -> str:
    """What `decide` says where no frontend is."""
    if key.address is None:
        return Because.NO_FRONTEND.value
    somebody = parse_address("::" if key.family is IPFamily.IPV6 else "0.0.0.0")
    packet = Packet(somebody, key.address, key.protocol, key.port)
    verdict = decide(case.pipeline.rules, case.pipeline.surroundings, packet)
    word = {Drop: "drop, ", Reject: "reject, "}.get(type(verdict), "")
    return word + verdict.because.value


def _rule_lines(rule: Rule) -> Iterator[Line]:
    name = f"{rule.kind.value} {rule.key} of {rule.owner}"
    actions = {origin.value: _action_word(rule.action(origin)) for origin in Origin}
    for text in dict.fromkeys(actions.values()):
        who = " or ".join(origin for origin, other in actions.items() if other == text)
        yield Line("rules", f"{name}: {text}" + (f" (if {who} asks)" if len(set(actions.values())) > 1 else ""))
    if rule.source_ranges is not None:
        ranges = ", ".join(str(prefix) for prefix in rule.source_ranges)
        yield Line("rules", f"{name}: only from {ranges}; others are dropped, {Because.SOURCE_RANGE.value}")


def _frontend_on_host(situation: Situation, key: FrontendKey) -> Iterator[Line]:
    plan = plan_frontend(situation, key)
    desired = situation.wanted.balancers.get(key)
    if desired is not None:
        backends = ", ".join(f"{one}{' (this node)' if one in desired.local else ''}" for one in desired.backends)
        flags = [
            flag.name.lower() for flags in (desired.lb_flags, desired.mapping_flags) for flag in flags if flag.name
        ]
        text = f"{key}: a load balancer to {backends}, port {desired.internal_port}, for {', '.join(desired.owners)}"
        yield Line("render", f"{text}; {', '.join(flags) or 'no flags'}")
    if plan.waiting:
        yield Line("plan", f"{key}: waits for the CNI: {', '.join(map(str, plan.waiting))}")
    if plan.blocked:
        yield Line("plan", f"{key}: blocked, {plan.blocked}")
    elif plan.verb is not None:
        yield Line("plan", f"{key}: {plan.verb.value}, {plan.why}")
    elif plan.guid is not None:
        yield Line("plan", f"{key}: load balancer {_short(plan.guid)} is as desired")


# -- load balancers --------------------------------------------------------------------------------------------------


def _of_balancer(case: Case, text: str) -> Iterator[Line]:
    situation = case.situation
    if situation is None:
        raise ConfigError(Fault("QUESTION", "no host is there to hold load balancers", "add --hns, or ask in a lab"))
    found = sorted(guid for guid in situation.observed.balancers if guid.startswith(text))
    if not found:
        yield Line("host", f"HNS holds no load balancer {text.lower()}")
    for guid in found:
        yield from _of_held(case, situation, situation.observed.balancers[guid])


_STANDINGS = {
    Standing.OURS: "hansa has made it",
    Standing.UNMARKED: "it has no mark: somebody else made it, and hansa takes it over where its place is wanted",
    Standing.FOREIGN: "it belongs to other software, and hansa leaves it alone",
}


def _of_held(case: Case, situation: Situation, balancer: HnsLoadBalancer) -> Iterator[Line]:
    claims = situation.observed.claims(balancer.guid)
    places = ", ".join(str(claim) for claim in claims) or "no frontend that can be read"
    owner = f", Owner {balancer.owner}" if balancer.owner else ""
    yield Line("host", f"load balancer {_short(balancer.guid)} serves {places}{owner}")
    yield Line("plan", f"{_short(balancer.guid)}: {_STANDINGS[situation.standing_of(balancer)]}")
    for claim in claims:
        desired = situation.wanted.balancers.get(claim)
        plan = plan_frontend(situation, claim)
        rule = case.pipeline.rules.get(claim)
        if desired is not None:
            yield Line("render", f"{claim}: wanted for {', '.join(desired.owners)} ({desired.key.role.value})")
            if rule is not None:
                yield from _rule_lines(rule)
        else:
            yield Line("rules", f"{claim}: {'leads to no endpoint' if rule is not None else _nobodys(case, claim)}")
        if balancer.guid in (plan.guid, *plan.surplus) and (plan.verb is not None or balancer.guid in plan.surplus):
            verb = "delete" if balancer.guid in plan.surplus or plan.verb is None else plan.verb.value
            yield Line("plan", f"{_short(balancer.guid)}: {verb}, {plan.why or 'a second one at its place'}")
        elif plan.guid == balancer.guid:
            yield Line("plan", f"{_short(balancer.guid)}: as desired")


def _short(guid: str) -> str:
    return guid[:8].lower()


# -- telling ---------------------------------------------------------------------------------------------------------


def why_lines(lines: Iterable[Line]) -> list[str]:
    """Aligned, the stage once."""
    told, previous = [], ""
    for stage, text in lines:
        told.append(f"{'' if stage == previous else stage:9} {text}")
        previous = stage
    return told


def why_data(lines: Iterable[Line]) -> list[dict[str, Any]]:
    return [{"stage": stage, "text": text} for stage, text in lines]
