"""HnsClient: verbs over HnsApi that close every handle on every path and know what they cost.

Prices in DLL calls: list 1, read 3, create 3 (endpoints 5), modify 4, delete 1. Evidence: windows-proxy 0.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from hansa.hns.api import ZERO_GUID, Guid, Handle, HnsApi, HnsError, HnsKind, HnsVersion, HResult
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

    `calls` counts what reached the DLL, `calls_by_verb` the same by the DLL's verbs (`open`, `query`, ...), `errors`
    what it refused, by verb and HRESULT. `times`: verb and seconds of each call since they were last taken; only with a
    clock.
    """

    def __init__(self, api: HnsApi, clock: Callable[[], float] | None = None) -> None:
        self._api = api
        self._clock = clock
        self.calls = 0
        self.calls_by_verb: Counter[str] = Counter()
        self.errors: Counter[tuple[str, HResult]] = Counter()
        self.times: list[tuple[str, float]] = []

    def take_times(self) -> tuple[tuple[str, float], ...]:
        """`times`, which begin anew."""
        taken, self.times = tuple(self.times), []
        return taken

    @contextmanager
    def _counted(self, verb: str) -> Iterator[None]:
        self.calls += 1
        self.calls_by_verb[verb] += 1
        started_at = self._clock() if self._clock is not None else 0.0
        try:
            yield
        except HnsError as error:
            self.errors[verb, error.hresult] += 1
            raise
        finally:
            if self._clock is not None:
                self.times.append((verb, self._clock() - started_at))

    def version(self) -> HnsVersion:
        with self._counted("version"):
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
        with self._counted("enumerate"):
            listing = self._api.enumerate(kind, list_query(**conditions))
        return decode_guids(kind, listing)

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
            with self._counted("modify"):
                self._api.modify(kind, handle, document)
            return self._query(kind, handle)

    def delete(self, kind: HnsKind, guid: Guid) -> None:
        """Delete by GUID; raises ValueError for an empty or zero GUID before HNS sees it."""
        _usable(guid)
        with self._counted("delete"):
            self._api.delete(kind, guid)

    def _create(self, kind: HnsKind, guid: Guid, document: str, parent: Handle | None) -> str:
        with self._counted("create"):
            handle = self._api.create(kind, guid, document, parent)
        with self._closing(kind, handle):
            return self._query(kind, handle)

    def _query(self, kind: HnsKind, handle: Handle) -> str:
        with self._counted("query"):
            return self._api.query(kind, handle, DEFAULT_QUERY)

    @contextmanager
    def _opened(self, kind: HnsKind, guid: Guid) -> Iterator[Handle]:
        _usable(guid)
        with self._counted("open"):
            handle = self._api.open(kind, guid)
        with self._closing(kind, handle):
            yield handle

    @contextmanager
    def _closing(self, kind: HnsKind, handle: Handle) -> Iterator[None]:
        try:
            yield
        finally:
            with self._counted("close"):
                self._api.close(kind, handle)


def _usable(guid: Guid) -> Guid:
    if not guid or guid == ZERO_GUID:
        raise ValueError("an empty GUID names no object")
    return guid
