"""Rules wait for their Node, but not for ever. Evidence: operations.md 9; service-semantics I6 to I8."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import Kind, ObjectKey
from hansa.net import parse_address
from hansa.sources import News
from hansa.sources.node_gate import (
    ADDRESS_WAIT_S,
    POD_CIDR_WAIT_S,
    AddressesChanged,
    GatedSource,
    NodeFailure,
    NodeGate,
    NodeGone,
    Notice,
    Opened,
    Waiting,
)
from hansa.testing import node

SLICES = Synced(Kind.ENDPOINT_SLICE)
SERVICES = Synced(Kind.SERVICE)
KNOWN = node("n1", addresses=["192.0.2.1"], pod_cidrs=[])
BARE = node("n1", addresses=[])
WITH_PODS = node("n1", addresses=["192.0.2.1"], pod_cidrs=["10.1.0.0/24"])
OTHER_PODS = node("n1", addresses=["192.0.2.1"], pod_cidrs=["10.2.0.0/24"])


def gate(*, pods: bool = False) -> NodeGate:
    return NodeGate("n1", needs_pod_cidrs=pods)


def test_a_node_that_is_known_holds_nothing_up() -> None:
    one = gate()
    assert one.take([SERVICES, Upsert(KNOWN)], 0.0) == (SERVICES, Upsert(KNOWN))
    assert one.take([SLICES], 1.0) == (SLICES,)
    assert one.notices == [Opened(KNOWN)]
    assert (one.due_at, one.status) == (None, "")


@pytest.mark.parametrize("first", [[], [Upsert(BARE)], [Upsert(node("other"))]])
def test_the_first_rules_wait_for_addresses(first: list[News]) -> None:
    one = gate()
    assert one.take([*first, SERVICES, SLICES], 5.0) == (*first, SERVICES)
    assert one.status.startswith("the addresses of Node n1")
    assert one.due_at == 5.0 + ADDRESS_WAIT_S
    assert one.take([], 6.0) == ()
    assert one.notices == [Waiting(one.status, ADDRESS_WAIT_S)], "said once"
    assert one.take([Upsert(KNOWN)], 15.0) == (Upsert(KNOWN), SLICES)
    assert one.notices[1:] == [Opened(KNOWN)]


def test_after_a_while_it_goes_on_without() -> None:
    one = gate()
    one.take([SLICES], 0.0)
    assert one.release(ADDRESS_WAIT_S - 0.1) == ()
    assert one.release(ADDRESS_WAIT_S) == (SLICES,)
    assert one.notices[1:] == [Opened(None)]
    assert one.take([Upsert(KNOWN)], 40.0) == (Upsert(KNOWN),)
    assert one.notices[2:] == [AddressesChanged((), KNOWN.addresses)]


def test_pod_cidrs_are_waited_for_longer_and_their_lack_is_the_end() -> None:
    one = gate(pods=True)
    assert one.take([Upsert(KNOWN), SLICES], 0.0) == (Upsert(KNOWN),)
    assert "podCIDRs" in one.status
    assert one.release(ADDRESS_WAIT_S) == ()
    assert one.due_at == POD_CIDR_WAIT_S
    with pytest.raises(NodeFailure, match=r'^timeout waiting for PodCIDR allocation on node "n1"$'):
        one.release(POD_CIDR_WAIT_S)
    absent = gate(pods=True)
    absent.take([SLICES], 0.0)
    with pytest.raises(NodeFailure, match=r'^timeout waiting for node "n1" to exist$'):
        absent.release(POD_CIDR_WAIT_S)


def test_pod_cidrs_that_come_in_time() -> None:
    one = gate(pods=True)
    one.take([Upsert(KNOWN), SLICES], 0.0)
    assert one.take([Upsert(WITH_PODS)], 200.0) == (Upsert(WITH_PODS), SLICES)


def test_changed_pod_cidrs_are_the_end_where_pods_are_recognised_by_them() -> None:
    one = gate(pods=True)
    one.take([Upsert(WITH_PODS), SLICES], 0.0)
    with pytest.raises(NodeFailure, match=r"changed from 10\.1\.0\.0/24 to 10\.2\.0\.0/24"):
        one.take([Upsert(OTHER_PODS)], 1.0)
    other = gate()
    other.take([Upsert(WITH_PODS), SLICES], 0.0)
    assert other.take([Upsert(OTHER_PODS)], 1.0) == (Upsert(OTHER_PODS),)


def test_changed_addresses_and_a_deleted_node_are_told_and_go_on() -> None:
    one = gate()
    one.take([Upsert(KNOWN), SLICES], 0.0)
    moved = node("n1", addresses=["192.0.2.2"])
    gone = Delete(ObjectKey(Kind.NODE, "", "n1"))
    assert one.take([Upsert(moved), Upsert(moved), gone, gone], 1.0) == (Upsert(moved), Upsert(moved), gone, gone)
    assert one.notices[1:] == [
        AddressesChanged((parse_address("192.0.2.1"),), (parse_address("192.0.2.2"),)),
        NodeGone("n1"),
    ]


class Listed:
    """A source that says what it is given, and then nothing more."""

    status = "listed"
    troubled = False

    def __init__(self, *batches: tuple[News, ...]) -> None:
        self._batches = batches
        self.is_closed = False

    async def changes(self) -> AsyncIterator[tuple[News, ...]]:
        try:
            for batch in self._batches:
                yield batch
            await asyncio.Event().wait()
        finally:
            self.is_closed = True


@pytest.mark.asyncio
async def test_a_gated_source_says_the_same_and_closes_the_one_behind_it() -> None:
    told: list[Notice] = []
    behind = Listed((Upsert(KNOWN), SERVICES), (SLICES,))
    source = GatedSource(behind, gate(), tell=told.append, fail=lambda _: None)
    batches = source.changes()
    assert [await anext(batches), await anext(batches)] == [(Upsert(KNOWN), SERVICES), (SLICES,)]
    assert told == [Opened(KNOWN)]
    await batches.aclose()  # type: ignore[attr-defined]
    assert behind.is_closed


@pytest.mark.asyncio
async def test_a_gated_source_shows_what_it_waits_for_and_ends_when_it_has_to() -> None:
    failures: list[NodeFailure] = []
    behind = Listed((Upsert(WITH_PODS),), (SLICES,), (Upsert(OTHER_PODS),))
    source = GatedSource(behind, gate(pods=True), tell=lambda _: None, fail=failures.append)
    assert [batch async for batch in source.changes()] == [(Upsert(WITH_PODS),), (SLICES,)]
    assert len(failures) == 1
    waiting = GatedSource(Listed((SERVICES, SLICES)), gate(), tell=lambda _: None, fail=failures.append)
    batches = waiting.changes()
    assert await anext(batches) == (SERVICES,)
    assert waiting.status == "listed; waiting for the addresses of Node n1, which is not there yet"
    assert not waiting.troubled
    await batches.aclose()  # type: ignore[attr-defined]
