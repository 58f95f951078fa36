"""hansa plan and doctor on dumps, hns import, cleanup, and the lock: as people type them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.command import Hansa
from tests.unit.dataplanes.windows_node import WindowsNode, local, make_config, make_rule, remote

from hansa.hns.api import HnsKind
from hansa.hns.emulator import WS2022, Emulator, l2bridge_node, overlay_node
from hansa.hns.emulator.server import serve
from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer, PortMapping
from hansa.lock import HostLock
from hansa.net import parse_address

RECORDED = Path(__file__).parent.parent.parent / "recorded"
OLD, NEW = RECORDED / "ws2019-l2bridge", RECORDED / "ws2022-overlay"


def of_node(folder: Path, hns: str) -> tuple[str, ...]:
    return ("--hns", hns, "--source", str(folder / "cluster.yaml"), "--node-name", "win-1")


def symptoms(out: str) -> list[tuple[str, str, str]]:
    return [(each["knownAs"] or "", each["symptom"], each["key"]) for each in json.loads(out)["findings"]]


OLD_FINDINGS = {
    ("F22", "lb-missing-critical", "172.21.0.10:53/tcp"),
    ("F79", "lb-backend-port", "172.21.30.9:443/tcp"),
    ("B7", "lb-degraded", "172.21.30.8:8080/tcp"),
    ("F04", "lb-stale-no-endpoints", "172.21.30.12:80/tcp"),
    ("F11", "lb-missing", "172.21.30.13:80/tcp"),
    ("F49", "lb-names-remote-twin", "172.21.30.7:80/tcp"),
    ("F07", "lb-names-missing-endpoints", "198.51.100.40:80/tcp"),
    ("F49", "endpoint-twin", "10.40.3.15"),
    ("F01", "lb-stale", "172.21.30.99:80/tcp"),
    ("F55", "endpoint-without-pod", "10.40.3.40"),
    ("F42", "lb-healthz-port", "198.51.100.40:10256/tcp"),
    ("F39", "endpoint-leftover", "10.40.2.77"),
}
# What only policy.txt tells: the report has no source VIPs, and no load balancers without port mapping.
OLD_FINDINGS_OF_POLICIES = {
    ("F23", "lb-without-port-mapping", "B15DA6E0-CCF5-57CD-83CD-70151E1A395F"),
    *(
        ("F56", "lb-source-vip-empty", f"{place}")
        for place in (
            "172.21.0.1:443/tcp",
            "172.21.0.10:53/udp",
            "172.21.30.7:80/tcp",
            "172.21.30.8:8080/tcp",
            "172.21.30.9:443/tcp",
            "198.51.100.40:80/tcp",
            "node(IPv4):30480/tcp",
        )
    ),
}
NEW_FINDINGS = {
    ("F63", "endpoint-provider", "10.41.9.8"),
    ("F59", "lb-source-vip-wrong", "172.21.0.10:53/tcp"),
    ("F55", "lb-extra-backends", "172.21.30.9:5432/tcp"),
    ("F47", "endpoint-holds-pod-address", "10.41.7.16"),
    ("F61", "endpoint-service-vip-missing", "172.21.30.9"),
    ("F65", "lb-dsr-lost", "node(IPv4):30480/tcp"),
    ("F49", "endpoint-twin", "10.41.7.15"),
    ("F74", "lb-affinity", "172.21.30.8:8080/tcp"),
    ("F02", "lb-duplicate", "172.21.30.8:8080/tcp"),
    ("F66", "lb-dsr-differs", "172.21.30.7:80/tcp"),
    ("F69", "lb-flag-external", "198.51.100.40:80/tcp"),
    ("F39", "endpoint-leftover", "10.41.8.99"),
}


@pytest.mark.parametrize(
    ("folder", "files", "expected"),
    [
        (OLD, [OLD], OLD_FINDINGS | OLD_FINDINGS_OF_POLICIES),
        (OLD, [OLD / "network.txt", OLD / "endpoint.txt", OLD / "loadbalancerdata.json"], OLD_FINDINGS),
        (NEW, [NEW / "hnsdiag.txt"], NEW_FINDINGS),
    ],
)
@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_a_dump_is_diagnosed(
    hansa: Hansa, command: str, folder: Path, files: list[Path], expected: set[tuple[str, str, str]]
) -> None:
    hns = f"dump:{','.join(str(file) for file in files)}"
    code, out, _ = hansa(command, *of_node(folder, hns), "-o", "json")
    assert code == 0
    assert set(symptoms(out)) == expected


def test_each_finding_has_what_an_operator_needs(hansa: Hansa) -> None:
    _, out, _ = hansa("plan", *of_node(OLD, f"dump:{OLD}"), "-o", "json")
    found = next(each for each in json.loads(out)["findings"] if each["symptom"] == "lb-stale")
    assert found == {
        "severity": "warning",
        "symptom": "lb-stale",
        "kind": "load balancer",
        "key": "172.21.30.99:80/tcp",
        "ids": ["f8a9a87b-d534-54ea-827a-9d32eba7ee0b"],
        "owners": [],
        "text": "no service has this frontend",
        "step": "delete after two checks, as a leftover of another proxy",
        "knownAs": "F01",
        "upstream": ["kubernetes/kubernetes#112836", "kubernetes/kubernetes#112837"],
        "meaning": "load balancer that no service asks for: left over from one that is gone or has changed",
        "remedy": "delete it (`hnsdiag delete loadbalancers ID`)",
    }


def test_the_table_says_the_same(hansa: Hansa) -> None:
    code, out, err = hansa("plan", *of_node(OLD, f"dump:{OLD}"))
    assert code == 0
    line = next(line for line in out.splitlines() if "172.21.30.9:443/tcp" in line and "F79" in line)
    assert line.split()[:2] == ["error", "shop/api:https"]
    assert "8f3371a7-" in line
    assert "lb-backend-port: load balancer sends to a port that its backends do not serve" in out
    assert "Of other software, never touched: 1" in out
    assert "not told of 12 load balancers: distribution, some of their flags; not compared" in err


def test_a_dump_without_takeover_says_that_leftovers_stay(hansa: Hansa) -> None:
    _, out, _ = hansa("doctor", *of_node(OLD, f"dump:{OLD}"), "--set", "takeover=false", "-o", "json")
    steps = {each["symptom"]: each["step"] for each in json.loads(out)["findings"]}
    assert steps["lb-stale"] == steps["endpoint-leftover"] == "nothing: takeover is off"
    assert steps["lb-backend-port"] == "replace", "at its own frontends hansa writes as long as nobody is known to"


def test_the_source_vip_of_a_dump_is_that_of_its_load_balancers_unless_one_is_given(hansa: Hansa) -> None:
    arguments = of_node(NEW, f"dump:{NEW}")
    _, _, err = hansa("plan", *arguments)
    assert "taken as source VIP: 10.41.7.2" in err
    _, out, _ = hansa("plan", *arguments, "--set", "winkernel.sourceVip=10.99.0.2", "-o", "json")
    assert ("F58", "source-vip-outside", "hansa-vx") in symptoms(out)


def test_the_exit_code_says_whether_something_is_wrong(hansa: Hansa, tmp_path: Path) -> None:
    assert hansa("plan", *of_node(OLD, f"dump:{OLD}"), "--exit-code")[0] == 5
    node = healthy_node()
    file = tmp_path / "node.json"
    file.write_text(node.emulator.dump(), encoding="utf-8")
    (tmp_path / "empty.yaml").write_text("kind: List\napiVersion: v1\nitems: []\n", encoding="utf-8")
    arguments = ("--source", str(tmp_path / "empty.yaml"), "--node-name", "n1", "--exit-code")
    assert hansa("doctor", "--hns", f"emulator:{file}", *arguments)[0] == 6, "all there is is left over"
    empty = tmp_path / "other.json"
    empty.write_text(l2bridge_node().dump(), encoding="utf-8")
    code, out, _ = hansa("doctor", "--hns", f"emulator:{empty}", *arguments)
    assert (code, out) == (0, "Nothing is wrong: the host holds what it should.\n")


def test_the_doctor_sees_the_same_in_a_saved_a_served_and_a_listed_node(hansa: Hansa, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    assert hansa("hns", "import", NEW, "-o", file)[0] == 0
    listed = hansa("doctor", *of_node(NEW, f"dump:{NEW}"), "-o", "json")[1]
    saved = hansa("doctor", *of_node(NEW, f"emulator:{file}"), "-o", "json")[1]
    emulator = Emulator.load(file.read_text(encoding="utf-8"))
    machine = dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address)
    with serve(emulator, "127.0.0.1:0", machine=machine) as server:
        arguments = of_node(NEW, f"remote:{server.address}")
        served = hansa("doctor", *arguments, "--set", "winkernel.sourceVip=10.41.7.2", "-o", "json")[1]
    assert json.loads(listed) == json.loads(saved) == json.loads(served)


def test_the_doctor_says_what_it_cannot_look_at(hansa: Hansa) -> None:
    code, _, err = hansa("doctor", "--source", NEW / "cluster.yaml", "--dataplane", "exec:true")
    assert code == 2
    assert "does not know what exec:true needs" in err


# --- import ---


def test_an_imported_node_can_be_planned_for_and_listed(hansa: Hansa, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    code, out, _ = hansa("hns", "import", OLD / "network.txt", OLD / "endpoint.txt", OLD / "policy.txt", "-o", file)
    assert code == 0
    assert out == f"{file}: 2 networks, 14 endpoints, 12 load balancers; Windows Server 2019 (17763), HNS 9.5\n"
    steps = json.loads(hansa("plan", *of_node(OLD, f"emulator:{file}"), "-o", "json")[1])
    assert {"verb": "create", "key": "172.21.0.10:53/tcp"}.items() <= steps[1].items()
    assert "172.21.30.99" in hansa("hns", "ls", "loadbalancers", "--hns", f"emulator:{file}")[1]


def test_the_build_can_be_given(hansa: Hansa, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    assert "HNS 15.4" in hansa("hns", "import", OLD, "-o", file, "--build", "ws2025")[1]


def test_what_cannot_be_read_is_named_and_the_rest_is_imported(hansa: Hansa, tmp_path: Path) -> None:
    text = (NEW / "hnsdiag.txt").read_text(encoding="utf-8").replace('"172.21.30.7"', '"nowhere"')
    (tmp_path / "hnsdiag.txt").write_text(text + '{"ID": \n', encoding="utf-8")
    code, out, err = hansa("hns", "import", tmp_path, "-o", tmp_path / "node.json")
    assert code == 1
    assert "9 load balancers" in out
    assert "FrontendVIPs[0]: 'nowhere' is not an IP address" in err
    assert f"hansa: dump: {tmp_path / 'hnsdiag.txt'}:{text.count(chr(10)) + 2}: broken JSON" in err


def test_a_dump_without_network_needs_the_nodes_address(hansa: Hansa, tmp_path: Path) -> None:
    arguments = ("hns", "import", OLD / "policy.txt", "-o", tmp_path / "node.json")
    code, _, err = hansa(*arguments)
    assert code == 2
    assert "--node-ip" in err
    assert hansa(*arguments, "--node-ip", "192.0.2.21")[0] == 0
    assert hansa(*arguments, "--node-ip", "me")[0] == 2


def test_hns_ls_lists_a_dump(hansa: Hansa) -> None:
    code, out, _ = hansa("hns", "ls", "endpoints", "--hns", f"dump:{NEW}")
    assert code == 0
    assert "a7c3_eth0" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("hns", "import", "/no/such/file", "-o", "x"), "cannot be read: No such file"),
        (("hns", "import", "EMPTY", "-o", "x"), "holds nothing that hansa reads"),
        (("hns", "import", str(OLD), "-o", "/no/such/folder/x"), "cannot be written"),
        (("hns", "import", str(OLD), "-o", "x", "--build", "vista"), "'vista' is no emulated build"),
        (("plan", "--hns", "dump:", "--source", str(OLD / "cluster.yaml"), "--node-name", "win-1"), "dump:FILE"),
    ],
)
def test_errors_say_who_must_act(hansa: Hansa, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = hansa(*(str(tmp_path) if each == "EMPTY" else each for each in arguments))
    assert (code, says in err) == (2, True), err


# --- cleanup ---


def healthy_node(**windows: Any) -> WindowsNode:
    """A node that hansa programs, with objects of others on it."""
    node = WindowsNode(l2bridge_node(WS2022), make_config(**windows))
    node.emulator.add_pod("10.40.3.14")
    node.want(
        make_rule("10.96.0.7:80", (*local("10.40.3.14:8080"), *remote("10.40.4.9:8080"))),
        make_rule("node:30480", local("10.40.3.14:8080")),
    )
    node.settle()
    return node


def add_others(node: WindowsNode) -> set[str]:
    """kube-proxy's, another program's with an Owner, and one at an address that is no service's."""
    pod = next(each.guid for each in node.emulator.endpoints() if each.name.startswith("pod-"))
    return {
        node.emulator.add(
            HnsLoadBalancer(
                endpoints=(pod,),
                source_vip=parse_address("192.0.2.21"),
                frontend_vips=(parse_address(vip),),
                port_mappings=(PortMapping(protocol=6, internal_port=80, external_port=80),),
                owner=owner,
            )
        )
        for vip, owner in (("10.96.0.100", ""), ("10.96.0.101", "others"), ("203.0.113.200", ""))
    }


