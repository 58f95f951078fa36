"""A node, pods and clients in network namespaces of their own, and real packets between them.

Nothing here touches the namespace in which the tests run: sockets are made by threads that have entered another one.
Every namespace is a router's leg: all traffic passes `node`, where the tables under test are. `world` lies behind the
node's default route and owns every service address, so that what a proxy leaves alone arrives somewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, TypeVar

from hansa.net import Address, Packet, Protocol

CLONE_NEWNET = 0x40000000
NODE_MAC = "02:00:00:00:00:01"
GATEWAY = "169.254.1.1"
# What is not there after this long was dropped; a packet needs well under a millisecond.
PATIENCE_S = 0.2
# How long to wait for what should come, on a machine that has other things to do.
LIMIT_S = 5.0

Result = TypeVar("Result")


@cache
def missing() -> str:
    """Why these tests cannot run here, "" if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root: network namespaces and nf_tables"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"needs the program {program} (apt-get install iproute2 nftables)"
    probe = f"hansa-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"needs network namespaces: {made.stderr.strip()}"
    listed = subprocess.run(["ip", "netns", "exec", probe, "nft", "list", "tables"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return "needs nf_tables in the kernel" if listed.returncode else ""


@dataclass
class Namespace:
    """One network namespace. `call` runs a function in it, `command` an `ip` command, `nft` the nft program."""

    name: str

    def create(self) -> None:
        run("ip", "netns", "add", self.name)
        self.command("link set lo up")

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def command(self, *lines: str) -> None:
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(lines) + "\n")

    def nft(self, *arguments: str, stdin: str = "") -> str:
        return run("nsenter", f"--net=/run/netns/{self.name}", "nft", *arguments, stdin=stdin)

    def sysctl(self, **settings: str) -> None:
        """Settings below /proc/sys/net, with `__` for `/`."""

        def write() -> None:
            for key, value in settings.items():
                (Path("/proc/sys/net") / key.replace("__", "/")).write_text(value, encoding="ascii")

        self.call(write)

    def call(self, function: Callable[[], Result]) -> Result:
        """Run a function in a thread that is in this namespace; sockets that it makes stay there."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                _enter(self.name)
                results.append(function())
            except BaseException as error:  # noqa: BLE001 (handed to the caller)
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


def _enter(name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if libc.setns(handle, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {name}")
    finally:
        os.close(handle)


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def namespace(suffix: str) -> Iterator[Namespace]:
    """One namespace of its own, for tests without traffic."""
    one = Namespace(f"hansa-{os.getpid()}-{suffix}")
    one.create()
    try:
        yield one
    finally:
        one.delete()


@dataclass(frozen=True)
class Seen:
    """What became of a packet. what: `forwarded`, `untouched`, `refused` or `dropped`.

    endpoint: where a forwarded one arrived. source, source_port: as the receiver saw them. sent_port: as it was sent.
    """

    what: str
    endpoint: tuple[Address, int] | None = None
    source: Address | None = None
    source_port: int = 0
    sent_port: int = 0


@dataclass
class Lab:
    """The namespaces by name, and who owns which address."""

    spaces: dict[str, Namespace] = field(default_factory=dict)
    owners: dict[Address, str] = field(default_factory=dict)
    node_addresses: set[Address] = field(default_factory=set)
    listeners: dict[tuple[str, Protocol, str, int], socket.socket] = field(default_factory=dict)

    LEGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "p": ("10.1.1.5", "fd01:0:0:1::5"),
        "l1": ("10.1.1.11", "fd01:0:0:1::11"),
        "l2": ("10.1.1.12",),
        "q": ("10.1.2.7",),
        "r1": ("10.1.2.21", "fd01:0:0:2::21"),
        "r2": ("10.1.3.31",),
        "out": ("198.51.100.99", "198.51.100.200", "2001:db8:9::99"),
        "world": ("192.0.2.254", "2001:db8:ffff::1"),
    }

    @property
    def node(self) -> Namespace:
        return self.spaces["node"]

    def create(self) -> None:
        for name in ("node", *self.LEGS):
            self.spaces[name] = Namespace(f"hansa-{os.getpid()}-{name}")
            self.spaces[name].create()
        self.node.sysctl(
            ipv4__ip_forward="1", ipv6__conf__all__forwarding="1", ipv4__conf__all__rp_filter="0",
            ipv4__conf__default__rp_filter="0", ipv6__conf__default__accept_dad="0",
            # Refusals are rationed to one per second and client, but tests ask more often.
            ipv4__icmp_ratelimit="0", ipv6__icmp__ratelimit="0",
        )  # fmt: skip
        for name, addresses in self.LEGS.items():
            self._connect(name, addresses)
        self.node.command("link add uplink type veth peer name unused", "link set uplink up", "link set unused up")
        self.node.command(
            "route add default via 192.0.2.254 dev to-world onlink", "route add ::/0 via fe80::2 dev to-world"
        )
        world = self.spaces["world"]
        for prefix in ("10.96.0.0/12", "192.0.2.101", "192.0.2.200", "203.0.113.0/24", "fd00::/64", "2001:db8:7::/48"):
            world.command(f"route add local {prefix} dev lo")
        self.set_node_addresses(map(ip_address, ("192.0.2.1", "192.0.2.100", "2001:db8::1")))

    def _connect(self, name: str, addresses: Iterable[str]) -> None:
        space = self.spaces[name]
        space.sysctl(ipv4__conf__default__rp_filter="0", ipv4__conf__all__rp_filter="0",
                     ipv6__conf__default__accept_dad="0")  # fmt: skip
        peer = f"link add to-{name} address {NODE_MAC} type veth peer name eth0 netns {space.name}"
        self.node.command(peer, f"link set to-{name} up", f"address add fe80::1/64 dev to-{name} nodad")
        space.command("link set eth0 up", "address add fe80::2/64 dev eth0 nodad")
        space.command(f"route add default via {GATEWAY} dev eth0 onlink", "route add ::/0 via fe80::1 dev eth0")
        space.command(f"neighbor add {GATEWAY} lladdr {NODE_MAC} nud permanent dev eth0")
        for address in addresses:
            self.add_address(name, ip_address(address))

    def add_address(self, name: str, address: Address) -> None:
        """Give an address to a leg, and the way there to the node."""
        self.owners[address] = name
        if address.version == 4:
            self.spaces[name].command(f"address add {address}/32 dev eth0")
            self.node.command(f"route add {address}/32 dev to-{name}")
        else:
            self.spaces[name].command(f"address add {address}/128 dev eth0 nodad")
            self.node.command(f"route add {address}/128 via fe80::2 dev to-{name}")

    def set_node_addresses(self, wanted: Iterable[Address]) -> None:
        after = set(wanted)
        for address in self.node_addresses - after:
            self.node.command(f"address delete {address}/{address.max_prefixlen} dev uplink")
            self.owners.pop(address, None)
        for address in sorted(after - self.node_addresses, key=str):
            nodad = " nodad" if address.version == 6 else ""
            self.node.command(f"address add {address}/{address.max_prefixlen} dev uplink{nodad}")
        self.node_addresses = after
        self.owners.update(dict.fromkeys(after, "node"))
        self.owners.update({ip_address("127.0.0.1"): "node", ip_address("::1"): "node"})

    def rename_leg(self, name: str, interface: str) -> None:
        """Give the node's end of a leg another name; "" = its usual one."""
        current = self.node.call(lambda: _interface_of(self.owner_address(name), self.node.name))
        wanted = interface or f"to-{name}"
        if current != wanted:
            self.node.command(f"link set {current} name {wanted}")

    def owner_address(self, name: str) -> Address:
        return next(one for one, owner in self.owners.items() if owner == name and one.version == 4)

    def delete(self) -> None:
        for listener in self.listeners.values():
            listener.close()
        for space in self.spaces.values():
            space.delete()

    # -- traffic -----------------------------------------------------------------------------------------------------

    def ensure_endpoint(self, address: Address, port: int, protocol: Protocol) -> None:
        """Something listens there; an address that nobody has is given to `r2`."""
        if address not in self.owners:
            self.add_address("r2", address)
        self._listen(self.owners[address], protocol, str(address), port)

    def send(self, packet: Packet, *, patience_s: float = LIMIT_S) -> Seen:
        """Open one connection (TCP), or send one datagram, and see where it arrives. ICMP is one echo request."""
        return self.open(packet, patience_s=patience_s)[0]

    def open(self, packet: Packet, *, patience_s: float = LIMIT_S) -> tuple[Seen, Callable[[], bool]]:
        """As `send`; the second value tells whether the connection still carries data, and to the same place."""
        if packet.protocol in (Protocol.ICMP, Protocol.ICMPV6) or packet.port is None:
            return self._ping(packet, patience_s), lambda: True
        wildcard = "0.0.0.0" if packet.source.version == 4 else "::"
        for name in ("node", "world"):
            self._listen(name, packet.protocol, wildcard, packet.port)
        if packet.protocol is Protocol.UDP:
            return self._send_datagram(packet, patience_s), lambda: True
        return self._connect_stream(packet, patience_s)

    def _client(self, packet: Packet, kind: socket.SocketKind) -> socket.socket:
        def make() -> socket.socket:
            family = socket.AF_INET if packet.source.version == 4 else socket.AF_INET6
            client = socket.socket(family, kind)
            client.setblocking(False)
            client.bind((str(packet.source), 0))
            return client

        return self.spaces[self.owners[packet.source]].call(make)

    def _connect_stream(self, packet: Packet, patience_s: float) -> tuple[Seen, Callable[[], bool]]:
        client = self._client(packet, socket.SOCK_STREAM)
        sent_port = client.getsockname()[1]
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            client.connect((str(packet.destination), packet.port))
        found = self._wait(packet, client, patience_s)
        if isinstance(found, str):
            client.close()
            return Seen(found, sent_port=sent_port), lambda: False
        server, peer = found.accept()
        where = server.getsockname()
        seen = self._seen(found, where, peer, sent_port)

        def alive() -> bool:
            client.setblocking(True)
            client.settimeout(LIMIT_S)
            server.settimeout(LIMIT_S)
            try:
                client.sendall(b"ping")
                return server.recv(4) == b"ping"
            except OSError:
                return False

        if seen.what == "untouched":
            client.close()
            server.close()
        self._open += [client, server]
        return seen, alive

    _open: list[socket.socket] = field(default_factory=list)

    def close_connections(self) -> None:
        for one in self._open:
            one.close()
        self._open.clear()

    def _send_datagram(self, packet: Packet, patience_s: float) -> Seen:
        client = self._client(packet, socket.SOCK_DGRAM)
        try:
            sent_port = client.getsockname()[1]
            client.connect((str(packet.destination), packet.port))
            client.send(b"ping")
            found = self._wait(packet, client, patience_s)
            if isinstance(found, str):
                return Seen(found, sent_port=sent_port)
            _, peer = found.recvfrom(64)
            return self._seen(found, found.getsockname(), peer, sent_port)
        finally:
            client.close()

    def _seen(self, listener: socket.socket, where: tuple, peer: tuple, sent_port: int) -> Seen:
        source = ip_address(peer[0])
        if any(name in ("node", "world") and one is listener and text in ("0.0.0.0", "::")
               for (name, _, text, _), one in self.listeners.items()):  # fmt: skip
            return Seen("untouched", None, source, peer[1], sent_port)
        return Seen("forwarded", (ip_address(where[0]), where[1]), source, peer[1], sent_port)

    def _wait(self, packet: Packet, client: socket.socket, patience_s: float) -> socket.socket | str:
        """The listener at which something arrived, or what else happened."""
        listeners = [one for (_, protocol, _, _), one in self.listeners.items() if protocol is packet.protocol]
        stream = packet.protocol is Protocol.TCP
        end = time.monotonic() + patience_s
        while (left := end - time.monotonic()) > 0:
            readable, _, failed = select.select([*listeners, client], [], [client], left)
            arrived = [one for one in readable if one is not client]
            if arrived:
                return arrived[0]
            if client in readable or client in failed:
                error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return "refused" if error else "dropped" if stream else "refused"
        return "dropped"

    def _listen(self, name: str, protocol: Protocol, address: str, port: int) -> None:
        if (name, protocol, address, port) in self.listeners:
            return

        def make() -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
            listener = socket.socket(family, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, port))
            if protocol is Protocol.TCP:
                listener.listen(128)
            listener.setblocking(False)
            return listener

        self.listeners[(name, protocol, address, port)] = self.spaces[name].call(make)

    def send_sctp(self, source: Address, destination: Address, port: int, *, at: Address) -> tuple[Address, int] | None:
        """Send an SCTP INIT; source and destination port as it arrives `at` an address, None if it does not."""
        receiver = self.spaces[self.owners[at]].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 132))
        sender = self.spaces[self.owners[source]].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 132))
        with contextlib.closing(receiver), contextlib.closing(sender):
            sender.bind((str(source), 0))
            chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 0x11223344, 65535, 1, 1, 1)
            header = struct.pack("!HHI", 40000, port, 0)
            checksum = struct.pack("<I", crc32c(header + bytes(4) + chunk))
            sender.sendto(header + checksum + chunk, (str(destination), 0))
            end = time.monotonic() + LIMIT_S
            while (left := end - time.monotonic()) > 0 and select.select([receiver], [], [], left)[0]:
                data = receiver.recv(1500)
                start = (data[0] & 15) * 4
                if data[start + 12 : start + 13] == b"\1" and ip_address(data[16:20]) == at:
                    return ip_address(data[12:16]), struct.unpack_from("!H", data, start + 2)[0]
        return None

    def _ping(self, packet: Packet, patience_s: float) -> Seen:
        """An ICMP echo request by a raw socket; IPv4 only."""
        space = self.spaces[self.owners[packet.source]]
        raw = space.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        with contextlib.closing(raw):
            raw.bind((str(packet.source), 0))
            body = struct.pack("!BBHHH", 8, 0, 0, 0x4A4A, 1)
            total = sum(struct.unpack("!4H", body))
            checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            raw.sendto(body[:2] + struct.pack("!H", checksum) + body[4:], (str(packet.destination), 0))
            end = time.monotonic() + patience_s
            while (left := end - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
                answer = raw.recv(1500)
                kind = answer[(answer[0] & 15) * 4]
                if kind == 3:
                    return Seen("refused")
                if kind == 0:
                    return Seen("untouched")
        return Seen("dropped")


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, which SCTP uses (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _interface_of(address: Address, name: str) -> str:
    words = run("ip", "-n", name, "route", "get", str(address)).split()
    return words[words.index("dev") + 1]
