"""Every dataplane passes `check_dataplane`, and one that breaks its promises does not."""

from __future__ import annotations

import asyncio
import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from tests.dictionary_dataplane import DictionaryDataplane, DictionaryHost

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind
from hansa.dataplanes.base import Change, SyncReport
from hansa.dataplanes.nftables.apply import NftablesDataplane
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.dataplanes.userspace import UserspaceDataplane, open_dataplane
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.hns.client import HnsClient
from hansa.hns.emulator import FUTURE, l2bridge_node
from hansa.net import IPFamily, Packet, parse_address
from hansa.pipeline import Pipeline
from hansa.rules.decide import decide
from hansa.rules.model import Forward, Rule, RuleChanges, Verdict
from hansa.testing import (
    DataplaneCheckFailed,
    check_dataplane,
    config,
    endpoint,
    endpoint_slice,
    node,
    port,
    service,
    slice_port,
)

# Addresses of this machine that nobody else uses; any of 127.0.0.0/8 may be bound on Linux, and only there.
LOOPBACK = f"127.{random.randint(64, 250)}.0.0/16"
PORT = 18080


def test_the_dictionary_passes() -> None:
    host = DictionaryHost()

    def trace(plane: DictionaryDataplane, packet: Packet) -> Verdict:
        surroundings = plane.surroundings
        assert surroundings is not None
        return decide(_Held(host.frontends), surroundings, packet)

    passed = check_dataplane(lambda: DictionaryDataplane(host), trace=trace, disturb=lambda _: host.frontends.popitem())
    assert {"an audit mends what somebody took away", "packets meet what the rules say"} <= set(passed)


class _Held:
    def __init__(self, rules: dict[Any, Rule]) -> None:
        self._rules = rules

    def get(self, key: Any) -> Rule | None:
        return self._rules.get(key)

    def is_cluster_ip(self, address: object) -> bool:
        return False


def test_nftables_passes() -> None:
    kernel = MemoryRuleset()

    def disturb(_: object) -> None:
        kernel.tables[IPFamily.IPV4].elements["services"].popitem()
        kernel.foreign_write()

    passed = check_dataplane(lambda: NftablesDataplane(kernel), disturb=disturb)
    assert "an audit mends what somebody took away" in passed


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="binds addresses of 127.0.0.0/8")
def test_userspace_passes() -> None:
    passed = check_dataplane(
        lambda: open_dataplane(config()),
        trace=UserspaceDataplane.verdict,
        keeps_rules=False,
        frontends=LOOPBACK,
        number=PORT,
    )
    assert "packets meet what the rules say" in passed


class Forgetful(DictionaryDataplane):
    """Does not remove what is gone."""

    def _write(self, key: Any) -> None:
        if key in self._desired:
            super()._write(key)


class Restless(DictionaryDataplane):
    """Writes everything every time."""

    def _differences(self) -> set[Any]:
        return set(self._desired)

    def _take_in(self, changes: RuleChanges) -> set[Any]:
        super()._take_in(changes)
        self._unfinished |= self._desired.keys()
        return set(self._unfinished)


class Hasty(DictionaryDataplane):
    """Its plan writes."""

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:
        planned = super().plan(changes, now=now)
        for key in self._differences():
            self._write(key)
        return planned


class Raising(DictionaryDataplane):
    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        if changes.rules:
            raise OSError("the host is odd")
        return super().sync(changes, now=now, audit=audit)


class Blind(DictionaryDataplane):
    """Looks at the host at no audit."""

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        return super().sync(changes, now=now, audit=False)


class Nameless(DictionaryDataplane):
    name = ""


class Partial(DictionaryDataplane):
    """Takes a complete message for a change."""

    def _take_in(self, changes: RuleChanges) -> set[Any]:
        return super()._take_in(RuleChanges(changes.rules, changes.surroundings))


