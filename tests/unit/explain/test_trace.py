"""A packet explained: what people may type, the way through the objects, and differences that are found."""

from __future__ import annotations

import pytest
from tests.case_format import all_cases

from hansa.api.change import Synced, Upsert
from hansa.api.objects import ApiObject, Kind
from hansa.dataplanes.nftables.frame import flavour_named
from hansa.dataplanes.nftables.objects import Labelled, Ruleset, pack_number
from hansa.dataplanes.nftables.render import render
from hansa.errors import ConfigError
from hansa.explain.trace import (
    Explanation,
    explain,
    explain_by_nftables,
    explanation_data,
    explanation_lines,
    read_packet,
)
from hansa.net import IPFamily, parse_address
from hansa.pipeline import Pipeline
from hansa.rules.model import Forward, RuleChanges
from hansa.testing import L1, NODE, NODE_ADDRESSES, R1, WEB, config, endpoint_slice, port, service


def standing(*more: ApiObject) -> tuple[Pipeline, RuleChanges]:
    pipeline = Pipeline(config(), NODE_ADDRESSES)
    items = (NODE, WEB, endpoint_slice("web-a", [L1, R1]), *more)
    pipeline.apply([*(Upsert(one) for one in items), *(Synced(kind) for kind in Kind)])
    message = pipeline.take()
    assert message is not None
    return pipeline, message


def read(text: str, *more: ApiObject) -> str:
    return str(read_packet(text, standing(*more)[0]))


DNS = service(
    "dns",
    cluster_ips=["10.96.0.53", "fd00::53"],
    ports=[port("dns", 53, protocol="UDP"), port("dns-tcp", 53), port("metrics", 9153)],
)

# -- what people type ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.1.1.5 -> 10.96.0.10:80/tcp", "10.1.1.5 -> 10.96.0.10:80/tcp"),
        ("10.1.1.5->10.96.0.10:80", "10.1.1.5 -> 10.96.0.10:80/tcp"),
        ("pod 10.1.1.5 -> 10.96.0.10:53/UDP", "10.1.1.5 -> 10.96.0.10:53/udp"),
        ("node -> 10.96.0.10:80", "192.0.2.1 -> 10.96.0.10:80/tcp"),
        ("198.51.100.9 -> node:30080", "198.51.100.9 -> 192.0.2.1:30080/tcp"),
        ("2001:db8:9::9 -> node:30080", "2001:db8:9::9 -> [2001:db8::1]:30080/tcp"),
        ("fd01::5 -> [fd00::53]:53/udp", "fd01::5 -> [fd00::53]:53/udp"),
        ("10.1.1.5 -> svc/d/web", "10.1.1.5 -> 10.96.0.10:80/tcp"),
        ("10.1.1.5 -> svc/d/web:http", "10.1.1.5 -> 10.96.0.10:80/tcp"),
        ("10.1.1.5 -> svc/d/web:80/tcp", "10.1.1.5 -> 10.96.0.10:80/tcp"),
        ("10.1.1.5 -> svc/d/dns:dns", "10.1.1.5 -> 10.96.0.53:53/udp"),
        ("10.1.1.5 -> svc/d/dns:53/tcp", "10.1.1.5 -> 10.96.0.53:53/tcp"),
        ("fd01::5 -> svc/d/dns:metrics", "fd01::5 -> [fd00::53]:9153/tcp"),
        ("10.1.1.5 -> 10.96.0.10/icmp", "10.1.1.5 -> 10.96.0.10/icmp"),
        ("10.1.1.005 -> 10.96.000.10:80", "10.1.1.5 -> 10.96.0.10:80/tcp"),
    ],
)
def test_packets_in_words(text: str, meant: str) -> None:
    assert read(text, DNS) == meant


