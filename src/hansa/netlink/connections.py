"""The kernel's connection table, and one in memory that answers alike; listing and deleting, nothing else.

Both are what `dataplanes.conntrack.Connections` asks for. Evidence: the conformance tests, which ask both the same.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from hansa.net import IPFamily, Protocol
from hansa.netlink import codec, conntrack
from hansa.netlink.conntrack import Entries, Entry
from hansa.netlink.socket import NetfilterSocket, NetlinkError


class KernelConnections:
    """The connection table of the network namespace in which this was made. Needs CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self._socket = NetfilterSocket()

    def list(self, family: IPFamily, protocol: Protocol) -> Entries:
        kind = conntrack.message_type(conntrack.GET_ENTRY)
        found = self._socket.dump_what_is_there(kind, conntrack.listing(family, protocol))
        decoded = (conntrack.decode_entry(reply.payload, family, protocol) for reply in found.messages)
        return Entries([entry for entry in decoded if entry is not None], not found.interrupted)

    def delete(self, entry: Entry) -> bool:
        try:
            self._socket.request(conntrack.message_type(conntrack.DELETE_ENTRY), 0, conntrack.deletion(entry))
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return False
            raise
        return True

    def close(self) -> None:
        self._socket.close()


class MemoryConnections:
    """A table in memory, for hosts without a kernel to ask and for tests.

    entries: as they are; tests add to them as packets would. listings: how many were asked for. failures: what the next
    listings do instead of answering whole: None = they are interrupted (K9), else the errno of a refusal.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries: dict[Entry, None] = dict.fromkeys(entries)
        self.listings = 0
        self.failures: list[int | None] = []
        self.undeletable: set[Entry] = set()

    def list(self, family: IPFamily, protocol: Protocol) -> Entries:
        self.listings += 1
        whole = True
        if self.failures:
            code = self.failures.pop(0)
            if code is not None:
                raise NetlinkError([codec.Answer(0, code, "refused on request")])
            whole = False
        found = [entry for entry in self.entries if entry.family is family and entry.protocol == protocol.value]
        return Entries(found if whole else found[: len(found) // 2], whole)

    def delete(self, entry: Entry) -> bool:
        if entry in self.undeletable:
            raise NetlinkError([codec.Answer(0, errno.EPERM, "refused on request")])
        if entry not in self.entries:
            return False
        del self.entries[entry]
        return True

    def close(self) -> None:
        """Nothing is held."""
