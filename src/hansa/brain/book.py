"""NodeBook: which node is there, what it was sent, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hansa.sources.kpng.node import NodeReport

# Nodes that went and never came back are kept for people to see, but not without end.
KEPT_ABSENT = 1000


@dataclass(slots=True)
class NodeEntry:
    """One node by one API. streams: how many it has open. Times are monotonic seconds.

    sent_revision: of the last batch up to its Sync. complete_revision: up to which nothing else concerns the node.
    report: None = it has told nothing; localv1 has no words for it.
    """

    name: str
    api: str
    peer: str = ""
    streams: int = 0
    sent_revision: int = 0
    complete_revision: int = 0
    last_seen: float = 0.0
    report: NodeReport | None = None

    @property
    def connected(self) -> bool:
        return self.streams > 0

    @property
    def state(self) -> str:
        """`absent`, `failing`, `behind`, `applied`; `sent` where nothing is reported."""
        if not self.connected:
            return "absent"
        if self.report is None:
            return "sent" if self.sent_revision else "waiting"
        if self.report.failing:
            return "failing"
        return "applied" if self.report.applied_revision >= self.sent_revision > 0 else "behind"


@dataclass(slots=True)
class NodeBook:
    entries: dict[tuple[str, str], NodeEntry] = field(default_factory=dict)

    def join(self, name: str, api: str, *, peer: str, now: float) -> NodeEntry:
        """A stream for this node has begun, or now is for it."""
        entry = self.entries.setdefault((name, api), NodeEntry(name, api))
        entry.peer, entry.last_seen = peer, now
        entry.streams += 1
        return entry

    def leave(self, entry: NodeEntry) -> None:
        entry.streams -= 1
        absent = sorted((one for one in self.entries.values() if not one.connected), key=lambda one: one.last_seen)
        for one in absent[: max(0, len(absent) - KEPT_ABSENT)]:
            del self.entries[one.name, one.api]

    def ordered(self) -> Sequence[NodeEntry]:
        return [self.entries[key] for key in sorted(self.entries)]