def guids(emulator: Emulator) -> set[str]:
    values: list[HnsLoadBalancer | HnsEndpoint] = [*emulator.load_balancers(), *emulator.endpoints()]
    return {each.guid for each in values}


def test_cleanup_removes_exactly_what_is_ours(hansa: Hansa) -> None:
    node = healthy_node()
    others = add_others(node)
    local_ones = {each.guid for each in node.emulator.endpoints() if not each.remote}
    with serve(node.emulator, "127.0.0.1:0") as server:
        before = guids(node.emulator)
        code, dry, _ = hansa("cleanup", "--hns", f"remote:{server.address}", "--dry-run", "-o", "json")
        assert (code, guids(node.emulator)) == (0, before), "a dry run deletes nothing"
        code, real, err = hansa("cleanup", "--hns", f"remote:{server.address}", "-o", "json")
    assert (code, err) == (0, "")
    assert guids(node.emulator) == others | local_ones
    dry_keys = {(each["kind"], each["key"]) for each in json.loads(dry)["deleted"]}
    assert dry_keys == {(each["kind"], each["key"]) for each in json.loads(real)["deleted"]}
    assert dry_keys == {
        ("load balancer", "10.96.0.7:80/tcp"),
        ("load balancer", "node(IPv4):30480/tcp"),
        ("remote endpoint", "10.40.4.9"),
    }
    assert json.loads(real)["dryRun"] is False
    assert {each["id"].upper() for each in json.loads(real)["kept"]} == others


