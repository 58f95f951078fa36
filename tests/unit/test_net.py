"""Addresses and prefixes as Kubernetes still meets them (service-semantics A11)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.net import IPFamily, Packet, Protocol, address_port, family_of, parse_address, parse_prefix


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("172.30.0.041", "172.30.0.41"),
        ("010.000.000.009", "10.0.0.9"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("FD00::00A", "fd00::a"),
    ],
)
def test_legacy_spellings_give_the_canonical_address(text: str, canonical: str) -> None:
    assert str(parse_address(text)) == canonical


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.-4", "fe80::1%eth0", "10.0.0.1/8"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.1.2.3/16", "10.1.0.0/16"),
        ("010.1.0.0/16", "10.1.0.0/16"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("fd00::1/64", "fd00::/64"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_prefixes_lose_their_host_bits(text: str, canonical: str) -> None:
    assert str(parse_prefix(text)) == canonical


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.0/", "10.0.0.0/x", "10.0.0.0/33", "fd00::/129", "::ffff:1.2.3.4/64"]
)
def test_what_is_no_prefix_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="is not a CIDR"):
        parse_prefix(text)


@given(st.ip_addresses())
def test_writing_and_reading_are_inverse(address) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    if getattr(address, "scope_id", None) is None:
        assert parse_address(str(address)) == (mapped or address)


def test_endpoints_and_packets_read_like_urls() -> None:
    v6 = parse_address("fd00::1")
    assert address_port(v6, 80) == "[fd00::1]:80"
    assert family_of(v6) is IPFamily.IPV6
    packet = Packet(parse_address("10.1.1.5"), parse_address("10.96.0.10"), Protocol.TCP, 80)
    assert str(packet) == "10.1.1.5 -> 10.96.0.10:80/tcp"
    assert str(Packet(packet.source, packet.destination, Protocol.ICMP, None)) == "10.1.1.5 -> 10.96.0.10/icmp"