def test_the_interface_counts_for_detectors_that_look_at_it() -> None:
    assert read_packet("10.1.1.5 -> 10.96.0.10:80 via cbr0", standing()[0]).interface == "cbr0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.1.1.5 10.96.0.10:80", "is no packet"),
        ("me -> 10.96.0.10:80", "'me' is not an IP address"),
        ("10.1.1.5 -> 10.96.0.10", "has no port that tcp could have"),
        ("10.1.1.5 -> 10.96.0.10:0", "has no port that tcp could have"),
        ("10.1.1.5 -> 10.96.0.10:70000", "has no port that tcp could have"),
        ("10.1.1.5 -> 10.96.0.10:80/icmp", "has no port that icmp could have"),
        ("10.1.1.5 -> 10.96.0.10:80/quic", "'quic' is no protocol"),
        ("10.1.1.5 -> [fd00::53]:53", "from one address family to the other"),
        ("10.1.1.5 -> svc/d/nobody", "d/nobody is no Service that is handled here"),
        ("10.1.1.5 -> svc/d/web:443", "names no port of d/web (it has http (IPv4, tcp))"),
        ("10.1.1.5 -> svc/d/dns:53", "names several ports of d/dns"),
        ("fd01::5 -> svc/d/web", "names no port of d/web"),
        ("10.1.1.5 -> fd00::53:53", "is no target"),
    ],
)
def test_what_cannot_be_meant_is_said(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(text, DNS)
    assert says in str(raised.value.faults[0])


# -- both ways -------------------------------------------------------------------------------------------------------


def explained(text: str) -> Explanation:
    pipeline, message = standing()
    return explain_by_nftables(read_packet(text, pipeline), pipeline, message)


def test_the_way_is_told_with_its_elements() -> None:
    lines = explanation_lines(explained("198.51.100.9 -> svc/d/web"))
    pick = "pick-masquerade-node-outside-2"
    assert lines == [
        "198.51.100.9 -> 10.96.0.10:80/tcp, from outside",
        "rules:    forward to 10.1.1.11:8080, 10.1.2.21:8080; source becomes the node's",
        "  because traffic policy Cluster: every usable endpoint",
        "  rule    ClusterIP 10.96.0.10:80/tcp of d/web:http",
        "nftables: forward to 10.1.1.11:8080, 10.1.2.21:8080; source becomes the node's",
        "  prerouting: jump dispatch",
        "  dispatch: meta priority set ip daddr . meta l4proto . th dport map @services meta priority vmap @picks",
        '    services: 10.96.0.10 . tcp . 80 comment "d/web:http" : 1a:2',
        f"    picks: 1a:2 : goto {pick}",
        f"  {pick}: ip saddr != 10.1.0.0/16 meta mark set meta mark | 0x00004000",
        f"  {pick}: meta priority set numgen random mod 2 offset 65537 goto to-slots",
        "  to-slots: dnat ip to ip daddr . meta l4proto . th dport . meta priority map @slots",
        "    slots: 10.96.0.10 . tcp . 80 . 1:1 : 10.1.1.11 . 8080",
        "  postrouting: meta mark & 0x00004000 == 0x00004000 "
        "meta mark set meta mark & 0xffffbfff masquerade fully-random",
        "  so this one goes to 10.1.1.11:8080; source becomes the node's",
        "rules and objects agree",
    ]


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("10.1.1.5 -> 10.96.0.10:81", "  so it is refused"),
        ("10.1.1.5 -> 9.9.9.9:80", "  so it goes on as it came"),
    ],
)
def test_how_it_ends(text: str, ending: str) -> None:
    assert explanation_lines(explained(text))[-2:] == [ending, "rules and objects agree"]


def test_as_data() -> None:
    data = explanation_data(explained("10.1.1.5 -> svc/d/web"))
    assert data["origin"] == "pod"
    assert data["rule"] == {"kind": "ClusterIP", "frontend": "10.96.0.10:80/tcp", "owner": "d/web:http"}
    assert data["rules"]["verdict"] == data["nftables"]["verdict"] == "Forward"
    assert data["nftables"]["met"][1]["chain"] == "dispatch"
    assert data["differences"] == []


def bent(change: str) -> tuple[Ruleset, Pipeline]:
    """The table of the standing example, with something wrong in it."""
    pipeline, message = standing()
    rules = [rule for rule in message.rules.values() if rule is not None and rule.key.family is IPFamily.IPV4]
    table, _ = render(rules, message.surroundings, IPFamily.IPV4)
    key = next(key for key, value in table.elements["services"].items() if key.startswith(bytes((10, 96, 0, 10))))
    assert isinstance(table.elements["services"][key], Labelled)
    match change:
        case "gone":
            del table.elements["services"][key]
        case "masquerade":
            every = flavour_named("pick-masquerade-2")
            assert every is not None
            assert every.number is not None
            table.elements["services"][key] = Labelled(pack_number(every.number), "")
        case "endpoint":
            slot = min(one for one in table.elements["slots"] if one.startswith(key))
            table.elements["slots"][slot] = parse_address("10.1.9.9").packed + b"\x1f\x90\0\0"
        case "hairpin":
            table.elements["hairpins"].clear()
    return table, pipeline


@pytest.mark.parametrize(
    ("change", "source", "told"),
    [
        ("gone", "10.1.1.5", ["rules: forward to 10.1.1.11:8080, 10.1.2.21:8080; source stays; objects: reject"]),
        ("masquerade", "10.1.1.5", ["rules: source stays; objects: source becomes the node's"]),
        (
            "endpoint",
            "10.1.1.5",
            ["objects do not lead to 10.1.1.11:8080", "objects lead to 10.1.9.9:8080, which the rules do not"],
        ),
        ("hairpin", "10.1.1.11", ["on the way to 10.1.1.11:8080, objects: source stays; rules say otherwise"]),
        ("hairpin", "10.1.1.5", []),
    ],
)
def test_objects_that_do_something_else_are_found_out(change: str, source: str, told: list[str]) -> None:
    table, pipeline = bent(change)
    found = explain(table, pipeline, read_packet(f"{source} -> svc/d/web", pipeline))
    assert list(found.differences) == told
    assert explanation_lines(found)[-1] == (f"difference: {told[-1]}" if told else "rules and objects agree")


def test_every_packet_of_the_cases_is_explained_without_a_difference() -> None:
    count = 0
    for case in all_cases():
        pipeline = None
        for step in case.steps:
            pipeline = pipeline or Pipeline(case.make_config(), step.host_addresses)
            pipeline.set_host_addresses(step.host_addresses)
            pipeline.apply(step.changes)
            message = pipeline.take(full=True) if step.sync else None
            for line in step.packets if message is not None else ():
                found = explain_by_nftables(line.packet, pipeline, message)
                assert found.differences == (), f"{case.name}: {line.text}"
                assert isinstance(found.wanted, Forward) == (found.fate.endpoint is not None)
                count += 1
    assert count > 200
