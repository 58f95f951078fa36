"""The commands as people type them: output, exit codes, and errors that say who must act."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from hansa import cli
from hansa.demo import cluster_manifests
from hansa.hns.emulator.server import serve
from hansa.lab.cni import emulated_node

WINDOWS = ("--dataplane", "windows")


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    file = tmp_path / "cluster.yaml"
    file.write_text(cluster_manifests(), encoding="utf-8")
    return str(file)


def test_version(hansa) -> None:
    code, out, _ = hansa("--version")
    assert (code, out) == (0, "hansa 0.1.0\n")


def test_render_prints_the_hns_objects_of_a_dump(hansa, cluster: str) -> None:
    code, out, err = hansa("render", "--source", cluster, "--node-name", "win-1", "--dataplane", "windows")
    found = yaml.safe_load(out)
    assert code == 0, err
    dns = [one for one in found["HostComputeLoadBalancers"] if one.get("FrontendVIPs") == ["100.64.0.10"]]
    assert sorted((p["Protocol"], p["ExternalPort"]) for one in dns for p in one["PortMappings"]) == [
        (6, 53),
        (6, 9153),
        (17, 53),
    ]
    assert {tuple(one["HostComputeEndpoints"]) for one in dns} == {("100.96.1.3", "100.96.1.8")}


def test_render_is_the_same_every_time(hansa, cluster: str) -> None:
    arguments = ("render", "--source", cluster, "--node-name", "win-1", "-o", "json", *WINDOWS)
    assert hansa(*arguments) == hansa(*arguments)


@pytest.mark.parametrize("network", ["overlay", "l2bridge"])
def test_render_as_json_and_table(hansa, cluster: str, network: str) -> None:
    common = ("render", "--source", cluster, "--node-name", "win-1", "--network", network, *WINDOWS)
    assert json.loads(hansa(*common, "-o", "json")[1])["node"] == "win-1"
    assert "load balancer 100.64.17.25:80/tcp" in hansa(*common, "-o", "table")[1]


def test_a_broken_object_costs_one_error_and_not_the_run(hansa, cluster: str) -> None:
    text = (
        Path(cluster).read_text(encoding="utf-8").replace("port: 9153, protocol: TCP", "port: 99999, protocol: TCP", 1)
    )
    Path(cluster).write_text(text, encoding="utf-8")
    code, out, err = hansa("render", "--source", cluster, "--node-name", "win-1", *WINDOWS)
    assert code == 1
    assert "Service kube-system/kube-dns is left out: spec.ports[2].port: 99999 is not a port" in err
    assert "100.64.17.25" in out
    assert "100.64.0.10" not in out


def test_an_unreadable_document_is_named_with_its_place_and_the_rest_goes_on(hansa, cluster: str) -> None:
    with Path(cluster).open("a", encoding="utf-8") as file:
        file.write("---\nkind: [unclosed\n")
    code, out, err = hansa("render", "--source", cluster, "--node-name", "win-1", *WINDOWS)
    assert code == 1
    assert re.search(r"hansa: source: .*cluster\.yaml:\d+", err)
    assert "100.64.17.25" in out


def test_a_node_name_that_no_node_has_is_refused(hansa, cluster: str) -> None:
    code, _, err = hansa("render", "--source", cluster, "--node-name", "win-9")
    assert code == 2
    assert "no Node is called 'win-9' (the input has linux-1, win-1, win-2)" in err


LAB = str(Path(__file__).parents[3] / "examples/labs/overlay.yaml")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("render", "--source", "/no/such/file", "--node-name", "n"), 3, f"source: {Path('/no/such/file')}: "),
        (
            ("render", "--source", "-", "--dataplane", "ebpf"),
            2,
            "'ebpf' is not available (this version has: windows, nftables",
        ),
        (("plan", "--source", "CLUSTER", "--node-name", "win-1", "--hns", "bogus"), 2, "--hns: 'bogus'"),
        (("plan", "--source", "CLUSTER", "--node-name", "win-1", "--hns", "emulator", "--build", "w"), 2, "--build"),
        (
            ("plan", "--source", "CLUSTER", "--node-name", "win-1", "--hns", "emulator", "--network", "w"),
            2,
            "--network",
        ),
        (("plan", "--source", "CLUSTER", "--node-name", "win-1", "--hns", "native"), 4, "hansa: host: "),
        (("render", "--source", "CLUSTER", "--node-name", "win-1", "--set", "clusterCIDR=x"), 2, "clusterCIDR"),
        (("render", "--source", "CLUSTER", "--node-name", "win-1", "--set", "clusterCDR=10.0.0.0/8"), 2, "clusterCIDR"),
        (("render", "--source", "CLUSTER", "--node-name", "win-1", "--set", "nonsense"), 2, "--set key=value"),
        (("hns", "ls", "--hns", "emulator"), 2, "holds nothing that could be listed"),
        (("hns", "ls", "pods", "--hns", "remote:127.0.0.1:1"), 2, "'pods' is no kind"),
        (("demo", "--network", "token-ring"), 2, "give one of l2bridge, overlay"),
        (("hns", "serve", "--listen", "127.0.0.1"), 2, "write 127.0.0.1:PORT or unix:PATH"),
        pytest.param(
            *(("hns", "serve", "--listen", "unix:/no/such/folder/hns"), 2, "hns cannot be opened: No such file"),
            marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no unix sockets for Python"),
        ),
        (("lab", "run", "/no/such/lab"), 2, "cannot be read: No such file or directory (give a lab in YAML"),
        (("lab", "run", LAB, "--save", "/no/such/folder/lab"), 2, "lab cannot be written: No such file"),
        (("lab", "run", "CLUSTER"), 2, "has 0 documents of kind Lab"),
        (("trace", LAB, "outside -> vip/198.51.100.40:80"), 2, "vip/NAMESPACE/NAME:PORT"),
        (
            ("trace", LAB, "outside -> svc/kube-system/kube-dns:54/udp"),
            2,
            "kube-system/kube-dns has no port 54/udp (give one of 53/udp (dns), 53/tcp (dns-tcp))",
        ),
        (
            ("trace", LAB, "outside -> svc/kube-system/kube-dns:53"),
            2,
            "kube-system/kube-dns has 2 ports that 53 may mean (give one of 53/udp (dns), 53/tcp (dns-tcp))",
        ),
    ],
)
def test_errors_say_who_must_act(hansa, cluster: str, arguments: tuple[str, ...], code: int, says: str) -> None:
    got, _, err = hansa(*(cluster if each == "CLUSTER" else each for each in arguments))
    assert (got, says in err) == (code, True), err


def test_a_file_that_is_not_yaml_is_named_with_the_place_in_one_line(hansa, cluster: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n b\n", encoding="utf-8")
    for arguments in (
        ("render", "--source", cluster, "--node-name", "win-1", "--config", str(broken)),
        ("lab", "run", str(broken)),
    ):
        code, _, err = hansa(*arguments)
        (line,) = err.splitlines()
        assert code == 2
        assert re.search(r"broken.yaml:? is not YAML: line 3, column 1: while parsing a flow sequence, ", line)


def test_settings_from_a_file_and_from_the_command_line(hansa, cluster: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("winkernel: {sourceVip: 100.96.2.9, enableDSR: true}\n", encoding="utf-8")
    common = ("render", "--source", cluster, "--node-name", "win-1", "-o", "json", "--config", str(file), *WINDOWS)
    vips = {one["SourceVIP"] for one in json.loads(hansa(*common)[1])["HostComputeLoadBalancers"]}
    assert "100.96.2.9" in vips
    out = hansa(*common, "--set", "winkernel.sourceVip=100.96.2.77")[1]
    assert "100.96.2.77" in {one["SourceVIP"] for one in json.loads(out)["HostComputeLoadBalancers"]}


def test_plan_on_a_fresh_node_and_its_exit_code(hansa, cluster: str) -> None:
    common = ("plan", "--source", cluster, "--node-name", "win-1", "--hns", "emulator")
    code, out, _ = hansa(*common, "-o", "json")
    steps = json.loads(out)
    assert code == 0
    assert {step["verb"] for step in steps} == {"create"}
    assert "node(IPv4):30080/tcp" in {step["key"] for step in steps}
    assert hansa(*common, "--exit-code")[0] == 5


def test_hns_ls_shows_what_a_served_node_holds(hansa) -> None:
    emulator = emulated_node(None)
    with serve(emulator, "127.0.0.1:0") as server:
        code, out, _ = hansa("hns", "ls", "--hns", f"remote:{server.address}")
        listed = json.loads(hansa("hns", "ls", "networks", "--hns", f"remote:{server.address}", "-o", "json")[1])
    assert code == 0
    assert "Networks:" in out
    assert "LoadBalancers:" in out
    assert [one["Name"] for one in listed] == ["hansa-vx"]


def test_hns_ls_of_a_saved_node(hansa, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    file.write_text(emulated_node(None).dump(), encoding="utf-8")
    code, out, _ = hansa("hns", "ls", "endpoints", "--hns", f"emulator:{file}", "--style", "blocks")
    assert code == 0
    assert "cbr0" in out


def test_every_exit_code_that_a_command_uses_is_documented() -> None:
    assert set(cli.EXIT_CODES) == {0, 1, 2, 3, 4, 5, 6, 130, 143}
