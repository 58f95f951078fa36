"""HnsApi: the calls of computenetwork.dll that hansa makes, and HnsError.

The protocol is the DLL's own shape (enumerate, open, query, create, modify, delete, close; JSON texts; handles), so
that native binding, emulator and remote client are alike to the last call. `hansa.hns.client.HnsClient` builds verbs on
it that close every handle on every path. Evidence: hcn.md sections 1.2-1.6.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple, NewType, Protocol

from hansa.errors import DataplaneError

Guid = NewType("Guid", str)  # upper case, no braces: normalised at the edge (windows-proxy H.3)
HResult = NewType("HResult", int)  # unsigned 32 bit, as in the error record
Handle = NewType("Handle", int)

ZERO_GUID = Guid("00000000-0000-0000-0000-000000000000")
_GUID_TEXT = re.compile(r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}")


def parse_guid(text: str) -> Guid:
    """Any spelling of a GUID (either case, with or without braces) in our normal form. Raises ValueError."""
    normal = text.upper()
    if normal[:1] == "{" and normal[-1:] == "}":
        normal = normal[1:-1]
    if not _GUID_TEXT.fullmatch(normal):
        raise ValueError(f"{text[:60]!r} is not a GUID")
    return Guid(normal)


class HnsKind(enum.Enum):
    """Object kinds; the value is the word in the DLL's function names."""

    NETWORK = "Network"
    ENDPOINT = "Endpoint"
    LOAD_BALANCER = "LoadBalancer"

    def __str__(self) -> str:
        return {"LoadBalancer": "load balancer"}.get(self.value, self.value.lower())


class HnsVerb(enum.Enum):
    """What a call does; the value is the pattern of the DLL's function names."""

    ENUMERATE = "HcnEnumerate{}s"
    OPEN = "HcnOpen{}"
    QUERY = "HcnQuery{}Properties"
    CREATE = "HcnCreate{}"
    MODIFY = "HcnModify{}"
    DELETE = "HcnDelete{}"
    CLOSE = "HcnClose{}"

    def function(self, kind: HnsKind) -> str:
        return self.value.format(kind.value)


class HnsVersion(NamedTuple):
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class HnsError(DataplaneError):
    """HNS refused, or could not be reached. `call` is the DLL's function, `text` HNS's own words (may be "")."""

    def __init__(self, call: str, hresult: HResult, text: str = "") -> None:
        self.call = call
        self.hresult = hresult
        self.text = text
        super().__init__(f"{call}: {text.strip() or 'no text'} (0x{hresult:08X})")


class HnsApi(Protocol):
    """One method per DLL call. Every method may raise HnsError; none blocks for longer than HNS itself does."""

    def version(self) -> HnsVersion:
        """HNSCall GET /globals/version."""

    def enumerate(self, kind: HnsKind, query: str) -> str:
        """HcnEnumerate<kind>s: a JSON array of GUID texts. `query` is a HostComputeQuery document."""

    def open(self, kind: HnsKind, guid: Guid) -> Handle: ...

    def query(self, kind: HnsKind, handle: Handle, query: str) -> str:
        """HcnQuery<kind>Properties: one JSON object."""

    def create(self, kind: HnsKind, guid: Guid, settings: str, network: Handle | None = None) -> Handle:
        """HcnCreate<kind>; `network` is required for endpoints and forbidden otherwise. ZERO_GUID lets HNS choose."""

    def modify(self, kind: HnsKind, handle: Handle, settings: str) -> None: ...

    def delete(self, kind: HnsKind, guid: Guid) -> None: ...

    def close(self, kind: HnsKind, handle: Handle) -> None:
        """HcnClose<kind>; never raises HnsError."""