def test_cleanup_again_finds_nothing(hansa: Hansa) -> None:
    node = healthy_node()
    with serve(node.emulator, "127.0.0.1:0") as server:
        hansa("cleanup", "--hns", f"remote:{server.address}")
        code, out, _ = hansa("cleanup", "--hns", f"remote:{server.address}")
    assert (code, out) == (0, "0 deleted, 0 of others left alone\n")


def test_the_dry_run_prints_what_would_go(hansa: Hansa, tmp_path: Path) -> None:
    node = healthy_node()
    add_others(node)
    file = tmp_path / "node.json"
    file.write_text(node.emulator.dump(), encoding="utf-8")
    code, out, _ = hansa("cleanup", "--hns", f"emulator:{file}", "--dry-run")
    assert code == 0
    assert "10.96.0.7:80/tcp" in out
    assert "made, or taken over, by hansa" in out
    assert out.endswith("3 would be deleted, 3 of others left alone\n")


def test_cleanup_of_a_saved_node_is_written_back_and_says_so(hansa: Hansa, tmp_path: Path) -> None:
    node = healthy_node()
    others = add_others(node)
    local_ones = {each.guid for each in node.emulator.endpoints() if not each.remote}
    file = tmp_path / "node.json"
    file.write_text(node.emulator.dump(), encoding="utf-8")
    assert "written back" not in hansa("cleanup", "--hns", f"emulator:{file}", "--dry-run")[2]
    assert guids(Emulator.load(file.read_text(encoding="utf-8"))) == guids(node.emulator)
    code, _, err = hansa("cleanup", "--hns", f"emulator:{file}")
    assert (code, err) == (0, f"hansa: the emulated node is written back to {file}\n")
    assert guids(Emulator.load(file.read_text(encoding="utf-8"))) == others | local_ones
    assert hansa("cleanup", "--hns", f"emulator:{file}")[1].startswith("0 deleted")


