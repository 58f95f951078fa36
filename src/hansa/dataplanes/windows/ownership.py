"""Which HNS objects are ours, and which GUIDs we ask for. Pure; the journal's file is `journal.py`.

HNS objects carry no comment, so several marks are used, strongest first: a GUID derived from the object's key, the
`Owner` field, the journal of GUIDs we made, and for the rest the shape of the object. Evidence: windows-proxy H.5.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hansa.dataplanes.windows.objects import conjured_mac, kube_proxy_mac
from hansa.hns.api import Guid
from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer
from hansa.net import Address, Prefix
from hansa.rules.model import FrontendKey

OWNER = "hansa"
_NAMESPACE = uuid.UUID("6d3c9f0e-5b57-4d0a-9a5e-7f2c8a1b4e10")
_TAB = "\t"  # between place and document; JSON as it is written here has none
GENERATIONS = 256  # the last byte of a GUID
# The API server's default --service-node-port-range; leftovers of kube-proxy without address are sought in it.
DEFAULT_NODE_PORTS = range(30000, 32768)


def balancer_guid(frontend: FrontendKey, generation: int = 0) -> Guid:
    """The GUID we ask for: name-based, with the generation in the last byte.

    A new generation is used when HNS says that the GUID is taken but does not show by what.
    """
    return _derived(f"load balancer {frontend}", generation)


def endpoint_guid(network: Guid, address: Address, generation: int = 0) -> Guid:
    return _derived(f"endpoint {network} {address}", generation)


def _derived(name: str, generation: int) -> Guid:
    text = str(uuid.uuid5(_NAMESPACE, name)).upper()
    return Guid(f"{text[:-2]}{generation % GENERATIONS:02X}")


def _same_name(guid: Guid, derived: Guid) -> bool:
    return guid[:-2] == derived[:-2]


class Standing(enum.Enum):
    """What we may do with an object. The order is the strength of the evidence."""

    OURS = 0  # marked: written and deleted freely
    UNMARKED = 1  # no mark at all: taken over where its place is desired, deleted only under takeover
    FOREIGN = 2  # never written; an endpoint may still be referred to


@dataclass(slots=True)
class Ownership:
    """Judges objects. The dataplane keeps the fields up to date.

    journal: GUIDs that we made. takeover: leftovers without mark may be deleted (windows-proxy H.5). marks_kept: HNS is
    known to keep our GUIDs or our Owner, so that an object without either was not made by us. grace_over: enough has
    been seen to delete load balancers without mark. service_cidrs: where ClusterIPs lie; host_mac: of this node's
    interface, "" = unknown.
    """

    journal: set[Guid] = field(default_factory=set)
    takeover: bool = False
    grace_over: bool = False
    marks_kept: bool = False
    service_cidrs: tuple[Prefix, ...] = ()
    host_mac: str = ""

    def of_balancer(self, balancer: HnsLoadBalancer, claims: tuple[FrontendKey, ...]) -> Standing:
        """UNMARKED only with exactly one frontend: whatever serves more was not made by a service proxy."""
        if balancer.owner == OWNER or balancer.guid in self.journal:
            return Standing.OURS
        if balancer.owner:
            return Standing.FOREIGN
        if any(_same_name(balancer.guid, balancer_guid(claim)) for claim in claims):
            return Standing.OURS
        return Standing.UNMARKED if len(claims) == 1 else Standing.FOREIGN

    def of_endpoint(self, endpoint: HnsEndpoint, network: Guid) -> Standing:
        """Whatever is not remote is foreign, even if our marks are on it: it may hold somebody's address (I1)."""
        if not endpoint.remote:
            return Standing.FOREIGN
        if endpoint.owner == OWNER or endpoint.guid in self.journal:
            return Standing.OURS
        if endpoint.owner:
            return Standing.FOREIGN
        if any(_same_name(endpoint.guid, endpoint_guid(network, address)) for address in endpoint.addresses):
            return Standing.OURS
        if len(endpoint.addresses) == 1 and self._proxy_made(endpoint, endpoint.addresses[0]):
            return Standing.UNMARKED
        return Standing.FOREIGN

    def _proxy_made(self, endpoint: HnsEndpoint, address: Address) -> bool:
        mac = endpoint.mac_address
        if mac in (conjured_mac(address), kube_proxy_mac(address)):
            return True
        return bool(self.host_mac) and mac == self.host_mac and self._is_service_address(address)

    def _is_service_address(self, address: Address) -> bool:
        return any(address in prefix for prefix in self.service_cidrs)

    def may_rewrite(self, standing: Standing) -> bool:
        """Whether a load balancer at a desired frontend may be changed or replaced."""
        match standing:
            case Standing.OURS:
                return True
            case Standing.UNMARKED:
                return self.takeover or not self.marks_kept
            case Standing.FOREIGN:
                return False

    def may_delete_balancer(self, standing: Standing, frontend: FrontendKey) -> bool:
        """Whether a load balancer at a frontend that nobody desires may go."""
        if standing is not Standing.UNMARKED:
            return standing is Standing.OURS
        if not (self.takeover and self.grace_over):
            return False
        if frontend.address is None:
            return frontend.port in DEFAULT_NODE_PORTS
        return self._is_service_address(frontend.address)

    def may_delete_endpoint(self, standing: Standing) -> bool:
        """Whether an endpoint that nothing uses may go."""
        return standing is Standing.OURS or (standing is Standing.UNMARKED and self.takeover)


