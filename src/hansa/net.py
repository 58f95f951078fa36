"""Values that every stage shares: addresses, prefixes, families, protocols and packets.

`Address` and `Prefix` are the standard library's types. Text is read by `parse_address` and `parse_prefix`,
which accept the legacy spellings that Kubernetes still meets (Evidence: service-semantics A11) and always
give the canonical value, so that comparing and printing need no further care.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class IPFamily(enum.Enum):
    """One of the two families; every decision about a service is made once per family."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is a Python call, paid for in every key

    def __str__(self) -> str:
        return self.value

    def __lt__(self, other: IPFamily) -> bool:
        return self.value < other.value


class Protocol(enum.Enum):
    """A transport protocol by its IANA number. Services use TCP, UDP and SCTP; packets may also be ICMP."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132

    __hash__ = object.__hash__  # as above

    @property
    def has_ports(self) -> bool:
        return self not in (Protocol.ICMP, Protocol.ICMPV6)

    def __str__(self) -> str:
        return self.name.lower()

    def __lt__(self, other: Protocol) -> bool:
        return self.value < other.value


SERVICE_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


class _KeyedIPv4Address(IPv4Address):
    """The same value, equal to and hashed like the standard library's, that works its hash out once.

    Addresses are keys of nearly everything here, and theirs costs more than the look-up: a fifth of the time of a plan.
    Text and bytes are the standard library's too, at a sixth of its time: every endpoint is asked for both.
    """

    __slots__ = ("_hash",)
    _ip: int

    def __str__(self) -> str:
        number = self._ip
        return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    @property
    def packed(self) -> bytes:
        return self._ip.to_bytes(4, "big")

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            self._hash: int = super().__hash__()
            return self._hash

    def __repr__(self) -> str:
        return f"IPv4Address({str(self)!r})"


class _KeyedIPv6Address(IPv6Address):
    """See `_KeyedIPv4Address`."""

    __slots__ = ("_hash",)
    _ip: int

    @property
    def packed(self) -> bytes:
        return self._ip.to_bytes(16, "big")

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            self._hash: int = super().__hash__()
            return self._hash

    def __repr__(self) -> str:
        return f"IPv6Address({str(self)!r})"


def family_of(value: Address | Prefix) -> IPFamily:
    return IPFamily.IPV4 if value.version == 4 else IPFamily.IPV6


def parse_protocol(text: str) -> Protocol:
    """A protocol by its name, in any case. Raises ValueError."""
    named = {str(protocol): protocol for protocol in Protocol}
    if text.lower() not in named:
        raise ValueError(f"{text!r} is no protocol: give one of {', '.join(named)}")
    return named[text.lower()]


def parse_address(text: str) -> Address:
    """Read an IP address; octets with leading zeros are decimal, IPv4-mapped IPv6 is IPv4.

    Raises ValueError. Evidence: service-semantics A11 (172.30.0.041 is 172.30.0.41).
    """
    if ":" in text:
        address = _KeyedIPv6Address(text)
        if address.scope_id is not None:
            raise ValueError(f"{text!r} has a zone, which no service address may have")
        mapped = address.ipv4_mapped
        return address if mapped is None else _KeyedIPv4Address(int(mapped))
    try:
        return _KeyedIPv4Address(text)
    except ValueError:
        return _KeyedIPv4Address(_without_leading_zeros(text))


def parse_prefix(text: str) -> Prefix:
    """Read a CIDR; host bits are cleared, legacy spellings as in `parse_address`. Raises ValueError."""
    address_text, slash, length = text.partition("/")
    if not slash or not length.isdigit():
        raise ValueError(f"{text!r} is not a CIDR: expected ADDRESS/LENGTH")
    address = parse_address(address_text)
    bits = int(length)
    if address.version == 4 and ":" in address_text:
        bits -= 96  # ::ffff:10.0.0.0/104 is 10.0.0.0/8
    if not 0 <= bits <= address.max_prefixlen:
        raise ValueError(
            f"{text!r} is not a CIDR: the length of an IPv{address.version} prefix is at most {address.max_prefixlen}"
        )
    return ipaddress.ip_network((address, bits), strict=False)


def _without_leading_zeros(text: str) -> str:
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not an IP address")
    return ".".join(str(int(part)) for part in parts)


def address_port(address: Address, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`: the identity of an endpoint within a port key (service-semantics E3)."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection as a node meets it.

    `port` is the destination port, None for ICMP. `interface` is the input interface's name if known; detectors
    by bridge or interface prefix look at it. A packet that this node itself sends has one of its addresses as source.
    """

    source: Address
    destination: Address
    protocol: Protocol
    port: int | None
    interface: str | None = None

    def __str__(self) -> str:
        target = str(self.destination) if self.port is None else address_port(self.destination, self.port)
        return f"{self.source} -> {target}/{self.protocol}"