def test_the_journal_tells_what_is_ours_where_hns_keeps_no_marks(hansa: Hansa, tmp_path: Path) -> None:
    """Without it nothing is: rather too little is deleted than something of others. With it all goes, it included."""
    journal = tmp_path / "journal"
    unmarked = replace(WS2022, keeps_caller_guid=False, echoes_owner=False)
    node = WindowsNode(l2bridge_node(unmarked), make_config(journal_path=str(journal)))
    node.want(make_rule("10.96.0.7:80", remote("10.40.4.9:8080")))
    node.settle()
    setting = ("--set", f"winkernel.journalPath={journal}")
    with serve(node.emulator, "127.0.0.1:0") as server:
        before = guids(node.emulator)
        assert hansa("cleanup", "--hns", f"remote:{server.address}")[0] == 0
        assert guids(node.emulator) == before
        assert hansa("cleanup", "--hns", f"remote:{server.address}", *setting)[0] == 0
    assert not node.emulator.load_balancers()
    assert not [each for each in node.emulator.endpoints() if each.remote]
    assert not journal.exists(), "the next start on this node is a first one"


def test_the_endpoint_of_the_source_vip_is_left_and_named(hansa: Hansa) -> None:
    """Endpoints that are not remote are never deleted, whoever made them."""
    node = WindowsNode(overlay_node(WS2022), make_config(source_vip=(parse_address("10.41.7.2"),)))
    node.want(make_rule("10.96.0.7:80", remote("10.41.8.9:8080")))
    node.settle()
    with serve(node.emulator, "127.0.0.1:0") as server:
        code, _, err = hansa("cleanup", "--hns", f"remote:{server.address}")
    assert code == 0
    assert "left in place: source-VIP endpoint 10.41.7.2" in err
    assert not node.emulator.load_balancers()
    assert parse_address("10.41.7.2") in {a for each in node.emulator.endpoints() for a in each.addresses}