class JournalEntry(enum.Enum):
    """First character of a journal line."""

    MADE = "+"
    DELETED = "-"
    TAKEN_OVER = "!"  # leftovers of another proxy are cleared; from now on takeover is off
    NOT_ECHOED = "?"  # a field that this HNS does not tell back
    INTENDED = ">"  # a document that HNS is about to be asked to make
    SETTLED = "<"  # what came of it is known


@dataclass(frozen=True, slots=True)
class Intent:
    """lasting: the file has it, for a later process. in_doubt: a create was refused and may have left something behind,
    whatever comes of the next one with the same document."""

    lasting: bool
    in_doubt: bool = False


@dataclass(slots=True)
class Journal:
    """What should survive a restart, tolerant of loss. `news` are lines not yet written.

    intents: place (a frontend or an address as text) and document in HCN's words of what HNS was asked to make and of
    which it is not known whether it did. A place may have several: a create that failed may have left something behind
    before the next one asks for something else. They are written only where HNS may keep no mark: there an object
    whose maker was killed before it could note the GUID is recognised by its content.
    """

    made: set[Guid] = field(default_factory=set)
    taken_over: bool = False
    not_echoed: set[str] = field(default_factory=set)
    intents: dict[tuple[str, str], Intent] = field(default_factory=dict)
    news: list[str] = field(default_factory=list)

    def record_made(self, guid: Guid) -> None:
        if guid not in self.made:
            self.made.add(guid)
            self.news.append(f"{JournalEntry.MADE.value}{guid}")

    def record_deleted(self, guid: Guid) -> None:
        if guid in self.made:
            self.made.discard(guid)
            self.news.append(f"{JournalEntry.DELETED.value}{guid}")

    def record_intent(self, place: str, document: str, *, lasting: bool) -> None:
        """lasting: also for a later process; needless where HNS keeps a mark."""
        self.intents[place, document] = Intent(lasting)
        if lasting:
            self.news.append(f"{JournalEntry.INTENDED.value}{place}{_TAB}{document}")

    def record_doubt(self, place: str, document: str) -> None:
        self.intents[place, document] = replace(self.intents[place, document], in_doubt=True)

    def record_settled(self, place: str, document: str) -> None:
        intent = self.intents.pop((place, document), None)
        if intent is not None and intent.lasting:
            self.news.append(f"{JournalEntry.SETTLED.value}{place}{_TAB}{document}")

    def record_taken_over(self) -> None:
        if not self.taken_over:
            self.taken_over = True
            self.news.append(JournalEntry.TAKEN_OVER.value)

    def record_not_echoed(self, name: str) -> None:
        if name not in self.not_echoed:
            self.not_echoed.add(name)
            self.news.append(f"{JournalEntry.NOT_ECHOED.value}{name}")

    def lines(self) -> list[str]:
        """The whole content in its shortest form."""
        taken_over = [JournalEntry.TAKEN_OVER.value] if self.taken_over else []
        not_echoed = [f"{JournalEntry.NOT_ECHOED.value}{name}" for name in sorted(self.not_echoed)]
        made = [f"{JournalEntry.MADE.value}{guid}" for guid in sorted(self.made)]
        lasting = sorted(key for key, intent in self.intents.items() if intent.lasting)
        intents = [f"{JournalEntry.INTENDED.value}{place}{_TAB}{document}" for place, document in lasting]
        return taken_over + not_echoed + made + intents


def read_journal(lines: Iterable[str]) -> Journal:
    """Lines that make no sense are skipped: a lost entry costs a mark, never a wrong write."""
    journal = Journal()
    for line in lines:
        mark, content = line[:1], line[1:].strip()
        if mark == JournalEntry.MADE.value and content:
            journal.made.add(Guid(content))
        elif mark == JournalEntry.DELETED.value:
            journal.made.discard(Guid(content))
        elif mark == JournalEntry.TAKEN_OVER.value:
            journal.taken_over = True
        elif mark == JournalEntry.NOT_ECHOED.value and content:
            journal.not_echoed.add(content)
        elif mark == JournalEntry.INTENDED.value:
            place, tab, document = content.partition(_TAB)
            if tab and place:
                journal.intents[place, document] = Intent(lasting=True)
        elif mark == JournalEntry.SETTLED.value:
            place, _, document = content.partition(_TAB)
            journal.intents.pop((place, document), None)
    return journal