@pytest.mark.parametrize(
    ("plane", "fault"),
    [
        (Forgetful, "nothing is planned once all is done"),
        (Restless, "is not written again"),
        (Hasty, "a plan writes nothing, and says whether a sync would"),
        (Raising, "sync raised OSError('the host is odd')"),
        (Blind, "an audit finds what somebody took away"),
        (Nameless, "it has a name"),
        (Partial, "what a complete message leaves out goes"),
    ],
)
def test_a_dataplane_that_breaks_its_promises_is_found_out(plane: type[DictionaryDataplane], fault: str) -> None:
    host = DictionaryHost()
    with pytest.raises(DataplaneCheckFailed) as raised:
        check_dataplane(lambda: plane(host), disturb=lambda _: host.frontends.popitem() if host.frontends else None)
    assert any(fault in one for one in raised.value.faults), raised.value.faults


def test_a_dataplane_that_sends_packets_elsewhere_is_found_out() -> None:
    class Wrong(UserspaceDataplane):
        def verdict(self, packet: Packet) -> Verdict:
            found = super().verdict(packet)
            return (
                Forward(found.endpoints[:1], found.masquerade, found.because) if isinstance(found, Forward) else found
            )

    with pytest.raises(DataplaneCheckFailed, match="instead of forwarded to"):
        check_dataplane(Wrong, trace=Wrong.verdict, keeps_rules=False, frontends=LOOPBACK, number=PORT)


def test_the_emulated_windows_node_passes() -> None:
    host = l2bridge_node(FUTURE)
    settings = config()
    macs = dict.fromkeys(host.host_addresses, host.machine.mac_address)

    def open_windows() -> WindowsDataplane:
        client = HnsClient(host)
        return WindowsDataplane(client, settings, mac_of=macs.get, rng=random.Random(0), clock=host.clock.now)

    passed = check_dataplane(open_windows)
    assert "what is as desired is not written again" in passed


# --- the userspace dataplane carries real traffic ---


class Echo(socketserver.BaseRequestHandler):
    """Says its name, then what it is told, until there is no more."""

    def handle(self) -> None:
        name = str(self.server.server_address[0]).encode()
        if isinstance(self.request, tuple):
            data, via = self.request
            via.sendto(name + b" " + data, self.client_address)
            return
        self.request.sendall(name + b" ")
        received = b""
        while data := self.request.recv(65536):
            received += data
        self.request.sendall(received)


@contextmanager
def servers(*addresses: str) -> Iterator[dict[str, int]]:
    """A TCP and a UDP echo server at each address, at one port each."""
    running: list[socketserver.BaseServer] = []
    try:
        for address in addresses:
            tcp = socketserver.ThreadingTCPServer((address, 18081), Echo)
            udp = socketserver.ThreadingUDPServer((address, 18081), Echo)
            running += [tcp, udp]
        for one in running:
            threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield dict.fromkeys(addresses, 18081)
    finally:
        for one in running:
            one.shutdown()
            one.server_close()


BASE = LOOPBACK.removesuffix(".0.0/16")
WEB_IP, DNS_IP, SCTP_IP, VIP = f"{BASE}.0.10", f"{BASE}.0.11", f"{BASE}.0.12", f"{BASE}.0.13"
NEAR, FAR, GONE = f"{BASE}.9.1", f"{BASE}.9.2", f"{BASE}.9.3"


class Running:
    """A userspace dataplane and the pipeline that feeds it."""

    def __init__(self, *objects: ApiObject) -> None:
        self.plane = UserspaceDataplane()
        self.pipeline = Pipeline(config(), frozenset())
        self.pipeline.apply([Upsert(node()), *map(Upsert, objects), *(Synced(kind) for kind in Kind)])
        self.report = self.sync()

    def say(self, *objects: ApiObject) -> SyncReport:
        self.pipeline.apply([Upsert(one) for one in objects])
        self.report = self.sync()
        return self.report

    def sync(self) -> SyncReport:
        message = self.pipeline.take()
        assert message is not None
        return self.plane.sync(message, now=0.0, audit=False)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.plane.close()


def web(*endpoints: str, **fields: Any) -> tuple[ApiObject, ...]:
    return (
        service("web", cluster_ips=[WEB_IP], ports=[port("http", PORT)], **fields),
        endpoint_slice("web-a", [endpoint(one, node="n1") for one in endpoints], ports=[slice_port("http", 18081)]),
    )


def dns(*endpoints: str) -> tuple[ApiObject, ...]:
    return (
        service("dns", cluster_ips=[DNS_IP], ports=[port("dns", PORT, protocol="UDP")]),
        endpoint_slice("dns-a", endpoints, service="dns", ports=[slice_port("dns", 18081, protocol="UDP")]),
    )


