"""Numbers for session affinity: what the packet path remembers, and is led by, instead of names."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Set

from hansa.dataplanes.nftables.frame import FIRST_STICKY_WAY, Flavour
from hansa.dataplanes.nftables.objects import FIRST_DRAWN
from hansa.services.model import Endpoint, ServicePortName

# Class ids are `port:endpoint`, 16 bits each, and 0 means none.
MAX_ID = 0xFFFF
# Service ports with affinity, and endpoints of one such port, that get a number: half of all numbers, so that a free
# one is always near.
MAX_NUMBERED = 0x8000
# Endpoints of one service port that went and whose number is kept from them; the oldest is let go first.
MAX_RETIRED = 1024


class Ids:
    """Numbers for the service ports with affinity and for their endpoints; stable while in use.

    A number starts from a checksum of the name, so that a restart finds the same one; a taken one leads to the next.
    An endpoint that went does not get its number back at once if it returns: what clients remember of it counts no
    longer (Y7).
    """

    def __init__(self) -> None:
        self._ports: dict[ServicePortName, int] = {}
        # The major number of what is drawn: a packet that meets a change half-way may have it in place of a port's.
        self._taken: set[int] = {FIRST_DRAWN >> 16}
        self._endpoints: dict[ServicePortName, _Numbers] = {}

    def of(self, owner: ServicePortName, endpoints: Iterable[Endpoint]) -> list[int] | None:
        """The class ids of the endpoints, in their order; None when the numbers have run out."""
        port = self._ports.get(owner)
        if port is None:
            if len(self._taken) >= MAX_NUMBERED:
                return None
            port = self._take_port(owner, _free(f"{owner}/{owner.protocol}", self._taken))
        numbers = self._endpoints.setdefault(owner, _Numbers())
        found = []
        for endpoint in endpoints:
            number = numbers.of(str(endpoint))
            if number is None:
                return None
            found.append(port << 16 | number)
        return found

    def release(self, owner: ServicePortName, in_use: Iterable[Endpoint] | None) -> None:
        """Only these endpoints are left; None = the port has no affinity any more."""
        if in_use is None:
            if (port := self._ports.pop(owner, None)) is not None:
                self._taken.discard(port)
            self._endpoints.pop(owner, None)
        elif owner in self._endpoints:
            self._endpoints[owner].keep({str(endpoint) for endpoint in in_use})

    def adopt(self, owner: ServicePortName, class_id: int, endpoint: str) -> None:
        """Take over a number that a table in the kernel already uses, unless it contradicts what is known."""
        port, number = class_id >> 16, class_id & 0xFFFF
        if owner not in self._ports and port not in self._taken and port:
            self._take_port(owner, port)
        if self._ports.get(owner) == port and number:
            self._endpoints.setdefault(owner, _Numbers()).adopt(endpoint, number)

    def _take_port(self, owner: ServicePortName, port: int) -> int:
        self._ports[owner] = port
        self._taken.add(port)
        return port


class _Numbers:
    """The numbers of one service port's endpoints, by "ip:port". retired: of those that went, in that order."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._taken: set[int] = set()
        self._retired: dict[str, int] = {}

    def of(self, endpoint: str) -> int | None:
        """None when the numbers have run out."""
        number = self._known.get(endpoint)
        if number is None:
            if len(self._taken) >= MAX_NUMBERED:
                return None
            number = _free(endpoint, self._taken, self._retired.get(endpoint, 0))
            self.adopt(endpoint, number)
        return number

    def adopt(self, endpoint: str, number: int) -> None:
        if endpoint not in self._known and number not in self._taken:
            self._known[endpoint] = number
            self._taken.add(number)

    def keep(self, endpoints: set[str]) -> None:
        for endpoint in [endpoint for endpoint in self._known if endpoint not in endpoints]:
            number = self._known.pop(endpoint)
            self._taken.discard(number)
            self._retired.pop(endpoint, None)
            self._retired[endpoint] = number
            if len(self._retired) > MAX_RETIRED:
                del self._retired[next(iter(self._retired))]


class Ways:
    """Numbers for the ways to pick with affinity: one for each combination of a timeout and what else a chain does.

    As with `Ids`, a number starts from a checksum, and a table that is already there decides.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._taken: set[int] = set(range(1, FIRST_STICKY_WAY))

    def number(self, flavour: Flavour) -> int | None:
        """What leads to the flavour's chain; None when the numbers have run out."""
        if flavour.number is not None:
            return flavour.number
        way = self._known.get(flavour.way)
        if way is None:
            if len(self._taken) >= MAX_NUMBERED:
                return None
            way = self._take(flavour.way, _free(flavour.way, self._taken))
        return way << 16 | flavour.count

    def adopt(self, flavour: Flavour, number: int) -> bool:
        """Take over a number from a table in the kernel. Whether it leads to this flavour now."""
        if flavour.number is not None:
            return number == flavour.number
        way = number >> 16
        if flavour.way not in self._known and way not in self._taken and way:
            self._take(flavour.way, way)
        return self._known.get(flavour.way, 0) << 16 | flavour.count == number

    def keep(self, ways: Set[str]) -> None:
        """Only these are left."""
        for way in self._known.keys() - ways:
            self._taken.discard(self._known.pop(way))

    def _take(self, name: str, way: int) -> int:
        self._known[name] = way
        self._taken.add(way)
        return way


def _free(name: str, taken: set[int], avoided: int = 0) -> int:
    """A free number from 1 to MAX_ID, beginning with the name's own. At most MAX_NUMBERED are taken."""
    number = zlib.crc32(name.encode()) % MAX_ID + 1
    while number in taken or number == avoided:
        number = number % MAX_ID + 1
    return number
