"""Which dataplane a command takes, and what `render --dataplane nftables` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import yaml
from tests.command import Hansa

from hansa.cli import planes
from hansa.demo import cluster_manifests
from hansa.errors import ConfigError
from hansa.testing import L1, R1, WEB, endpoint_slice, manifest, node, service


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    items = [
        node("n1", addresses=["192.0.2.1"]),
        WEB,
        service("idle", cluster_ips=["10.96.0.20"]),
        service("sticky", cluster_ips=["10.96.0.30"], affinity_timeout_s=60),
        endpoint_slice("web-a", [L1, R1]),
        endpoint_slice("sticky-a", [L1], service="sticky"),
    ]
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump_all([manifest(one) for one in items]), encoding="utf-8")
    return str(file)


# -- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "name", "hns", "chosen"),
    [
        ("linux", "", "", "nftables"),
        ("win32", "", "", "windows"),
        ("darwin", "", "", "nftables"),
        ("linux", "", "emulator", "windows"),
        ("linux", "windows", "", "windows"),
        ("win32", "nftables", "", "nftables"),
        ("linux", "windows", "remote:x", "windows"),
    ],
)
def test_what_is_given_counts_then_an_hns_then_the_system(platform: str, name: str, hns: str, chosen: str) -> None:
    with mock.patch.object(sys, "platform", platform):
        assert planes.choose(name, hns) == chosen


@pytest.mark.parametrize(("name", "hns"), [("ebpf", ""), ("nftables", "emulator")])
def test_what_cannot_be_is_refused(name: str, hns: str) -> None:
    with pytest.raises(ConfigError):
        planes.choose(name, hns)


def test_an_emulated_hns_beside_nftables_is_a_fault_of_the_arguments(hansa: Hansa, cluster: str) -> None:
    common = ("--source", cluster, "--node-name", "n1", "--dataplane", "nftables")
    code, _, err = hansa("plan", *common, "--hns", "emulator")
    assert (code, err) == (
        2,
        "hansa: configuration: --hns: the dataplane nftables has no HNS (leave one of the two out)\n",
    )


# -- render ----------------------------------------------------------------------------------------------------------


def test_the_text_is_that_of_both_families(hansa: Hansa, cluster: str) -> None:
    code, out, err = hansa("render", "--source", cluster, "--node-name", "n1", "--dataplane", "nftables")
    assert (code, err) == (0, "")
    assert out.startswith("table ip hansa\ndelete table ip hansa\ntable ip hansa {\n")
    assert "\n\ntable ip6 hansa\ndelete table ip6 hansa\ntable ip6 hansa {\n" in out
    assert '10.96.0.10 . tcp . 80 comment "d/web:http" : 2:2' in out
    assert '10.96.0.20 . tcp . 80 comment "d/idle:http" : 1:2' in out
    assert "2:2 : goto pick-2" in out


def test_windows_options_do_not_disturb_it(hansa: Hansa, cluster: str) -> None:
    common = ("render", "--source", cluster, "--node-name", "n1", "--dataplane", "nftables")
    assert hansa(*common) == hansa(*common, "--network", "l2bridge", "--build", "ws2019")


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_objects_as_data(hansa: Hansa, cluster: str, output: str, load: Callable[[str], dict[str, object]]) -> None:
    _, out, _ = hansa("render", "--source", cluster, "--node-name", "n1", "--dataplane", "nftables", "-o", output)
    found = load(out)
    assert (found["kind"], found["node"]) == ("NftablesTables", "n1")
    tables = found["tables"]
    assert isinstance(tables, list)
    assert [(one["family"], one["name"]) for one in tables] == [("ip", "hansa"), ("ip6", "hansa")]
    sets = {one["name"]: one for one in tables[0]["sets"]}
    assert {"key": "10.96.0.20 . tcp . 80", "data": "1:2", "for": "d/idle:http"} in sets["services"]["elements"]
    assert {"key": "1:2", "verdict": "goto refuse"} in sets["picks"]["elements"]
    assert {"key": "10.96.0.10 . tcp . 80 . 1:1", "data": "10.1.1.11 . 8080"} in sets["slots"]["elements"]
    assert {"key": "10.1.1.11 . 10.1.1.11"} in sets["hairpins"]["elements"]
    assert sets["affinity"]["elements"] is None  # packets write it
    chains = {one["name"]: one for one in tables[0]["chains"]}
    assert (chains["prerouting"]["hook"], chains["prerouting"]["priority"]) == ("prerouting", -100)
    assert chains["refuse"]["rules"] == ["reject"]


def test_one_line_per_verdict(hansa: Hansa, cluster: str) -> None:
    _, out, _ = hansa("render", "--source", cluster, "--node-name", "n1", "--dataplane", "nftables", "-o", "table")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "d/web:http 10.96.0.10:80/tcp everybody goto pick-2 10.1.1.11:8080" in lines
    assert "d/idle:http 10.96.0.20:80/tcp everybody goto refuse -" in lines
    assert "d/sticky:http 10.96.0.30:80/tcp everybody goto pick-sticky-60s-1 10.1.1.11:8080" in lines


def test_askers_are_told_apart_where_the_table_does(hansa: Hansa, tmp_path: Path) -> None:
    """externalTrafficPolicy Local: pods and this node are sent everywhere, others to what is local."""
    file = tmp_path / "demo.yaml"
    file.write_text(cluster_manifests(), encoding="utf-8")
    common = ("--node-name", "win-1", "--dataplane", "nftables", "--set", "clusterCIDR=100.96.0.0/16")
    _, out, _ = hansa("render", "--source", str(file), *common, "-o", "table")
    askers = [line.split()[2] for line in out.splitlines() if "203.0.113.80:80/tcp" in line]
    assert askers == ["everybody", "pods", "this"]


# -- trace -----------------------------------------------------------------------------------------------------------


def test_trace_prints_both_sides(hansa: Hansa, cluster: str) -> None:
    common = ("trace", "--source", cluster, "--node-name", "n1", "--dataplane", "nftables")
    code, out, err = hansa(*common, "10.1.1.5 -> svc/d/web:http")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "10.1.1.5 -> 10.96.0.10:80/tcp, from outside"
    assert out.splitlines()[-1] == "rules and objects agree"
    data = json.loads(hansa(*common, "-o", "json", "10.1.1.5 -> 10.96.0.20:80")[1])
    assert (data["rules"]["verdict"], data["nftables"]["verdict"]) == ("Reject", "Reject")


def test_a_packet_that_cannot_be_understood_and_a_dataplane_without_live_trace(hansa: Hansa, cluster: str) -> None:
    common = ("trace", "--source", cluster, "--node-name", "n1")
    code, _, err = hansa(*common, "--dataplane", "nftables", "hello")
    assert (code, "PACKET: 'hello' is no packet" in err) == (2, True)
    code, _, err = hansa(*common, "--hns", "emulator", "--live", "10.1.1.5 -> svc/d/web")
    assert (code, "real packets are not followed through windows" in err) == (2, True)
    code, _, err = hansa(*common, "--dataplane", "userspace", "10.1.1.5 -> svc/d/web")
    assert (code, "no packet can be followed through userspace" in err) == (2, True)
