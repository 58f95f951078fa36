"""A whole dataplane in one file: every frontend is a listening socket, and every connection is carried by hand.

docs/howto/write-a-dataplane.md builds this file step by step, and a test holds the page against it.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from hansa.dataplanes.base import Change, HostState, Outcome, Result, Shortfall, SyncReport, Verb
from hansa.net import Address, IPFamily, Packet, Protocol, address_port, family_of, parse_address
from hansa.rules.decide import origin_of
from hansa.rules.model import Because, Drop, Forward, FrontendKey, Reject, Rule, RuleChanges, Surroundings, Verdict
from hansa.services.model import Endpoint

RETRY_S = 5.0  # an address that is not on this machine yet may come with a network interface
UDP_IDLE_S = 60.0  # a UDP flow has no end of its own; kernels forget one after half a minute to three
CONNECT_S = 5.0
REMEMBERED = 10_000  # clients with session affinity, before those are forgotten whose time is over
CHUNK_BYTES = 65536


class Place(NamedTuple):
    """Where a socket listens."""

    address: Address
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"{address_port(self.address, self.port)}/{self.protocol}"


class Relay:
    """The host of this dataplane: sockets in an event loop with a thread of its own.

    verdict: asked for each new connection and flow. All methods but `run` and `close` belong to the loop.
    """

    def __init__(self, verdict: Callable[[Packet], Verdict], remembered: Callable[[Packet, Forward], Endpoint]) -> None:
        self._verdict = verdict
        self._remembered = remembered
        self._open: dict[Place, asyncio.Server | asyncio.DatagramTransport] = {}
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(started)), name="hansa-relay", daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    async def _live(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        """Until `end`; what is still being carried then is cut off."""
        self._ended = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        await self._ended.wait()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """From any thread: do this in the loop, and wait for it; raises what it raises."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self.run(self.end())
        self._thread.join()

    async def listen(self, place: Place) -> None:
        """Raises OSError."""
        where = (str(place.address), place.port)
        if place.protocol is Protocol.TCP:
            self._open[place] = await asyncio.start_server(lambda r, w: self._carry_tcp(place, r, w), *where)
        else:
            opened = await self._loop.create_datagram_endpoint(lambda: UdpFront(self, place), local_addr=where)
            self._open[place] = opened[0]

    async def leave(self, place: Place) -> None:
        """Nobody new comes in; connections that there are go on."""
        self._open.pop(place).close()

    async def end(self) -> None:
        for place in list(self._open):
            await self.leave(place)
        self._ended.set()

    def endpoint_for(self, place: Place, source: str) -> Endpoint | None:
        """To whom a new client goes; None = to nobody."""
        packet = Packet(parse_address(source), place.address, place.protocol, place.port)
        verdict = self._verdict(packet)
        return self._remembered(packet, verdict) if isinstance(verdict, Forward) else None

    async def _carry_tcp(self, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            endpoint = self.endpoint_for(place, writer.get_extra_info("peername")[0])
            if endpoint is None:
                return
            there = asyncio.open_connection(str(endpoint.address), endpoint.port)
            far_reader, far_writer = await asyncio.wait_for(there, CONNECT_S)
            try:
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                far_writer.close()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client sees the end of its connection, as it would of any that breaks
        finally:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()  # one side may have said its last while the other still speaks


class UdpFront(asyncio.DatagramProtocol):
    """One UDP frontend: a socket towards an endpoint for each client, for as long as something flows."""

    def __init__(self, relay: Relay, place: Place) -> None:
        self._relay = relay
        self._place = place
        self._flows: dict[Any, UdpBack] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, client: Any) -> None:
        flow = self._flows.get(client)
        if flow is None:
            endpoint = self._relay.endpoint_for(self._place, client[0])
            if endpoint is None:
                return
            flow = self._flows[client] = UdpBack(self.transport, client, lambda: self._flows.pop(client, None))
            flow.open(endpoint)
        flow.send(data)

    def connection_lost(self, _: Exception | None) -> None:
        for flow in list(self._flows.values()):
            flow.close()


class UdpBack(asyncio.DatagramProtocol):
    """The socket towards the endpoint of one flow."""

    def __init__(self, front: asyncio.DatagramTransport, client: Any, forget: Callable[[], object]) -> None:
        self._front, self._client, self._forget = front, client, forget
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._idle = self._loop.call_later(UDP_IDLE_S, self.close)

    def open(self, endpoint: Endpoint) -> None:
        self._opening = self._loop.create_task(self._connect(str(endpoint.address), endpoint.port))

    async def _connect(self, address: str, port: int) -> None:
        try:
            await self._loop.create_datagram_endpoint(lambda: self, remote_addr=(address, port))
        except OSError:
            self.close()  # there is no way there: what has been waiting is lost, as it would be on the wire

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        for data in self._waiting:
            transport.sendto(data)

    def send(self, data: bytes) -> None:
        self._idle.cancel()
        self._idle = self._loop.call_later(UDP_IDLE_S, self.close)
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.sendto(data)

    def datagram_received(self, data: bytes, _: Any) -> None:
        self._front.sendto(data, self._client)

    def error_received(self, _: Exception) -> None:
        self.close()  # nobody is there: the next datagram of this client may meet another endpoint

    def close(self) -> None:
        self._idle.cancel()
        self._forget()
        if self._transport is not None:
            self._transport.close()


