"""Entries of the connection table survive the way there and back; interrupted listings are tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.net import IPFamily, Protocol, parse_address
from hansa.netlink import codec, conntrack
from hansa.netlink.codec import Listing, Message
from hansa.netlink.conntrack import Entry

UDP = Protocol.UDP
PORTS = st.integers(0, 0xFFFF)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    family = draw(st.sampled_from(IPFamily))
    width = 4 if family is IPFamily.IPV4 else 16
    address = st.binary(min_size=width, max_size=width)
    ends = [draw(address), draw(PORTS), draw(address), draw(PORTS), draw(address), draw(PORTS)]
    return Entry(family, draw(st.sampled_from([6, 17, 132])), *ends, number=draw(st.integers(0, 2**32 - 1)))


@given(entries())
def test_entries_come_back(entry: Entry) -> None:
    expected = entry if entry.protocol == 17 else None
    assert conntrack.decode_entry(conntrack.encode_entry(entry), entry.family, UDP) == expected


@given(entries(), st.integers(0, 3))
def test_entries_with_unusual_tuples_come_back(entry: Entry, zone: int) -> None:
    """A zone of one direction stands inside the tuple; the common one is 0."""
    parts = dict(codec.attributes(conntrack.encode_entry(entry), 4))
    parts[1] += codec.attribute(3, zone.to_bytes(2, "big"))
    payload = bytes(4) + b"".join(codec.attribute(kind, value) for kind, value in parts.items())
    expected = entry if entry.protocol == 17 and zone == 0 else None
    assert conntrack.decode_entry(payload, entry.family, UDP) == expected


def test_entries_in_a_zone_are_not_ours() -> None:
    entry = Entry(IPFamily.IPV4, 17, bytes(4), 1, bytes(4), 2, bytes(4), 3, 9)
    payload = conntrack.encode_entry(entry)
    assert conntrack.decode_entry(payload + codec.attribute(18, b"\0\0"), IPFamily.IPV4, UDP) == entry
    assert conntrack.decode_entry(payload + codec.attribute(18, b"\0\1"), IPFamily.IPV4, UDP) is None


def test_an_entry_of_icmp_is_another_protocols() -> None:
    """It has no ports, so it does not lie as the others do."""
    addresses = codec.nested(1, [codec.attribute(1, bytes(4)), codec.attribute(2, bytes(4))])
    ends = [addresses, codec.nested(2, [codec.attribute(1, b"\1"), codec.attribute(4, b"\0\1")])]
    payload = bytes(4) + codec.nested(1, ends) + codec.nested(2, ends) + codec.be32(12, 5)
    assert conntrack.decode_entry(payload, IPFamily.IPV4, UDP) is None


def test_an_entry_is_named_for_people() -> None:
    packed = [parse_address(text).packed for text in ("10.1.1.5", "10.96.0.10", "10.1.1.11")]
    entry = Entry(IPFamily.IPV4, 17, packed[0], 40000, packed[1], 53, packed[2], 5353, 1)
    assert str(entry) == "10.1.1.5:40000 -> 10.96.0.10:53, answered by 10.1.1.11:5353"


@pytest.mark.parametrize(
    ("interruptions", "tries", "whole"), [(0, 1, True), (1, 2, True), (4, 5, True), (5, 5, False), (9, 5, False)]
)
def test_a_listing_is_tried_five_times(interruptions: int, tries: int, whole: bool) -> None:
    """K9: EINTR twice, then ok; after five, the last attempt is what there is."""
    made: list[Listing] = []

    def attempt() -> Listing:
        made.append(Listing([Message(0, 0, len(made), 0, b"")], len(made) < interruptions))
        return made[-1]

    found = codec.list_until_whole(attempt, 5)
    assert len(made) == tries
    assert found is made[-1]
    assert found.interrupted is not whole