def ask_tcp(address: str, data: bytes = b"hello") -> bytes:
    with socket.create_connection((address, PORT), timeout=5) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while part := client.recv(65536):
            received += part
        return received


def ask_udp(address: str, data: bytes = b"hello", times: int = 1) -> list[bytes]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((address, PORT))
        found = []
        for _ in range(times):
            client.send(data)
            found.append(client.recv(65536))
        return found


def _cut_off() -> bool:
    raise ConnectionResetError


linux_only = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="binds addresses of 127.0.0.0/8")


@linux_only
def test_userspace_carries_tcp_and_udp_to_every_endpoint() -> None:
    with servers(NEAR, FAR), Running(*web(NEAR, FAR), *dns(NEAR, FAR)) as node_here:
        assert node_here.report.ok
        # The chance that so many connections go one way is one in a thousand million.
        assert {ask_tcp(WEB_IP).split()[0].decode() for _ in range(30)} == {NEAR, FAR}
        big = random.Random(0).randbytes(300_000)
        assert ask_tcp(WEB_IP, big).partition(b" ")[2] == big
        # One client's datagrams go one way.
        answers = ask_udp(DNS_IP, times=5)
        assert len({one.split()[0] for one in answers}) == 1
        assert {ask_udp(DNS_IP)[0].split()[0].decode() for _ in range(30)} == {NEAR, FAR}


@linux_only
def test_userspace_follows_changes_without_closing_its_socket() -> None:
    with servers(NEAR, FAR), Running(*web(NEAR)) as node_here:
        assert ask_tcp(WEB_IP).startswith(NEAR.encode())
        report = node_here.say(*web(FAR))
        assert [one.change.verb.value for one in report.results] == ["modify"]
        assert report.host_calls == 0
        assert ask_tcp(WEB_IP).startswith(FAR.encode())
        # Nobody is there any more: the kernel refuses, as for any port without a socket.
        node_here.say(*web())
        with pytest.raises(ConnectionRefusedError):
            ask_tcp(WEB_IP)
        node_here.say(*web(NEAR))
        assert ask_tcp(WEB_IP).startswith(NEAR.encode())


@linux_only
def test_userspace_goes_on_with_connections_whose_endpoint_leaves() -> None:
    with (
        servers(NEAR, FAR),
        Running(*web(NEAR)) as node_here,
        socket.create_connection((WEB_IP, PORT), timeout=5) as client,
    ):
        assert client.recv(65536) == NEAR.encode() + b" "  # the relay has found its way
        client.sendall(b"before")
        node_here.say(*web(FAR))
        client.sendall(b" after")
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"before after"


@linux_only
def test_userspace_keeps_clients_with_affinity_and_cuts_off_whom_the_rules_drop() -> None:
    with servers(NEAR, FAR), Running(*web(NEAR, FAR, affinity_timeout_s=60)) as node_here:
        assert len({ask_tcp(WEB_IP).split()[0] for _ in range(12)}) == 1
        filtered = web(NEAR, type="LoadBalancer", load_balancer_vips=[VIP], source_ranges=["198.51.100.0/24"])
        report = node_here.say(*filtered)
        assert {one.feature for one in report.shortfalls} == {"client-address", "drop"}
        with pytest.raises(OSError):  # noqa: PT011 (which one depends on how far the client has come)
            assert ask_tcp(VIP) or _cut_off()
        assert ask_tcp(WEB_IP) != b""


@linux_only
def test_userspace_forgets_a_udp_flow_to_where_there_is_no_way() -> None:
    """A client that goes on sending must not fill the memory, and gets through once there is an endpoint to reach."""
    with servers(NEAR), Running(*dns("255.255.255.255")) as node_here:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.1)
            client.connect((DNS_IP, PORT))
            client.send(b"lost")
            node_here.plane._relay.run(asyncio.sleep(0))  # by then the loop has read it
            node_here.say(*dns(NEAR))
            found, end = b"", time.monotonic() + 5
            while not found:
                assert time.monotonic() < end, "the flow is still bound for where there is no way"
                client.send(b"again")
                with suppress(TimeoutError):
                    found = client.recv(65536)
        assert found == NEAR.encode() + b" again"


