"""HnsClient: verbs over HnsApi that close every handle on every path and know what they cost.

Prices in DLL calls: list 1, read 3, create 3 (endpoints 5), modify 4, delete 1. Evidence: windows-proxy 0.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from hansa.hns.api import ZERO_GUID, Guid, Handle, HnsApi, HnsKind, HnsVersion
from hansa.hns.schema import SCHEMA_VERSION, decode_guids

DEFAULT_QUERY = msgspec.json.encode({"SchemaVersion": SCHEMA_VERSION}).decode()


def list_query(**conditions: str) -> str:
    """A HostComputeQuery; its Filter is a text that itself contains JSON (hcn.md 1.4). No condition: everything."""
    if not conditions:
        return DEFAULT_QUERY
    inner = msgspec.json.encode(conditions).decode()
    return msgspec.json.encode({"SchemaVersion": SCHEMA_VERSION, "Filter": inner}).decode()


class HnsClient:
    """One verb per thing that hansa does to HNS. Every verb may raise HnsError.

    `calls` counts what reached the DLL, `calls_by_verb` the same by the DLL's verbs (`open`, `query`, ...).
    """

    def __init__(self, api: HnsApi) -> None:
        self._api = api
        self.calls = 0
        self.calls_by_verb: Counter[str] = Counter()

    def _count(self, verb: str) -> None:
        self.calls += 1
        self.calls_by_verb[verb] += 1

    def version(self) -> HnsVersion:
        self._count("version")
        return self._api.version()

    def list_ids(self, kind: HnsKind, *, name: str | None = None, network: Guid | None = None) -> tuple[Guid, ...]:
        """All GUIDs of that kind, or those of that name, or (endpoints only) of that network; in HNS's order.

        None found is (), never an error. Raises MalformedHnsObject if the answer is no list of GUIDs, ValueError for
        conditions that HNS would not understand: what it makes of an empty name is unknown.
        """
        conditions: dict[str, str] = {}
        if name is not None:
            if not name:
                raise ValueError("an empty name selects nothing: leave it out to list everything")
            conditions["Name"] = name
        if network is not None:
            if kind is not HnsKind.ENDPOINT:
                raise ValueError(f"a {kind} cannot be listed by network")
            # HNS filters before it converts to schema 2, hence the name of schema 1.
            conditions["VirtualNetwork"] = _usable(network)
        self._count("enumerate")
        return decode_guids(kind, self._api.enumerate(kind, list_query(**conditions)))

    def read(self, kind: HnsKind, guid: Guid) -> str:
        """The object's document."""
        with self._opened(kind, guid) as handle:
            return self._query(kind, handle)

    def create(self, kind: HnsKind, document: str, *, guid: Guid = ZERO_GUID, network: Guid | None = None) -> str:
        """Make an object; its document as HNS tells it back. ZERO_GUID lets HNS choose; endpoints need `network`.

        An HnsError does not prove that nothing was made: the reply may be what got lost.
        """
        if (kind is HnsKind.ENDPOINT) != (network is not None):
            raise ValueError("exactly endpoints are created on a network")
        if network is None:
            return self._create(kind, guid, document, None)
        with self._opened(HnsKind.NETWORK, network) as parent:
            return self._create(kind, guid, document, parent)

    def modify(self, kind: HnsKind, guid: Guid, document: str) -> str:
        """Change an object: whole document for load balancers, envelope for others; the result as HNS tells it.

        The answer is to be compared with what was wanted: HNS 15.4 says yes and changes nothing.
        """
        with self._opened(kind, guid) as handle:
            self._count("modify")
            self._api.modify(kind, handle, document)
            return self._query(kind, handle)

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        """Delete by GUID; raises ValueError for an empty or zero GUID before HNS sees it."""
        _usable(guid)
        self._count("delete")
        self._api.delete(kind, guid)

    def _create(self, kind: HnsKind, guid: Guid, document: str, parent: Handle | None) -> str:
        self._count("create")
        handle = self._api.create(kind, guid, document, parent)
        with self._closing(kind, handle):
            return self._query(kind, handle)

    def _query(self, kind: HnsKind, handle: Handle) -> str:
        self._count("query")
        return self._api.query(kind, handle, DEFAULT_QUERY)

    @contextmanager
    def _opened(self, kind: HnsKind, guid: Guid) -> Iterator[Handle]:
        _usable(guid)
        self._count("open")
        handle = self._api.open(kind, guid)
        with self._closing(kind, handle):
            yield handle

    @contextmanager
    def _closing(self, kind: HnsKind, handle: Handle) -> Iterator[None]:
        try:
            yield
        finally:
            self._count("close")
            self._api.close(kind, handle)


def _usable(guid: Guid) -> Guid:
    if not guid or guid == ZERO_GUID:
        raise ValueError("an empty GUID names no object")
    return guid