class UserspaceDataplane:
    """Rules as listening sockets. The sockets are this process's, so they end with it."""

    name = "userspace"

    def __init__(self) -> None:
        self._desired: dict[FrontendKey, Rule] = {}
        self._surroundings: Surroundings | None = None
        self._served: dict[Place, Rule] = {}
        self._affinity: dict[tuple[Place, Address], tuple[Endpoint, float]] = {}
        self._relay = Relay(self.verdict, self._remembered)

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        del audit  # nobody but this process can close its sockets
        self._take_in(changes)
        wanted, results = self._wanted(), []
        pending: dict[FrontendKey, None] = {}
        for change, place in self._differences(wanted):
            error = ""
            try:
                self._apply(change.verb, place, wanted.get(place))
            except OSError as refusal:
                error = str(refusal)
                pending[wanted[place].key] = None
            results.append(Result(change, Outcome.FAILED if error else Outcome.DONE, error))
        names = {family: tuple(str(key) for key in pending if key.family is family) for family in IPFamily}
        return SyncReport(
            HostState.HEALTHY,
            results=tuple(results),
            shortfalls=tuple(self._shortfalls()),
            pending=tuple(name for family in IPFamily for name in names[family]),
            pending_by_family=names,
            retry_at=now + RETRY_S if pending else None,
            host_calls=sum(one.change.verb is not Verb.MODIFY for one in results),
        )

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:
        del now
        self._take_in(changes)
        return [change for change, _ in self._differences(self._wanted())]

    def close(self) -> None:
        self._relay.close()

    def _take_in(self, changes: RuleChanges) -> None:
        changes.apply_to(self._desired)
        self._surroundings = changes.surroundings

    def _wanted(self) -> dict[Place, Rule]:
        """A frontend at which everybody is refused gets no socket: then the kernel refuses, which is the real thing."""
        found = {}
        for key, rule in self._desired.items():
            if key.protocol in (Protocol.TCP, Protocol.UDP) and not all(
                isinstance(action, Reject) for action in (rule.pod, rule.node, rule.outside)
            ):
                found.update({Place(address, key.protocol, key.port): rule for address in self._addresses(key)})
        return found

    def _addresses(self, key: FrontendKey) -> Sequence[Address]:
        """A node port has those of this node's addresses that serve node ports."""
        if key.address is not None:
            return (key.address,)
        assert self._surroundings is not None
        accepted = self._surroundings.node_port_addresses.get(key.family)
        own = self._surroundings.node.addresses if accepted is None else accepted
        return sorted((one for one in own if family_of(one) is key.family), key=int)

    def _differences(self, wanted: dict[Place, Rule]) -> list[tuple[Change, Place]]:
        """Sockets that go make room for those that come; a place with another rule keeps its socket."""
        found = [(Verb.DELETE, place, "nobody asks for it") for place in self._served if place not in wanted]
        found += [(Verb.CREATE, place, "missing") for place in wanted if place not in self._served]
        found += [
            (Verb.MODIFY, place, "its rule differs")
            for place, rule in wanted.items()
            if place in self._served and self._served[place] != rule
        ]
        return [(Change(verb, "socket", str(place), why), place) for verb, place, why in found]

    def _apply(self, verb: Verb, place: Place, rule: Rule | None) -> None:
        """Raises OSError."""
        if verb is Verb.CREATE:
            self._relay.run(self._relay.listen(place))
        if rule is not None:
            self._served[place] = rule
        else:
            del self._served[place]
            self._relay.run(self._relay.leave(place))

    def _shortfalls(self) -> list[Shortfall]:
        """What sockets cannot do, said for each frontend that asks for it."""
        text = "endpoints see this node's address instead of their client's"
        found = [Shortfall("client-address", None, None, text)] if self._desired else []
        for key, rule in self._desired.items():
            if key.protocol is Protocol.SCTP:
                found.append(Shortfall("sctp", key, rule.owner, "SCTP cannot be relayed here"))
            elif key.protocol is Protocol.TCP and (rule.source_ranges is not None or isinstance(rule.outside, Drop)):
                text = "a TCP client that is to get no answer is accepted and cut off"
                found.append(Shortfall("drop", key, rule.owner, text))
        return found

    def verdict(self, packet: Packet) -> Verdict:
        """What happens to a new connection; where no socket is, the kernel refuses it."""
        rule = self._served.get(Place(packet.destination, packet.protocol, packet.port or 0))
        if rule is None or self._surroundings is None:
            return Reject(Because.NO_FRONTEND)
        if rule.source_ranges is not None and not any(packet.source in one for one in rule.source_ranges):
            return Drop(Because.SOURCE_RANGE)
        return rule.action(origin_of(self._surroundings, packet))

    def _remembered(self, packet: Packet, verdict: Forward) -> Endpoint:
        """One of the endpoints; with session affinity the one that this client had last, while it is among them."""
        place = Place(packet.destination, packet.protocol, packet.port or 0)
        timeout_s, now = self._served[place].affinity_timeout_s, asyncio.get_running_loop().time()
        chosen = random.choice(verdict.endpoints)
        if timeout_s is not None:
            last, until = self._affinity.get((place, packet.source), (chosen, 0.0))
            chosen = last if until > now and last in verdict.endpoints else chosen
            self._affinity[place, packet.source] = (chosen, now + timeout_s)
        if len(self._affinity) > REMEMBERED:
            self._affinity = {key: one for key, one in self._affinity.items() if one[1] > now}
        return chosen
