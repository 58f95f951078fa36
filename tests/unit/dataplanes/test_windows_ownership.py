"""Which HNS objects are ours (windows-proxy H.5), the journal, and when refused things are tried again (H.6)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.dataplanes.windows_node import HOST_MAC, SERVICE_CIDR

from hansa.dataplanes.windows.backoff import Backoff
from hansa.dataplanes.windows.journal import REWRITE_BEYOND, JournalFile
from hansa.dataplanes.windows.objects import conjured_mac, kube_proxy_mac
from hansa.dataplanes.windows.observe import claims_of
from hansa.dataplanes.windows.ownership import (
    OWNER,
    Journal,
    Ownership,
    Standing,
    balancer_guid,
    endpoint_guid,
    read_journal,
)
from hansa.hns.api import Guid, parse_guid
from hansa.hns.errors import ErrorClass
from hansa.hns.schema import EndpointFlags, HnsEndpoint, HnsLoadBalancer, IpConfiguration, PortMapping
from hansa.net import IPFamily, Protocol, parse_address
from hansa.rules.model import FrontendKey

NETWORK = Guid("6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001")
SOME = Guid("A90BE7D2-1F60-4C35-8A51-20B6D1C3E101")
VIP = parse_address("10.96.0.10")
FRONTEND = FrontendKey(IPFamily.IPV4, VIP, Protocol.TCP, 80)
FAR = parse_address("10.40.4.7")
FAR_V6 = parse_address("fd00:1::1:2:304")


def balancer(guid: Guid = SOME, owner: str = "", vips: tuple[str, ...] = ("10.96.0.10",)) -> HnsLoadBalancer:
    return HnsLoadBalancer(
        guid=guid,
        owner=owner,
        frontend_vips=tuple(parse_address(vip) for vip in vips),
        port_mappings=(PortMapping(protocol=6, internal_port=8080, external_port=80),),
    )


@pytest.mark.parametrize(
    "value, expected",
    [
        (balancer(guid=balancer_guid(FRONTEND)), Standing.OURS),
        (balancer(guid=balancer_guid(FRONTEND, 7)), Standing.OURS),
        (balancer(owner=OWNER, vips=("10.96.0.10", "10.96.0.11")), Standing.OURS),
        (balancer(), Standing.UNMARKED),
        (balancer(owner="somebody"), Standing.FOREIGN),
        (balancer(guid=balancer_guid(FRONTEND), owner="somebody"), Standing.FOREIGN),
        (balancer(vips=("10.96.0.10", "10.96.0.11")), Standing.FOREIGN),
        (HnsLoadBalancer(guid=SOME), Standing.FOREIGN),
    ],
    ids=["guid", "generation", "owner", "unmarked", "owner-other", "guid-but-owner", "two-vips", "partial"],
)
def test_standing_of_load_balancers(value: HnsLoadBalancer, expected: Standing) -> None:
    assert Ownership().of_balancer(value, claims_of(value)) is expected


def test_the_journal_is_a_mark() -> None:
    value = balancer(vips=("10.96.0.10", "10.96.0.11"))
    assert Ownership(journal={SOME}).of_balancer(value, claims_of(value)) is Standing.OURS


def far(mac: str, *, address: object = FAR, remote: bool = True, guid: Guid = SOME, owner: str = "") -> HnsEndpoint:
    return HnsEndpoint(
        guid=guid,
        owner=owner,
        ip_configurations=(IpConfiguration(address),),  # type: ignore[arg-type]
        mac_address=mac,
        flags=EndpointFlags.REMOTE if remote else EndpointFlags(0),
    )


@pytest.mark.parametrize(
    "value, expected",
    [
        (far("", guid=endpoint_guid(NETWORK, FAR)), Standing.OURS),
        (far("", owner=OWNER), Standing.OURS),
        (far(conjured_mac(FAR)), Standing.UNMARKED),
        (far(conjured_mac(FAR_V6), address=FAR_V6), Standing.UNMARKED),
        (far(kube_proxy_mac(FAR_V6), address=FAR_V6), Standing.UNMARKED),
        (far(HOST_MAC, address=VIP), Standing.UNMARKED),
        (far(HOST_MAC), Standing.FOREIGN),
        (far("02-AA-00-00-00-01"), Standing.FOREIGN),
        (far(conjured_mac(FAR), owner="cni"), Standing.FOREIGN),
        (far(conjured_mac(FAR), remote=False), Standing.FOREIGN),
        (far("", remote=False, owner=OWNER), Standing.FOREIGN),
    ],
    ids=[
        "guid",
        "owner",
        "mac",
        "mac-v6",
        "kube-proxy-v6",
        "service-vip",
        "host-mac-elsewhere",
        "other-mac",
        "other-owner",
        "local",
        "local-of-ours",
    ],
)
def test_standing_of_endpoints(value: HnsEndpoint, expected: Standing) -> None:
    """I1: an endpoint without the remote flag is foreign, whatever is on it."""
    ownership = Ownership(service_cidrs=(SERVICE_CIDR,), host_mac=HOST_MAC)
    assert ownership.of_endpoint(value, NETWORK) is expected


@pytest.mark.parametrize(
    "takeover, marks_kept, rewrite, delete",
    [(True, True, True, True), (True, False, True, True), (False, False, True, False), (False, True, False, False)],
)
def test_what_takeover_allows(takeover: bool, marks_kept: bool, rewrite: bool, delete: bool) -> None:
    """At a desired frontend an unmarked load balancer may be our own, unless our marks are known to be kept."""
    ownership = Ownership(takeover=takeover, marks_kept=marks_kept, grace_over=True, service_cidrs=(SERVICE_CIDR,))
    assert ownership.may_rewrite(Standing.UNMARKED) is rewrite
    assert ownership.may_delete_balancer(Standing.UNMARKED, FRONTEND) is delete
    assert ownership.may_delete_endpoint(Standing.UNMARKED) is takeover
    assert not ownership.may_rewrite(Standing.FOREIGN)


@pytest.mark.parametrize(
    "frontend, grace_over, expected",
    [
        (FRONTEND, True, True),
        (FRONTEND, False, False),
        (FRONTEND._replace(address=parse_address("203.0.113.7")), True, False),
        (FRONTEND._replace(address=None, port=30080), True, True),
        (FRONTEND._replace(address=None, port=8080), True, False),
    ],
    ids=["cluster-ip", "too-early", "external-ip", "node-port", "other-port"],
)
def test_leftovers_that_takeover_deletes(frontend: FrontendKey, grace_over: bool, expected: bool) -> None:
    ownership = Ownership(takeover=True, grace_over=grace_over, service_cidrs=(SERVICE_CIDR,))
    assert ownership.may_delete_balancer(Standing.UNMARKED, frontend) is expected


def test_derived_guids_are_guids_and_differ() -> None:
    found = {balancer_guid(FRONTEND), balancer_guid(FRONTEND, 1), balancer_guid(FRONTEND._replace(port=81))}
    found |= {endpoint_guid(NETWORK, FAR), endpoint_guid(SOME, FAR), endpoint_guid(NETWORK, FAR_V6)}
    assert len(found) == 6
    assert all(parse_guid(guid) == guid for guid in found)


# --- journal ---

guids = st.integers(0, 15).map(lambda number: Guid(f"00000000-0000-0000-0000-0000000000{number:02X}"))


@given(st.lists(st.tuples(st.booleans(), guids)))
def test_a_journal_survives_its_file(entries: list[tuple[bool, Guid]]) -> None:
    journal = Journal()
    for made, guid in entries:
        (journal.record_made if made else journal.record_deleted)(guid)
    assert read_journal(journal.news).made == journal.made
    assert read_journal(journal.lines()).made == journal.made


def test_journal_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    file = JournalFile(str(path))
    journal = file.load()
    journal.record_made(SOME)
    journal.record_made(NETWORK)
    journal.record_deleted(NETWORK)
    journal.record_taken_over()
    journal.record_not_echoed("source VIP")
    file.append(journal)
    assert journal.news == []
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5
    again = JournalFile(str(path)).load()
    assert (again.made, again.taken_over, again.not_echoed) == ({SOME}, True, {"source VIP"})
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def test_intents_survive_until_it_is_known_what_came_of_them(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "journal"))
    journal = file.load()
    journal.record_intent("10.96.0.10:80/tcp", '{"FrontendVIPs":["10.96.0.10"]}', lasting=True)
    journal.record_intent("endpoint 10.40.4.7", "{}", lasting=True)
    journal.record_intent("10.96.0.11:80/tcp", "{}", lasting=False)
    journal.record_settled("endpoint 10.40.4.7", "{}")
    file.append(journal)
    for _ in range(2):  # as appended, and as shortened
        again = JournalFile(str(tmp_path / "journal")).load()
        assert list(again.intents) == [("10.96.0.10:80/tcp", '{"FrontendVIPs":["10.96.0.10"]}')]


def test_a_journal_stays_short_on_a_node_where_pods_come_and_go(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "journal"))
    journal = file.load()
    journal.record_made(NETWORK)
    for _ in range(3 * REWRITE_BEYOND):
        journal.record_made(SOME)
        journal.record_deleted(SOME)
        file.append(journal)
    assert len((tmp_path / "journal").read_text(encoding="utf-8").splitlines()) <= REWRITE_BEYOND + 2
    assert JournalFile(str(tmp_path / "journal")).load().made == {NETWORK}


def test_a_damaged_journal_costs_marks_only(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"\xff\xfe\x00garbage\n+" + SOME.encode() + b"\n\n*?\n+torn")
    assert SOME in JournalFile(str(path)).load().made


def test_no_journal_path_means_memory_only() -> None:
    file = JournalFile("")
    journal = file.load()
    journal.record_made(SOME)
    file.append(journal)
    assert journal.made == {SOME}
    assert file.fault == ""


# --- backoff ---


def pauses(error_class: ErrorClass, count: int, seed: int = 1) -> list[float]:
    backoff, now, found = Backoff(random.Random(seed)), 100.0, []
    for _ in range(count):
        backoff.due(now)
        retry = backoff.fail(FRONTEND, error_class, "no")
        found.append(retry.until - now)
        now = retry.until
    return found


def test_transient_pauses_double_to_half_a_minute_and_spread() -> None:
    expected = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    found = pauses(ErrorClass.TRANSIENT, 7)
    assert all(0.8 * want <= got <= 1.2 * want for want, got in zip(expected, found, strict=True))
    assert found != pauses(ErrorClass.TRANSIENT, 7, seed=2)


def test_conflicts_and_exhaustion_wait_up_to_five_minutes() -> None:
    assert pauses(ErrorClass.CONFLICT, 9) == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0]
    assert pauses(ErrorClass.EXHAUSTED, 5) == [30.0, 60.0, 120.0, 240.0, 300.0]


def test_rejected_is_tried_again_slowly() -> None:
    found = pauses(ErrorClass.REJECTED, 8)
    expected = [60.0, 120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0, 1800.0]
    assert all(0.8 * want <= got <= 1.2 * want for want, got in zip(expected, found, strict=True))


def test_what_is_final_has_no_retry_and_other_keys_do_not_wait() -> None:
    backoff = Backoff(random.Random(1))
    backoff.due(100.0)
    backoff.fail(FRONTEND, ErrorClass.REJECTED, "no", final=True)
    assert FRONTEND in backoff
    assert FAR not in backoff
    assert backoff.next_at() is None
    backoff.clear(FRONTEND)
    assert FRONTEND not in backoff


def test_another_kind_of_failure_starts_anew() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(4):
        backoff.due(0.0)
        backoff.fail(FRONTEND, ErrorClass.CONFLICT, "no")
    assert backoff.fail(FRONTEND, ErrorClass.EXHAUSTED, "no").until == 30.0
    assert backoff.due(31.0) == [FRONTEND]
