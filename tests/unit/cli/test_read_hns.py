"""`hansa hns ls` on a node where things happen meanwhile: what vanishes or cannot be read costs only itself."""

from __future__ import annotations

import pytest

from hansa.cli.options import read_hns
from hansa.hns.api import HnsError, HnsKind, HnsVerb
from hansa.hns.emulator import Call, Emulator, Fault, Refuse, l2bridge_node
from hansa.hns.record import E_FAIL
from hansa.hns.schema import HnsEndpoint


def node(*pods: str) -> Emulator:
    emulator = l2bridge_node()
    for address in pods:
        emulator.add_pod(address)
    return emulator


def names(endpoints: tuple[HnsEndpoint, ...]) -> list[str]:
    return [one.name for one in endpoints]


@pytest.mark.parametrize("verb", [HnsVerb.OPEN, HnsVerb.QUERY])
def test_an_endpoint_that_is_deleted_while_it_is_read_is_left_out(verb: HnsVerb) -> None:
    emulator = node("10.40.3.10", "10.40.3.11")
    doomed = emulator.endpoints()[1]

    def delete(call: Call) -> None:
        if call.verb is verb and call.guid == doomed.guid and doomed in emulator.endpoints():
            emulator.remove(HnsKind.ENDPOINT, doomed.guid)

    emulator.watch(delete)
    listing = read_hns(emulator)
    assert names(listing.endpoints) == ["cbr0", "pod-10.40.3.11_eth0"]
    assert listing.malformed == ()
    assert emulator.open_handles == 0


@pytest.mark.parametrize("times", [1, 2])
def test_a_refusal_that_stays_is_named_and_the_rest_is_listed(times: int) -> None:
    emulator = node("10.40.3.10")
    emulator.faults.add(Fault(effect=Refuse(E_FAIL, "no"), verb=HnsVerb.QUERY, kind=HnsKind.ENDPOINT, times=times))
    listing = read_hns(emulator)
    cbr0 = next(one for one in emulator.endpoints() if one.name == "cbr0")
    if times == 1:
        assert names(listing.endpoints) == ["cbr0", "pod-10.40.3.10_eth0"]
        assert listing.malformed == ()
    else:
        assert names(listing.endpoints) == ["pod-10.40.3.10_eth0"]
        (line,) = listing.malformed
        assert line.startswith(f"endpoint {cbr0.guid} cannot be read: HcnQueryEndpointProperties: no")


def test_an_hns_that_goes_away_meanwhile_is_an_error() -> None:
    emulator = node("10.40.3.10")
    emulator.faults.add(Fault(effect=Refuse(), kind=HnsKind.ENDPOINT, skip=2, times=None))
    with pytest.raises(HnsError):
        read_hns(emulator)
