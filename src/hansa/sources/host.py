"""What only this machine can tell: its name, the addresses of its interfaces, and their MACs.

Evidence: service-semantics I5 (node name), N7 and N10 (local addresses, loopback never among them).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import psutil

from hansa.net import Address, parse_address


@dataclass(frozen=True, slots=True)
class HostFacts:
    """addresses: of all interfaces that are up, without loopback and link-local IPv6. macs: by address, with dashes."""

    hostname: str
    addresses: frozenset[Address]
    macs: dict[Address, str]


def read_host() -> HostFacts:
    """Read the facts of this machine, afresh at each call: addresses come and go."""
    states = psutil.net_if_stats()
    addresses: set[Address] = set()
    macs: dict[Address, str] = {}
    for interface, entries in psutil.net_if_addrs().items():
        if interface in states and not states[interface].isup:
            continue
        mac = next((entry.address for entry in entries if entry.family == psutil.AF_LINK), "")
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            address = parse_address(entry.address.partition("%")[0])
            if address.is_loopback or (address.version == 6 and address.is_link_local):
                continue
            addresses.add(address)
            if mac:
                macs[address] = mac.upper().replace(":", "-")
    return HostFacts(socket.gethostname(), frozenset(addresses), macs)
