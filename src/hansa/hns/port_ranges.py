"""Which ports Windows gives away by itself: its dynamic range, and ranges set aside (excluded) for other components.

HNS itself takes blocks of the dynamic range for load balancers without DSR, and so do WinNAT, Hyper-V and RPC. A node
port inside may be somebody else's at any moment (windows-proxy F45). `netsh` is the documented way to read both lists;
its words are translated, its numbers are not, so only those are read.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hansa.net import IPFamily, Protocol

# A list is printed within 0.1 s; whoever waits longer learns nothing by it.
NETSH_WITHIN_S = 5.0
_FAMILIES = ((IPFamily.IPV4, "ipv4"), (IPFamily.IPV6, "ipv6"))
_PROTOCOLS = (Protocol.TCP, Protocol.UDP)
_RANGE = re.compile(r"^\s*(\d{1,6})\s+(\d{1,6})\s*\*?\s*$", re.MULTILINE)


class PortRange(NamedTuple):
    """Both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}" if self.first < self.last else str(self.first)

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def overlaps(self, other: PortRange) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class TakenPorts:
    """Of one family and protocol. dynamic: None = the system does not tell."""

    family: IPFamily
    protocol: Protocol
    dynamic: PortRange | None
    excluded: tuple[PortRange, ...] = ()


# Not within longer digits: no port has more, and what looks for one in thousands of them never ends.
_LAST_NUMBER = re.compile(r"(?<!\d)(\d{1,6})[^\S\n]*+$", re.MULTILINE)


def parse_dynamic(text: str) -> PortRange | None:
    """What `netsh int ipv4 show dynamicport tcp` prints: first port and count end its lines. None = something else.

    >>> str(parse_dynamic("Protocol tcp Dynamic Port Range\\n---\\nStart Port : 49152\\nNumber of Ports : 16384\\n"))
    '49152-65535'
    """
    match [int(number) for number in _LAST_NUMBER.findall(text)]:
        case [first, count] if count > 0:
            return PortRange(first, first + count - 1)
        case _:
            return None


def parse_excluded(text: str) -> tuple[PortRange, ...]:
    """What `netsh int ipv4 show excludedportrange protocol=tcp` prints: a line for each range, `*` = set by a person.

    >>> [str(one) for one in parse_excluded("Start Port    End Port\\n  5357   5357\\n 50000  50059   *\\n")]
    ['5357', '50000-50059']
    """
    found = (PortRange(int(first), int(last)) for first, last in _RANGE.findall(text))
    return tuple(one for one in found if 0 < one.first <= one.last <= 65535)


def uniform(dynamic: PortRange) -> tuple[TakenPorts, ...]:
    """The same dynamic range for every family and protocol, as Windows has it unless somebody changes it."""
    return tuple(TakenPorts(family, protocol, dynamic) for family, _ in _FAMILIES for protocol in _PROTOCOLS)


def read_taken_ports() -> tuple[TakenPorts, ...]:
    """Of this Windows machine: four questions to netsh for each protocol, a second in all. Raises OSError."""
    return tuple(_read())


def _read() -> Iterator[TakenPorts]:
    for family, word in _FAMILIES:
        for protocol in _PROTOCOLS:
            name = protocol.name.lower()
            dynamic = parse_dynamic(_netsh(word, "show", "dynamicport", name))
            excluded = parse_excluded(_netsh(word, "show", "excludedportrange", f"protocol={name}"))
            yield TakenPorts(family, protocol, dynamic, excluded)


def _netsh(family: str, *words: str) -> str:
    """By its full path: what is called netsh elsewhere must not run with a node agent's rights."""
    program = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "netsh.exe"
    try:
        done = subprocess.run(
            [program, "interface", family, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=NETSH_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"netsh gives no answer within {NETSH_WITHIN_S:g} s") from error
    return done.stdout.decode("utf-8", "replace")
