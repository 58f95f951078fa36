"""Stage 1, second half: where objects come from.

What comes in: manifests in files, or a Kubernetes API server. What goes out: batches of `hansa.api.change.Change`,
in order. Who calls it: the engine, and one-shot commands (`render`, `plan`) by `hansa.sources.files.read_once`.
What it must never do: decide anything about services. Evidence: service-semantics sections 1 and 17 (I1-I4).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from hansa.api.change import Change, Synced
from hansa.api.objects import Kind


class Source(Protocol):
    """A stream of batches that never ends by itself; trouble is waited out inside and shown in `status`."""

    def changes(self) -> AsyncIterator[tuple[Change, ...]]:
        """Batches of changes. For each watched kind a `Synced` comes once its first list is complete."""

    @property
    def status(self) -> str:
        """One line for people: `connected`, `retrying in 3 s: connection refused`, ..."""


async def gather(source: Source) -> tuple[Change, ...]:
    """Everything that a source holds now, for commands that look once: batches up to the last kind's first Synced."""
    found: list[Change] = []
    missing = set(Kind)
    async for batch in source.changes():
        found.extend(batch)
        missing -= {change.kind for change in batch if isinstance(change, Synced)}
        if not missing:
            break
    return tuple(found)
