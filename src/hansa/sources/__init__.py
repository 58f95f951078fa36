"""Stage 1, second half: where objects come from.

What comes in: manifests in files, or a Kubernetes API server. What goes out: batches of `hansa.api.change.Change`, in
order, and only differences. Who calls it: the engine, and one-shot commands by `hansa.sources.files.read_once`.
What it must never do: decide anything about services, or let the loss of a source look like the loss of an object.
Evidence: service-semantics sections 1 and 17 (I1-I4); operations.md section 8.

>>> import json
>>> from hansa.sources.manifests import differences, read_manifest
>>> from hansa.testing import manifest_service
>>> before = read_manifest(json.dumps(manifest_service("web")).encode(), name="web.json")
>>> after = read_manifest(json.dumps(manifest_service("api")).encode(), name="web.json")
>>> [(type(change).__name__, str(change.key)) for change in differences(before.objects, after.objects)]
[('Upsert', 'Service d/api'), ('Delete', 'Service d/web')]
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from hansa.api.change import Change, Synced
from hansa.api.objects import Kind
from hansa.services.model import GivenView

News = Change | GivenView
"""What a source says: of API objects, or, if a brain does stage 2 elsewhere, what came of them for this node."""


class Source(Protocol):
    """A stream of batches that never ends by itself; trouble is waited out inside and shown in `status`."""

    def changes(self) -> AsyncIterator[tuple[News, ...]]:
        """Batches of changes. For each watched kind a `Synced` comes once its first list is complete."""

    @property
    def status(self) -> str:
        """One line for people: `connected`, `retrying in 3 s: connection refused`, ..."""

    @property
    def troubled(self) -> bool:
        """Whether something of it cannot be read at the moment; what it said before stays in force."""


async def gather(source: Source) -> tuple[News, ...]:
    """Everything that a source holds now, for commands that look once: batches up to the last kind's first Synced."""
    found: list[News] = []
    missing = set(Kind)
    async for batch in source.changes():
        found.extend(batch)
        missing -= {change.kind for change in batch if isinstance(change, Synced)}
        if not missing:
            break
    return tuple(found)
