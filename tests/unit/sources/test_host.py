"""This machine's own addresses: every local address counts, loopback never (service-semantics N10)."""

from hansa.sources.host import read_host


def test_no_loopback_and_only_canonical_addresses() -> None:
    facts = read_host()
    assert facts.hostname
    assert not any(address.is_loopback for address in facts.addresses)
    assert facts.macs.keys() <= facts.addresses
    assert all(len(mac) == 17 and mac.count("-") == 5 for mac in facts.macs.values())