@linux_only
def test_userspace_says_what_it_cannot_do_and_tries_again() -> None:
    """An address that is not on this machine, a port that is taken, a protocol that cannot be relayed."""
    objects = (
        *web(NEAR),
        service("elsewhere", cluster_ips=["192.0.2.77"], ports=[port("http", PORT)]),
        endpoint_slice("elsewhere-a", [NEAR], service="elsewhere", ports=[slice_port("http", 18081)]),
        service("sctp", cluster_ips=[SCTP_IP], ports=[port("s", PORT, protocol="SCTP")]),
    )
    with socket.create_server((DNS_IP, PORT)) as taken, servers(NEAR), Running(*objects) as node_here:
        report = node_here.report
        assert report.pending == ("192.0.2.77:18080/tcp",)
        assert report.pending_in(IPFamily.IPV6) == ()
        assert report.retry_at == 5.0
        (failed,) = [one for one in report.results if one.error]
        assert "192.0.2.77" in failed.error
        assert {one.feature for one in report.shortfalls} == {"client-address", "sctp"}
        assert ask_tcp(WEB_IP) != b"", "one that fails does not stop the others"
        blocked = (
            service("blocked", cluster_ips=[DNS_IP], ports=[port("http", PORT)]),
            endpoint_slice("blocked-a", [NEAR], service="blocked", ports=[slice_port("http", 18081)]),
        )
        assert f"{DNS_IP}:18080/tcp" in node_here.say(*blocked).pending
        taken.close()
        assert node_here.sync().pending == ("192.0.2.77:18080/tcp",)
        assert ask_tcp(DNS_IP) != b""


@linux_only
def test_userspace_opens_node_ports_at_the_nodes_addresses() -> None:
    objects = (
        service("web", type="NodePort", cluster_ips=[WEB_IP], ports=[port("http", PORT, node_port=18090)]),
        *web(NEAR)[1:],
    )
    plane = UserspaceDataplane()
    pipeline = Pipeline(config(), frozenset({parse_address("192.0.2.1")}))
    pipeline.apply([Upsert(node()), *map(Upsert, objects), *(Synced(kind) for kind in Kind)])
    message = pipeline.take()
    assert message is not None
    try:
        planned = [one.key for one in plane.plan(message, now=0.0)]
        assert sorted(planned) == sorted([f"{WEB_IP}:18080/tcp", "192.0.2.1:18090/tcp"])
    finally:
        plane.close()


@linux_only
def test_the_relay_ends_with_its_dataplane() -> None:
    with servers(NEAR), Running(*web(NEAR)) as node_here:
        assert ask_tcp(WEB_IP) != b""
        relay = node_here.plane._relay._thread
    relay.join(5)
    assert not relay.is_alive()
    with pytest.raises(ConnectionRefusedError):
        ask_tcp(WEB_IP)


@linux_only
def test_k21_what_is_new_or_different_and_what_is_gone_are_told_apart() -> None:
    objects = (service("web", cluster_ips=[WEB_IP], ports=[port("http", PORT)]), web(NEAR)[1])
    with Running(*objects, *dns(NEAR)) as node_here:
        node_here.pipeline.apply(
            [Upsert(web(FAR)[1]), Upsert(service("new", cluster_ips=[VIP], ports=[port("http", PORT)]))]
        )
        node_here.pipeline.apply([Upsert(endpoint_slice("new-a", [NEAR], service="new"))])
        node_here.pipeline.apply([Delete(dns()[0].object_key)])
        message = node_here.pipeline.take()
        assert message is not None
        planned = {(one.verb.value, one.key) for one in node_here.plane.plan(message, now=0.0)}
    assert planned == {
        ("modify", f"{WEB_IP}:18080/tcp"),
        ("create", f"{VIP}:18080/tcp"),
        ("delete", f"{DNS_IP}:18080/udp"),
    }


@linux_only
def test_k22_what_could_not_be_applied_is_still_different_the_next_time() -> None:
    with socket.create_server((WEB_IP, PORT)), Running(*web(NEAR)) as node_here:
        for _ in range(3):
            assert [one.change.verb.value for one in node_here.report.results] == ["create"]
            assert node_here.report.pending == (f"{WEB_IP}:18080/tcp",)
            node_here.report = node_here.sync()