def test_an_endpoint_of_ours_that_others_use_is_left_and_named(hansa: Hansa) -> None:
    node = healthy_node()
    stand_in = next(each.guid for each in node.emulator.endpoints() if each.remote)
    node.emulator.add(
        HnsLoadBalancer(
            owner="others",
            endpoints=(stand_in,),
            source_vip=parse_address("192.0.2.21"),
            frontend_vips=(parse_address("10.96.0.100"),),
            port_mappings=(PortMapping(protocol=6, internal_port=80, external_port=80),),
        )
    )
    with serve(node.emulator, "127.0.0.1:0") as server:
        code, out, err = hansa("cleanup", "--hns", f"remote:{server.address}")
    assert code == 0
    assert "left in place: remote endpoint 10.40.4.9" in err
    assert "2 deleted, 1 of others left alone" in out
    assert stand_in in guids(node.emulator)


def test_a_refusal_is_named_and_ends_with_4(hansa: Hansa) -> None:
    node = healthy_node()
    victim = next(each.guid for each in node.emulator.load_balancers() if each.frontend_vips)
    node.emulator.alter(HnsKind.LOAD_BALANCER, victim, state=4)  # degraded ones refuse to be deleted
    with serve(node.emulator, "127.0.0.1:0") as server:
        code, _, err = hansa("cleanup", "--hns", f"remote:{server.address}")
    assert code == 4
    assert "load balancer 10.96.0.7:80/tcp: HcnDeleteLoadBalancer" in err
    assert [each.guid for each in node.emulator.load_balancers()] == [victim], "the others are gone all the same"


# --- the lock ---


@pytest.mark.parametrize(
    "arguments",
    [("cleanup", "--hns", "native"), ("run", "--hns", "native", "--source", str(OLD / "cluster.yaml"))],
)
def test_a_second_instance_is_refused_before_it_touches_anything(
    hansa: Hansa, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "lock"
    with HostLock(path, "hansa run"):
        code, _, err = hansa(*arguments, "--lock", path)
        assert code == 2
        assert f"lock {path}: hansa run (pid " in err
        assert "stop it first" in err
    assert hansa("cleanup", "--hns", "native", "--lock", path)[0] == 4, "the lock is free, but there is no HNS here"


def test_a_dry_run_needs_no_lock(hansa: Hansa, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    file.write_text(healthy_node().emulator.dump(), encoding="utf-8")
    with HostLock(tmp_path / "lock", "hansa run"):
        arguments = ("cleanup", "--hns", f"emulator:{file}", "--lock", tmp_path / "lock")
        assert hansa(*arguments)[0] == 2
        assert hansa(*arguments, "--dry-run")[0] == 0
