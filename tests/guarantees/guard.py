"""Guard: an HnsApi in front of the emulator that checks windows-proxy H.9 at every single call.

It decides by what the host holds, by what the API asks for and by hansa's own snapshot, never by hansa's planner.
I1, I2, I3, I4, I6, I7, I8 and I18 are judged on each write before HNS serves it; I2, I5, I12 and I17 by what each call
has left behind. A breach is a sentence that begins with the invariant's number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from hansa.dataplanes.base import HostState, SyncReport
from hansa.dataplanes.windows.compare import Situation
from hansa.dataplanes.windows.objects import DesiredLoadBalancer
from hansa.dataplanes.windows.observe import claims_of
from hansa.dataplanes.windows.render import render
from hansa.hns.api import Guid, Handle, HnsError, HnsKind, HnsVerb, HnsVersion
from hansa.hns.emulator import Call, Modify
from hansa.hns.errors import ErrorClass, classify
from hansa.hns.schema import (
    LB_STATE_DEGRADED,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsObject,
    LbFlags,
    MalformedHnsObject,
    decode_load_balancer,
)
from hansa.net import Address, IPFamily, family_of
from hansa.rules.model import FrontendKey

if TYPE_CHECKING:
    from tests.guarantees.node import GuardedNode

T = TypeVar("T")
WRITES = frozenset({HnsVerb.CREATE, HnsVerb.MODIFY, HnsVerb.DELETE})
MOST_OPEN_HANDLES = 2  # the object's and its network's


@dataclass
class _Gap:
    """A desired frontend has lost its load balancer to a delete of ours. at_once: no other call has come since."""

    frontend: FrontendKey
    old: HnsLoadBalancer
    modify_would_do: bool
    at_once: bool = True


@dataclass
class _Parting:
    """A load balancer that was as desired gave up these endpoints; right only if they are being replaced.

    If a call fails on the way, the others get them back, and nothing has been replaced.
    """

    frontend: FrontendKey
    endpoints: frozenset[Guid]


@dataclass
class Guard:
    """`breaches` collects; `calls` counts all calls, closes included.

    renewing: frontends whose load balancer somebody has asked to be made anew although it is as desired (F10).
    """

    node: GuardedNode
    breaches: list[str] = field(default_factory=list)
    calls: int = 0
    protected: dict[Guid, HnsObject] = field(default_factory=dict)
    after_call: list[Callable[[], None]] = field(default_factory=list)
    renewing: set[FrontendKey] = field(default_factory=set)
    _call: Call | None = None
    _down: bool = False
    _known: frozenset[Guid] = frozenset()
    _gaps: dict[FrontendKey, _Gap] = field(default_factory=dict)
    _partings: list[_Parting] = field(default_factory=list)
    _deleted: set[Guid | str] = field(default_factory=set)
    _failed: set[FrontendKey] = field(default_factory=set)
    _desired: Mapping[FrontendKey, DesiredLoadBalancer] | None = None

    def __post_init__(self) -> None:
        self.node.emulator.watch(self._before)

    def protect(self, guid: Guid) -> None:
        """From now on this object is another program's and has to stay exactly as it is."""
        for kind in (HnsKind.LOAD_BALANCER, HnsKind.ENDPOINT):
            value = self.node.emulator.get(kind, guid)
            if value is not None:
                self.protected[guid] = value

    def release(self, guid: Guid) -> None:
        """Its owner is about to change or delete it."""
        self.protected.pop(guid, None)

    # --- HnsApi ---

    def version(self) -> HnsVersion:
        return self._serve(self.node.emulator.version)

    def enumerate(self, kind: HnsKind, query: str) -> str:
        return self._serve(lambda: self.node.emulator.enumerate(kind, query))

    def open(self, kind: HnsKind, guid: Guid) -> Handle:
        return self._serve(lambda: self.node.emulator.open(kind, guid))

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        return self._serve(lambda: self.node.emulator.query(kind, handle, query))

    def create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None = None) -> Handle:
        return self._serve(lambda: self.node.emulator.create(kind, guid, settings, network))

    def modify(self, kind: HnsKind, handle: Handle, settings: str) -> None:
        self._serve(lambda: self.node.emulator.modify(kind, handle, settings))

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        self._serve(lambda: self.node.emulator.delete(kind, guid))

    def close(self, kind: HnsKind, handle: Handle) -> None:
        self.calls += 1
        self.node.emulator.close(kind, handle)
        if self.node.emulator.bad_closes:
            self.breach("I17", f"closes a handle of {kind} that is not open")

    def _serve(self, action: Callable[[], T]) -> T:
        self.calls += 1
        try:
            result = action()
        except HnsError as error:
            self._after(error)
            raise
        self._after(None)
        return result

    # --- passes ---

    def new_process(self) -> None:
        """What comes now remembers nothing, and has not been told that HNS is away."""
        self._down, self._known = False, frozenset()

    def begin_pass(self) -> None:
        self._desired = None
        self._gaps.clear()
        self._partings.clear()
        self._deleted.clear()
        self._failed.clear()

    def end_pass(self, report: SyncReport) -> None:
        if self.node.emulator.open_handles:
            self.breach("I17", f"{self.node.emulator.open_handles} handles are open after a pass")
        for gap in self._gaps.values():
            if gap.frontend not in self._failed and not self._down and self._still_wanted(gap):
                self.breach("I5", f"the pass ends without the load balancer of {gap.frontend}, and nothing had failed")
        for parting in self._partings:
            vanished = {guid for guid in parting.endpoints if self.node.emulator.get(HnsKind.ENDPOINT, guid) is None}
            if not parting.endpoints & self._deleted and not vanished and not self._failed and not self._down:
                self.breach("I6", f"writes {parting.frontend}, which was as desired")
        if report.state is HostState.UNAVAILABLE and not self._known <= self._remembered():
            self.breach("I12", "forgets objects while HNS does not answer")

    def breach(self, invariant: str, text: str) -> None:
        self.breaches.append(f"{invariant}: {text}")

    # --- before a call ---

    def _before(self, call: Call) -> None:
        self._call = call
        if call.verb not in WRITES:
            return
        if self._down:
            self.breach("I12", f"{call.verb} of a {call.kind} although HNS has just not answered")
        if call.guid in self.protected:
            self.breach("I2", f"{call.verb} of another program's {call.kind}")
        match call.kind:
            case HnsKind.NETWORK:
                self.breach("I2", f"{call.verb} of a network")
            case HnsKind.ENDPOINT:
                self._endpoint_write(call)
            case HnsKind.LOAD_BALANCER if call.verb is HnsVerb.DELETE:
                self._balancer_delete(call)
            case HnsKind.LOAD_BALANCER:
                self._balancer_document(call)
            case _:
                pass

    def _endpoint_write(self, call: Call) -> None:
        value = call.value
        if call.verb is HnsVerb.MODIFY:
            self.breach("I1", "modifies an endpoint")
        if call.verb is HnsVerb.DELETE:
            users = self._situation.observed.references(Guid(call.guid))
            if users:
                self.breach("I4", f"deletes endpoint {call.guid}, which {sorted(users)} use")
            self._deleted.add(call.guid)
        if isinstance(value, HnsEndpoint) and not value.remote:
            own = call.verb is HnsVerb.CREATE and set(value.addresses) <= set(self.node.config.windows.source_vip)
            if not own:
                self.breach("I1", f"{call.verb} of local endpoint {value.addresses}")

    def _balancer_document(self, call: Call) -> None:
        asked = call.value
        if call.verb is HnsVerb.MODIFY:
            asked = decode_load_balancer(call.document)
        if not isinstance(asked, HnsLoadBalancer):
            self.breach("I7", f"a document that cannot be read: {call.document}")
            return
        self._check_content(asked)
        claims = claims_of(asked)
        if len(claims) != 1:
            self.breach("I8", f"one load balancer for {claims}")
            return
        frontend = claims[0]
        observed = self._situation.observed
        if call.verb is HnsVerb.CREATE and observed.at_frontend(frontend):
            self.breach("I8", f"asks for a second load balancer at {frontend}")
        self._check_port(frontend, asked)
        old = observed.balancers.get(Guid(call.guid))
        if call.verb is HnsVerb.MODIFY and old is not None and self._as_desired(old):
            self._partings.append(_Parting(frontend, frozenset(old.endpoints) - frozenset(asked.endpoints)))

    def _check_content(self, asked: HnsLoadBalancer) -> None:
        observed = self._situation.observed
        absent = [guid for guid in asked.endpoints if guid not in observed.endpoints]
        if absent:
            self.breach("I3", f"names endpoints that were not seen: {absent}")
        if not asked.endpoints or len(set(asked.endpoints)) < len(asked.endpoints):
            self.breach("I7", f"endpoints {asked.endpoints}")
        if asked.source_vip is None:
            self.breach("I7", "empty source VIP")
        family = IPFamily.IPV6 if asked.flags & LbFlags.IPV6 else IPFamily.IPV4
        behind = [observed.endpoints[guid].addresses for guid in asked.endpoints if guid in observed.endpoints]
        own = [*asked.frontend_vips, *((asked.source_vip,) if asked.source_vip else ())]
        if any(family_of(address) is not family for address in own) or any(
            all(family_of(address) is not family for address in addresses) for addresses in behind
        ):
            self.breach("I18", f"{family} load balancer with {own} and {behind}")

    def _check_port(self, frontend: FrontendKey, asked: HnsLoadBalancer) -> None:
        rule = self.node.rules.get(frontend)
        port = asked.port_mappings[0].internal_port
        if rule is None:  # a health check, which goes to the port that was asked for
            if port != frontend.port:
                self.breach("I7", f"{frontend} leads to port {port}")
            return
        serving = {each.address for each in rule.endpoints if each.port == port}
        for guid in asked.endpoints:
            endpoint = self._situation.observed.endpoints.get(guid)
            if endpoint is not None and serving.isdisjoint(endpoint.addresses):
                self.breach("I7", f"{frontend}: {endpoint.addresses} does not serve port {port}")

    def _balancer_delete(self, call: Call) -> None:
        observed = self._situation.observed
        old = observed.balancers.get(Guid(call.guid))
        if old is None or len(observed.claims(old.guid)) != 1:
            return
        frontend = observed.claims(old.guid)[0]
        if len(observed.at_frontend(frontend)) == 1 and self._as_desired(old) and frontend not in self.renewing:
            self._partings.append(_Parting(frontend, frozenset(old.endpoints)))

    # --- after a call ---

    def _after(self, error: HnsError | None) -> None:
        call, self._call = self._call, None
        if self.node.emulator.open_handles > MOST_OPEN_HANDLES:
            self.breach("I17", f"{self.node.emulator.open_handles} handles are open at once")
        if call is not None:
            self._follow_gaps(call, error)
        if error is not None and classify(error) is ErrorClass.UNAVAILABLE:
            if not self._down:
                self._down, self._known = True, self._remembered()
        elif self._down:
            self._down, self._known = False, frozenset()
        if call is not None and call.verb in WRITES:
            for guid, value in self.protected.items():
                if self.node.emulator.get(_kind(value), guid) != value:
                    self.breach("I2", f"another program's object {guid} is not what it was")
        for action in self.after_call:
            action()

    def _follow_gaps(self, call: Call, error: HnsError | None) -> None:
        frontend = _frontend_of(call)
        if call.kind is HnsKind.LOAD_BALANCER and error is not None and frontend is not None:
            self._failed.add(frontend)
        for gap in list(self._gaps.values()):
            if call.verb is HnsVerb.CREATE and frontend == gap.frontend:
                del self._gaps[gap.frontend]
                asked = gap.frontend in self.renewing
                if not asked and gap.at_once and gap.modify_would_do and _settings(call.value) == _settings(gap.old):
                    self.breach("I5", f"replaces {gap.frontend}, where Modify would do")
                if error is None and not gap.at_once and not frozenset(gap.old.endpoints) & self._deleted:
                    self.breach("I5", f"calls come between the delete and the create of {gap.frontend}")
            else:
                gap.at_once = False
        old = call.value
        if call.verb is HnsVerb.DELETE and error is None and isinstance(old, HnsLoadBalancer) and frontend is not None:
            gap = _Gap(frontend, old, self._modify_would_do(old))
            if self._still_wanted(gap) and not self._on_host(frontend):
                self._gaps[frontend] = gap

    def _modify_would_do(self, old: HnsLoadBalancer) -> bool:
        """HNS can, hansa has not learned otherwise, and what is to be changed could be read."""
        situation = self._situation
        works = self.node.emulator.build.modify is Modify.WORKS
        return works and situation.modify and old.guid in situation.observed.balancers

    def _still_wanted(self, gap: _Gap) -> bool:
        return bool(self._present_backends(gap.frontend))

    def _on_host(self, frontend: FrontendKey) -> bool:
        return any(frontend in claims_of(each) for each in self.node.emulator.load_balancers())

    # --- what is desired, and what there is ---

    @property
    def _situation(self) -> Situation:
        return self.node.dataplane.situation

    def _remembered(self) -> frozenset[Guid]:
        observed = self._situation.observed
        return frozenset((*observed.balancers, *observed.endpoints))

    def desired(self) -> Mapping[FrontendKey, DesiredLoadBalancer]:
        """Rendered from the rules of this pass, apart from what the dataplane keeps."""
        facts = self._situation.wanted.facts
        if facts is None:
            return {}
        if self._desired is None:
            found = render(self.node.rules.values(), facts, self.node.config)
            self._desired = {one.key.frontend: one for one in found.load_balancers}
        return self._desired

    def _present_backends(self, frontend: FrontendKey) -> frozenset[Address]:
        """Backends that have an endpoint in hansa's snapshot and may be used there."""
        desired = self.desired().get(frontend)
        if desired is None:
            return frozenset()
        found = set()
        for address in desired.backends:
            at = self._situation.observed.at_address(address)
            waits = self._situation.wanted.waits_for_local(address)
            if any(not each.remote for each in at) or (at and not waits):
                found.add(address)
        return frozenset(found)

    def _as_desired(self, balancer: HnsLoadBalancer) -> bool:
        """Whether the snapshot of a load balancer says exactly what the rules ask for."""
        observed = self._situation.observed
        claims = observed.claims(balancer.guid)
        desired = self.desired().get(claims[0]) if len(claims) == 1 else None
        if desired is None or balancer.state == LB_STATE_DEGRADED:
            return False
        mapping = balancer.port_mappings[0]
        if (mapping.internal_port, mapping.distribution, mapping.flags, balancer.flags, balancer.source_vip) != (
            desired.internal_port,
            desired.distribution,
            desired.mapping_flags,
            desired.lb_flags,
            desired.source_vip,
        ):
            return False
        if len(set(balancer.endpoints)) < len(balancer.endpoints):
            return False
        if any(guid not in observed.endpoints for guid in balancer.endpoints):
            return False
        behind = [observed.endpoints[guid] for guid in balancer.endpoints]
        addresses = {address for each in behind for address in each.addresses if address in desired.backends}
        strangers = [each for each in behind if not set(each.addresses) & set(desired.backends)]
        twins = [
            each
            for each in behind
            if each.remote
            and any(
                len(observed.at_address(address)) > 1 or self._situation.wanted.waits_for_local(address)
                for address in each.addresses
            )
        ]
        return not strangers and not twins and addresses == self._present_backends(desired.key.frontend)


def _kind(value: HnsObject) -> HnsKind:
    return HnsKind.LOAD_BALANCER if isinstance(value, HnsLoadBalancer) else HnsKind.ENDPOINT


def _frontend_of(call: Call) -> FrontendKey | None:
    value = call.value
    if call.verb is HnsVerb.MODIFY and call.kind is HnsKind.LOAD_BALANCER:
        try:
            value = decode_load_balancer(call.document)
        except MalformedHnsObject:
            return None
    if not isinstance(value, HnsLoadBalancer):
        return None
    claims = claims_of(value)
    return claims[0] if len(claims) == 1 else None


def _settings(balancer: HnsObject | None) -> tuple[object, ...]:
    """Everything but the endpoints and what HNS decides."""
    assert isinstance(balancer, HnsLoadBalancer)
    return balancer.source_vip, balancer.frontend_vips, balancer.port_mappings, balancer.flags
