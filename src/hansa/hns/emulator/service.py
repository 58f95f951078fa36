"""Emulator: HnsApi in memory, with HNS's refusals, and the verbs that happen behind a client's back."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, assert_never

import msgspec

from hansa.hns.api import ZERO_GUID, Guid, Handle, HnsError, HnsKind, HnsVerb, HnsVersion, parse_guid
from hansa.hns.emulator import defaults, documents, refusals, snapshot
from hansa.hns.emulator.builds import WS2022, Build, Machine, Modify, Spelling
from hansa.hns.emulator.documents import PolicyRequest, PortRequest
from hansa.hns.emulator.faults import (
    Call,
    Clock,
    Delay,
    Effect,
    Fault,
    Faults,
    LeakReservation,
    LeavePartial,
    LoseReply,
    ManualClock,
    Refuse,
)
from hansa.hns.emulator.refusals import Refused, refuse
from hansa.hns.emulator.state import Listener, PortPool, State
from hansa.hns.record import RPC_SERVER_UNAVAILABLE
from hansa.hns.schema import (
    EndpointState,
    HnsEndpoint,
    HnsLoadBalancer,
    HnsNetwork,
    HnsObject,
    IpConfiguration,
    LbFlags,
    kind_of,
)
from hansa.net import Address, parse_address

T = TypeVar("T")

VERSION_CALL = "HNSCall"
_GUID_SPACE = uuid.UUID("8f3c6a8e-7d1b-5c0e-9a54-68616e736100")  # any fixed UUID: ids must be the same in every run


@dataclass(slots=True)
class _OpenHandle:
    """rule: why calls with it are refused, "" while its object lives."""

    kind: HnsKind
    guid: Guid
    rule: str = ""


class Emulator:
    """An HNS of one node. Not thread-safe: HNS's callers are serialised by hansa, and tests are single-threaded.

    calls: how often each DLL function was called. refusals: how often each rule of `refusals.RULES` struck.
    bad_closes: closes of handles that were not open (a crash on a real host). latency_s: seconds on the clock per call,
    by DLL function; "" is the default for all others.
    """

    def __init__(
        self,
        build: Build = WS2022,
        *,
        machine: Machine | None = None,
        clock: Clock | None = None,
        seed: int = 0,
        spelling: Spelling | None = None,
    ) -> None:
        self.build = build
        self.machine = machine or Machine()
        self.clock: Clock = clock or ManualClock()
        self.seed = seed
        self.spelling = spelling or Spelling()
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.bad_closes = 0
        self.latency_s: Mapping[str, float] = {}
        self._observers: list[Callable[[Call], None]] = []
        self._handles: dict[Handle, _OpenHandle] = {}
        self._last_handle = 0
        self._last_guid = 0
        self._lb_deletes = 0
        self._running = True
        self._state = self._empty_state()

    def _empty_state(self) -> State:
        first, count = self.machine.dynamic_ports
        addresses = tuple(parse_address(text) for text in self.machine.addresses)
        return State(PortPool(first, count, self.build.lb_block_ports), addresses)

    # --- HnsApi ---

    def version(self) -> HnsVersion:
        return self._call(Call(None, None, ""), VERSION_CALL, lambda: self.build.version)

    def enumerate(self, kind: HnsKind, query: str) -> str:
        call = Call(HnsVerb.ENUMERATE, kind, "", document=query)
        return self._call(call, HnsVerb.ENUMERATE.function(kind), lambda: self._enumerate(kind, query))

    def open(self, kind: HnsKind, guid: Guid) -> Handle:
        own = _normal(guid)
        call = Call(HnsVerb.OPEN, kind, own, self._state.get(kind, own))
        return self._call(call, HnsVerb.OPEN.function(kind), lambda: self._open(kind, own))

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        call = self._handle_call(HnsVerb.QUERY, kind, handle, query)
        return self._call(call, HnsVerb.QUERY.function(kind), lambda: self._query(kind, handle, query))

    def create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None = None) -> Handle:
        own = _normal(guid)
        watched = bool(self._observers or self.faults)
        call = Call(HnsVerb.CREATE, kind, own, _asked_for(kind, settings) if watched else None, settings)
        return self._call(call, HnsVerb.CREATE.function(kind), lambda: self._create(kind, own, settings, network))

    def modify(self, kind: HnsKind, handle: Handle, settings: str) -> None:
        call = self._handle_call(HnsVerb.MODIFY, kind, handle, settings)
        return self._call(call, HnsVerb.MODIFY.function(kind), lambda: self._modify(kind, handle, settings))

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        own = _normal(guid)
        call = Call(HnsVerb.DELETE, kind, own, self._state.get(kind, own))
        return self._call(call, HnsVerb.DELETE.function(kind), lambda: self._delete(kind, own))

    def close(self, kind: HnsKind, handle: Handle) -> None:
        self._count(HnsVerb.CLOSE.function(kind))
        opened = self._handles.get(handle)
        if opened is None or opened.kind is not kind:
            self.bad_closes += 1
        else:
            del self._handles[handle]

    # --- what tests and other tools look at ---

    @property
    def call_count(self) -> int:
        """All calls so far, closes included."""
        return self.calls.total()

    @property
    def open_handles(self) -> int:
        """Handles that no one has closed, dead ones included."""
        return len(self._handles)

    @property
    def running(self) -> bool:
        return self._running

    @property
    def host_addresses(self) -> tuple[Address, ...]:
        return self._state.host_addresses

    @property
    def free_port_blocks(self) -> int:
        return self._state.pool.free_blocks

    def networks(self) -> tuple[HnsNetwork, ...]:
        return tuple(self._state.networks.values())

    def endpoints(self) -> tuple[HnsEndpoint, ...]:
        return tuple(self._state.endpoints.values())

    def load_balancers(self) -> tuple[HnsLoadBalancer, ...]:
        return tuple(self._state.load_balancers.values())

    def get(self, kind: HnsKind, guid: Guid | str) -> HnsObject | None:
        return self._state.get(kind, guid)

    def port_block(self, load_balancer: Guid) -> int | None:
        """First of the dynamic ports that a load balancer without DSR holds; None if it holds none."""
        return self._state.blocks.get(load_balancer)

    def watch(self, observer: Callable[[Call], None]) -> None:
        """Have `observer` see every call before it is served, failing ones included; closes are not shown."""
        self._observers.append(observer)

    # --- what happens behind a client's back; nothing is validated here, it just happens ---

    def add(self, value: HnsObject) -> Guid:
        """Put an object there as somebody else would have made it; a zero GUID is replaced. Twins are possible."""
        placed = value if value.guid != ZERO_GUID else msgspec.structs.replace(value, guid=self._new_guid())
        self._state.put(placed)
        if isinstance(placed, HnsLoadBalancer):
            self._take_block(placed)
        return placed.guid

    def remove(self, kind: HnsKind, guid: Guid) -> None:
        """Delete without any check. Raises KeyError if it is not there."""
        self._unload(kind, guid)
        if self._state.drop(kind, guid) is None:
            raise KeyError(guid)

    def alter(self, kind: HnsKind, guid: Guid, **fields: object) -> None:
        """Change fields of an object (names of `hns.schema`). Raises KeyError if it is not there."""
        value = self._state.get(kind, guid)
        if value is None:
            raise KeyError(guid)
        self._state.put(msgspec.structs.replace(value, **fields))

    def add_pod(self, address: str, *, network: Guid | None = None, name: str = "", force: bool = False) -> Guid:
        """A CNI makes a local endpoint and a container takes it into use.

        network: None = the first one. name: "" = as CNI plugins name them. force: even where HNS would refuse, e.g.
        beside a remote endpoint of that address on a build without twins. Raises HnsError as HNS would.
        """
        on = self._state.networks[network] if network else next(iter(self._state.networks.values()))
        ip = parse_address(address)
        pod = HnsEndpoint(
            guid=self._new_guid(), name=name or f"pod-{ip}_eth0", ip_configurations=(IpConfiguration(ip),)
        )
        try:
            if force:
                self._state.put(defaults.endpoint(pod, on, self._state))
            else:
                self._create_endpoint(pod, on)
        except Refused as refused:
            raise self._refusal(HnsVerb.CREATE.function(HnsKind.ENDPOINT), refused) from None
        self.attach(pod.guid)
        return pod.guid

    def recreate_network(self, guid: Guid) -> Guid:
        """What a CNI does after trouble: the network comes back with a new id, its endpoints do not come back."""
        old = self._state.networks[guid]
        for endpoint in self._state.endpoints_of(guid):
            self.remove(HnsKind.ENDPOINT, endpoint)
        self.remove(HnsKind.NETWORK, guid)
        return self.add(msgspec.structs.replace(old, guid=ZERO_GUID))

    def attach(self, guid: Guid, namespace: Guid | None = None) -> None:
        """A container takes the endpoint into use. Raises HnsError as HNS would."""
        try:
            endpoint = self._state.endpoints.get(guid)
            if endpoint is None:
                refuse("EV-26")
            self._attach(endpoint, namespace)
        except Refused as refused:
            raise self._refusal("HcnModifyNamespace", refused) from None

    def break_port(self, guid: Guid) -> None:
        """The endpoint's switch port vanishes (EV-16)."""
        self._state.broken_ports.add(guid)

    def listen(self, protocol: int, port: int, address: Address | None = None) -> None:
        """A process of the host listens; address None = on all."""
        self._state.listeners.add(Listener(protocol, port, address))

    def unlisten(self, protocol: int, port: int, address: Address | None = None) -> None:
        self._state.listeners.discard(Listener(protocol, port, address))

    def exclude_ports(self, first: int, count: int) -> None:
        """Other users of the host take these dynamic ports."""
        self._state.pool.exclude(first, count)

    def forget_leaks(self) -> None:
        """Reservations that outlived their load balancers are released, as a restart of the host does."""
        self._state.leaked.clear()

    def stop(self) -> None:
        """HNS goes away: every call fails without a text until `start()`; handles are dead for good."""
        self._running = False
        for opened in self._handles.values():
            opened.rule = "HX-02"

    def start(self) -> None:
        self._running = True

    def restart(
        self, purge: bool | Callable[[HnsObject], bool] = False, *, unavailable_calls: int = 0
    ) -> tuple[HnsObject, ...]:
        """HNS restarts: handles die; what `purge` selects is not loaded again and is returned, for `restore()`.

        purge True: every load balancer and remote endpoint, i.e. what a proxy has made; False: HNS has kept all.
        unavailable_calls: so many calls still fail as if HNS were down.
        """
        self.stop()
        lost = tuple(value for value in self._state.everything() if _purged(value, purge))
        for value in lost:
            self._state.drop(kind_of(value), value.guid)
        self._state.leaked.clear()
        if unavailable_calls:
            self.faults.add(Fault(effect=Refuse(), times=unavailable_calls))
        self.start()
        return lost

    def restore(self, objects: tuple[HnsObject, ...]) -> None:
        """HNS loads objects from its store after all, with their old ids."""
        for value in objects:
            self._state.put(value)
            if isinstance(value, HnsLoadBalancer):
                self._take_block(value)  # if none is left, it comes back without

    # --- the frame of every call ---

    def _call(self, call: Call, function: str, action: Callable[[], T]) -> T:
        self._count(function)
        for observer in self._observers:
            observer(call)
        if not self._running:
            raise HnsError(function, RPC_SERVER_UNAVAILABLE)
        effects = self.faults.take(call, self.clock.now()) if self.faults else ()
        lost: LoseReply | None = None
        for effect in effects:
            lost = self._before(call, function, effect) or lost
        try:
            result = action()
        except Refused as refused:
            raise self._refusal(function, refused) from None
        if lost is not None:
            self._forget_reply(call, result)
            raise HnsError(function, lost.hresult)
        return result

    def _refusal(self, function: str, refused: Refused) -> HnsError:
        self.refusals[refused.rule] += 1
        return HnsError(function, refused.hresult, refused.text)

    def _count(self, function: str) -> None:
        self.calls[function] += 1
        latency = self.latency_s.get(function, self.latency_s.get("", 0.0))
        if latency:
            self.clock.advance(latency)

    def _before(self, call: Call, function: str, effect: Effect) -> LoseReply | None:
        """What a fault does before the call is served; a lost reply is returned for afterwards."""
        match effect:
            case Refuse():
                raise HnsError(function, effect.hresult, effect.text)
            case Delay():
                self.clock.advance(effect.seconds)
            case LeavePartial():
                if isinstance(call.value, HnsLoadBalancer):
                    self.add(msgspec.structs.replace(call.value, guid=ZERO_GUID, port_mappings=()))
                raise HnsError(function, effect.hresult, refusals.system_text(effect.hresult))
            case LeakReservation():
                if isinstance(call.value, HnsLoadBalancer):
                    self._state.leaked.update(self._state.frontends(call.value))
            case LoseReply():
                return effect
            case _:
                assert_never(effect)
        return None

    def _forget_reply(self, call: Call, result: object) -> None:
        """The caller never gets the handle, so HNS closes it with the broken connection."""
        if call.verb in (HnsVerb.OPEN, HnsVerb.CREATE) and isinstance(result, int):
            self._handles.pop(Handle(result), None)

    # --- the verbs ---

    def _enumerate(self, kind: HnsKind, query: str) -> str:
        conditions = documents.read_filter(query)
        found = [
            documents.spell_guid(self.spelling, kind, guid)
            for guid, value in self._state.of_kind(kind).items()
            if documents.matches(value, conditions, self._state.networks)
        ]
        return msgspec.json.encode(found).decode()

    def _open(self, kind: HnsKind, guid: Guid) -> Handle:
        if self._state.get(kind, guid) is None:
            refuse("EV-02")
        return self._new_handle(kind, guid)

    def _query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        documents.check_query(query)
        value = self._opened(kind, handle)
        if isinstance(value, HnsNetwork) and not self._management_ip_is_known(value.guid):
            value = defaults.without_management_ip(value)
        return documents.write(value, self.build, self.spelling)

    def _management_ip_is_known(self, network: Guid) -> bool:
        created_at = self._state.created_at.get(network)
        return created_at is None or self.clock.now() >= created_at + self.machine.management_ip_after_s

    def _create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None) -> Handle:
        parent = self._parent(kind, network)
        asked = documents.read_object(kind, settings)
        wanted = guid if guid != ZERO_GUID else asked.guid
        refusals.check_caller_guid(wanted, self._state, kind)
        own = wanted if wanted != ZERO_GUID and self.build.keeps_caller_guid else self._new_guid()
        match msgspec.structs.replace(asked, guid=own):
            case HnsNetwork() as value:
                self._create_network(value)
            case HnsEndpoint() as value:
                assert parent is not None
                self._create_endpoint(value, parent)
            case HnsLoadBalancer() as value:
                self._create_load_balancer(value)
        return self._new_handle(kind, own)

    def _parent(self, kind: HnsKind, handle: Handle | None) -> HnsNetwork | None:
        if (kind is HnsKind.ENDPOINT) != (handle is not None):
            refuse("HX-18")
        if handle is None:
            return None
        network = self._opened(HnsKind.NETWORK, handle)
        assert isinstance(network, HnsNetwork)
        return network

    def _create_network(self, network: HnsNetwork) -> None:
        refusals.check_network(network, self._state, self.machine.adapters)
        self._state.put(defaults.network(network, self.machine, self._new_guid))
        self._state.created_at[network.guid] = self.clock.now()

    def _create_endpoint(self, endpoint: HnsEndpoint, network: HnsNetwork) -> None:
        filled = defaults.endpoint(endpoint, network, self._state)
        refusals.check_endpoint(filled, network, self._state, self.build)
        self._state.put(filled)

    def _create_load_balancer(self, balancer: HnsLoadBalancer) -> None:
        refusals.check_load_balancer(balancer, self._state, self.build)
        if not self._take_block(balancer):
            refuse("EV-15", hresult=self.build.pool_exhausted)
        self._state.put(defaults.load_balancer(balancer, self._state, self.build))

    def _take_block(self, balancer: HnsLoadBalancer) -> bool:
        """Reserve the ports that it needs; False if there are none."""
        if balancer.flags & LbFlags.DSR or not self.build.lb_block_ports:
            return True
        start = self._state.pool.take()
        if start is not None:
            self._state.blocks[balancer.guid] = start
        return start is not None

    def _modify(self, kind: HnsKind, handle: Handle, settings: str) -> None:
        value = self._opened(kind, handle, modifying=True)
        refusals.check_degraded(value)
        match value:
            case HnsNetwork():
                self._modify_network(value, settings)
            case HnsEndpoint():
                self._modify_endpoint(value, settings)
            case HnsLoadBalancer():
                self._modify_load_balancer(value, settings)

    def _modify_network(self, network: HnsNetwork, settings: str) -> None:
        match documents.read_modify_request(settings):
            case PolicyRequest() as request:
                policies = defaults.policies_after(network.policies, request)
                self._state.put(msgspec.structs.replace(network, policies=policies))
            case _:
                refuse("HX-16")

    def _modify_endpoint(self, endpoint: HnsEndpoint, settings: str) -> None:
        match documents.read_modify_request(settings):
            case PolicyRequest() as request:
                changed = msgspec.structs.replace(
                    endpoint, policies=defaults.policies_after(endpoint.policies, request)
                )
                refusals.check_endpoint_policies(changed, self._state, self.build)
                self._state.put(changed)
            case PortRequest(attach=True):
                self._attach(endpoint, None)
            case PortRequest(attach=False):
                self._state.put(msgspec.structs.replace(endpoint, state=EndpointState.DETACHED, namespace=None))
            case _:
                refuse("HX-16")

    def _attach(self, endpoint: HnsEndpoint, namespace: Guid | None) -> None:
        refusals.check_attach(endpoint)
        state = EndpointState.ATTACHED_SHARING
        self._state.put(msgspec.structs.replace(endpoint, state=state, namespace=namespace or self._new_guid()))

    def _modify_load_balancer(self, old: HnsLoadBalancer, settings: str) -> None:
        if self.build.modify is Modify.UNSUPPORTED:
            refuse("EV-21")
        asked = documents.read_object(HnsKind.LOAD_BALANCER, settings)
        assert isinstance(asked, HnsLoadBalancer)
        new = msgspec.structs.replace(asked, guid=old.guid, network=old.network, owner=asked.owner or old.owner)
        refusals.check_load_balancer(new, self._state, self.build)
        refusals.check_lb_modification(old, new, self.build)
        if self.build.modify is Modify.WORKS:
            self._state.put(msgspec.structs.replace(new, state=old.state))

    def _delete(self, kind: HnsKind, guid: Guid) -> None:
        value = self._state.get(kind, guid)
        if value is None:
            refuse("EV-02")
        refusals.check_degraded(value)
        match kind:
            case HnsKind.NETWORK:
                refusals.check_network_delete(guid, self._state, self.build)
                for endpoint in self._state.endpoints_of(guid):
                    self.remove(HnsKind.ENDPOINT, endpoint)
            case HnsKind.ENDPOINT:
                refusals.check_endpoint_delete(guid, self._state, self.build)
            case HnsKind.LOAD_BALANCER:
                self._check_lb_delete()
        self.remove(kind, guid)

    def _check_lb_delete(self) -> None:
        if self.build.lb_delete_says_invalid_ip:
            refuse("EV-24")
        self._lb_deletes += 1
        if self.build.lb_delete_fails_every and self._lb_deletes % self.build.lb_delete_fails_every == 0:
            refuse("EV-23")

    # --- handles and ids ---

    def _handle_call(self, verb: HnsVerb, kind: HnsKind, handle: Handle, document: str) -> Call:
        opened = self._handles.get(handle)
        guid: Guid | str = opened.guid if opened is not None and opened.kind is kind else ""
        return Call(verb, kind, guid, self._state.get(kind, guid) if guid else None, document)

    def _opened(self, kind: HnsKind, handle: Handle, *, modifying: bool = False) -> HnsObject:
        """The object behind a handle."""
        opened = self._handles.get(handle)
        if opened is None or opened.kind is not kind:
            refuse("HX-03")
        if opened.rule:
            # A modify of an endpoint that has gone says so in its own words (EV-26).
            gone = opened.rule == "HX-01" and modifying and kind is HnsKind.ENDPOINT
            refuse("EV-26" if gone else opened.rule)
        value = self._state.get(kind, opened.guid)
        assert value is not None, "a handle of an object that left without _unload()"
        return value

    def _unload(self, kind: HnsKind, guid: Guid) -> None:
        for opened in self._handles.values():
            if opened.kind is kind and opened.guid == guid:
                opened.rule = opened.rule or "HX-01"

    def _new_handle(self, kind: HnsKind, guid: Guid) -> Handle:
        self._last_handle += 1
        handle = Handle(self._last_handle)
        self._handles[handle] = _OpenHandle(kind, guid)
        return handle

    def _new_guid(self) -> Guid:
        self._last_guid += 1
        return Guid(str(uuid.uuid5(_GUID_SPACE, f"{self.seed}/{self._last_guid}")).upper())

    # --- keeping a node in a file ---

    def dump(self) -> str:
        """The whole state as JSON: objects, ports, build, counters. Handles, faults and call counts are not part."""
        settings = snapshot.Settings(
            build=self.build,
            machine=self.machine,
            spelling=self.spelling,
            seed=self.seed,
            last_guid=self._last_guid,
            lb_deletes=self._lb_deletes,
            now=self.clock.now(),
        )
        return snapshot.write(self._state, settings)

    @classmethod
    def load(cls, text: str, *, clock: Clock | None = None) -> Emulator:
        """A node as `dump()` has written it, as after a restart of HNS that kept everything. Raises ConfigError.

        clock: None = one that goes on where the dumped one stood.
        """
        kept = snapshot.read(text)
        settings = kept.settings
        emulator = cls(
            settings.build,
            machine=settings.machine,
            clock=clock or ManualClock(settings.now),
            seed=settings.seed,
            spelling=settings.spelling,
        )
        emulator._last_guid = settings.last_guid
        emulator._lb_deletes = settings.lb_deletes
        snapshot.fill(emulator._state, kept)
        return emulator


def _normal(guid: Guid) -> Guid:
    """As the binding to the DLL does: any spelling is one GUID; what is none cannot be passed to HNS at all."""
    try:
        return parse_guid(guid)
    except ValueError as error:
        raise HnsError("GUID", refusals.RULES["HX-18"].hresult, str(error)) from None


def _asked_for(kind: HnsKind, settings: str) -> HnsObject | None:
    try:
        return documents.read_object(kind, settings)
    except Refused:
        return None


def _purged(value: HnsObject, purge: bool | Callable[[HnsObject], bool]) -> bool:
    if not isinstance(purge, bool):
        return purge(value)
    return purge and (isinstance(value, HnsLoadBalancer) or (isinstance(value, HnsEndpoint) and value.remote))
