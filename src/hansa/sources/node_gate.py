"""Rules wait until this node knows itself: a source that says it is complete only once the Node is known well enough.

Without the node's addresses the first rules would have node ports at wrong places; without its podCIDRs, mode NodeCIDR
takes every pod for a stranger. `NodeGate` decides and has no clock; `GatedSource` waits.
Evidence: operations.md section 9; service-semantics I6 to I8.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import Kind, Node
from hansa.net import Address
from hansa.sources import News, Source

# kube-proxy's patience: for addresses, after which it goes on without; for podCIDRs, after which it ends.
ADDRESS_WAIT_S = 30.0
POD_CIDR_WAIT_S = 300.0


class NodeFailure(Exception):
    """The process has to end with 1 and start anew; the text is kube-proxy's."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The first rules are held back. longest_s: for how long at most."""

    what: str
    longest_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The first rules may be written. node: None = nobody has shown it, and rules are made without."""

    node: Node | None


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    before: tuple[Address, ...]
    after: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class NodeGone:
    name: str


Notice = Waiting | Opened | AddressesChanged | NodeGone


class NodeGate:
    """Holds back that EndpointSlices are complete, until the Node is known or patience ends.

    needs_pod_cidrs: pods are recognised by them. `notices`: what happened and is not told yet. Times are seconds of one
    clock.
    """

    def __init__(self, node_name: str, *, needs_pod_cidrs: bool) -> None:
        self._name = node_name
        self._needs_pod_cidrs = needs_pod_cidrs
        self._node: Node | None = None
        self._held: Synced | None = None
        self._held_since = 0.0
        self._is_open = False
        self._opened_with: Node | None = None
        self._told = ""
        self.notices: list[Notice] = []

    def take(self, batch: Sequence[News], now: float) -> tuple[News, ...]:
        """What of a batch may go on, with what it sets free. Raises NodeFailure."""
        passed: list[News] = []
        for one in batch:
            match one:
                case Upsert(Node() as node) if node.name == self._name:
                    self._saw(node)
                case Delete(key) if key.kind is Kind.NODE and key.name == self._name and self._node is not None:
                    self._node = None
                    self.notices.append(NodeGone(self._name))
                case Synced(Kind.ENDPOINT_SLICE) if not self._is_open:
                    self._held, self._held_since = one, now
                    continue
            passed.append(one)
        return (*passed, *self.release(now))

    def release(self, now: float) -> tuple[News, ...]:
        """What may go on by now. Raises NodeFailure when podCIDRs have not come in time."""
        if self._held is None:
            return ()
        waited_s = now - self._held_since
        if self._lacks_pod_cidrs:
            if waited_s < POD_CIDR_WAIT_S:
                return self._wait(POD_CIDR_WAIT_S)
            if self._node is None:
                raise NodeFailure(f'timeout waiting for node "{self._name}" to exist')
            raise NodeFailure(f'timeout waiting for PodCIDR allocation on node "{self._name}"')
        if self._lacks_addresses and waited_s < ADDRESS_WAIT_S:
            return self._wait(ADDRESS_WAIT_S)
        self._is_open = True
        self._opened_with = self._node
        self.notices.append(Opened(self._node))
        held, self._held = self._held, None
        return (held,)

    def _wait(self, longest_s: float) -> tuple[News, ...]:
        """Nothing goes on; said once for each thing that is waited for."""
        if self.status != self._told:
            self._told = self.status
            self.notices.append(Waiting(self.status, longest_s))
        return ()

    @property
    def due_at(self) -> float | None:
        """When `release` may have something though nothing was said; None = nothing is held back."""
        if self._held is None:
            return None
        return self._held_since + (POD_CIDR_WAIT_S if self._lacks_pod_cidrs else ADDRESS_WAIT_S)

    @property
    def status(self) -> str:
        """What is waited for, "" = nothing."""
        if self._held is None:
            return ""
        what = "podCIDRs" if self._lacks_pod_cidrs else "addresses"
        return f"the {what} of Node {self._name}" + ("" if self._node else ", which is not there yet")

    @property
    def _lacks_pod_cidrs(self) -> bool:
        return self._needs_pod_cidrs and not (self._node and self._node.pod_cidrs)

    @property
    def _lacks_addresses(self) -> bool:
        return self._node is None or not self._node.addresses

    def _saw(self, node: Node) -> None:
        before, self._node = self._node, node
        first = self._opened_with
        if not self._is_open:
            return
        if self._needs_pod_cidrs and first is not None and node.pod_cidrs != first.pod_cidrs:
            had, has = (", ".join(map(str, one.pod_cidrs)) or "none" for one in (first, node))
            raise NodeFailure(f'podCIDRs of node "{self._name}" changed from {had} to {has}')
        known = before.addresses if before is not None else first.addresses if first is not None else ()
        if node.addresses != known:
            self.notices.append(AddressesChanged(known, node.addresses))


class GatedSource:
    """A source behind a gate. tell: hears of each notice; fail: of the end, in the event loop."""

    def __init__(
        self, source: Source, gate: NodeGate, *, tell: Callable[[Notice], None], fail: Callable[[NodeFailure], None]
    ) -> None:
        self._source = source
        self._gate = gate
        self._tell = tell
        self._fail = fail

    @property
    def status(self) -> str:
        waiting = self._gate.status
        return f"{self._source.status}; waiting for {waiting}" if waiting else self._source.status

    @property
    def troubled(self) -> bool:
        return self._source.troubled

    async def changes(self) -> AsyncIterator[tuple[News, ...]]:
        clock = asyncio.get_running_loop().time
        batches = self._source.changes()
        coming = asyncio.ensure_future(anext(batches))
        try:
            while True:
                due_at = self._gate.due_at
                await asyncio.wait({coming}, timeout=None if due_at is None else max(0.0, due_at - clock()))
                try:
                    if coming.done():
                        news = self._gate.take(coming.result(), clock())
                        coming = asyncio.ensure_future(anext(batches))
                    else:
                        news = self._gate.release(clock())
                except NodeFailure as failure:
                    self._fail(failure)
                    return
                while self._gate.notices:
                    self._tell(self._gate.notices.pop(0))
                if news:
                    yield news
        finally:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
            if isinstance(batches, AsyncGenerator):
                await batches.aclose()
