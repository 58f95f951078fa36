"""The benchmark of whole proxies, with a stand-in for kube-proxy's binary: what it is told, and how it may fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.host.linux.namespaces import Namespace, missing, namespace

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import proxies  # noqa: E402

WHY_NOT = missing()
pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")]

# Does with nft what the benchmark waits for, from what the API server says; not more of a proxy than that.
STAND_IN = """\
import json, pathlib, subprocess, sys, time, urllib.request

pathlib.Path(__file__).with_name("told.json").write_text(json.dumps(sys.argv[1:]))
(config,) = (one.partition("=")[2] for one in sys.argv if one.startswith("--kubeconfig="))
url = json.load(open(config))["clusters"][0]["cluster"]["server"]


def ask(path):
    with urllib.request.urlopen(url + path, timeout=10) as answer:
        return json.load(answer)


def nft(text):
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


print("stand-in is here", flush=True)
stamp = time.strftime("I%m%d %H:%M:%S.000000", time.gmtime())
services = ask("/api/v1/services")["items"]
print(stamp, "1 shared_informer.go:320] Caches are synced for endpoint slice config", flush=True)
keys = ", ".join(f"{one['spec']['clusterIP']} . tcp . 80 : drop" for one in services)
if "--never" not in sys.argv:
    nft("table ip kube-proxy { map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; "
        f"elements = {{ {keys} }}; }}\\nchain nat-prerouting {{ type nat hook prerouting priority -100; }}\\n}}\\n")
known = ask("/apis/discovery.k8s.io/v1/endpointslices")["metadata"]["resourceVersion"]
while True:
    time.sleep(0.01)
    version = ask("/apis/discovery.k8s.io/v1/endpointslices")["metadata"]["resourceVersion"]
    if version != known:
        known = version
        nft("add rule ip kube-proxy nat-prerouting counter\\n")
"""


class Report:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def result(self, name: str, value: float, unit: str) -> None:
        assert value > 0
        self.told.append((name, unit))


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespace("bench") as found:
        yield found


def measured(space: Namespace, binary: Path, *more: str, limit_s: float = 60.0) -> Any:
    command = proxies.kube_proxy(str(binary), more)
    names = ("kube-proxy", "service-ips", "nat-prerouting")
    peer = proxies.Peer("kube-proxy", command, *names, proxies.since_kube_proxys_lists)
    report = Report()
    pace = proxies.Pace(limit_s=limit_s, changes=2, rest_s=0.05)
    found = space.call(lambda: proxies.watch(report, peer, services=3, endpoints=2, pace=pace))
    return report.told, found


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "kube-proxy"
    path.write_text(f"#!{sys.executable}\n{STAND_IN}", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_proxy_is_started_as_on_a_node_and_watched_from_outside(space: Namespace, stand_in: Path) -> None:
    told, found = measured(space, stand_in, "--feature-gates=Some=true")
    assert told == [
        ("proxies: kube-proxy, start to rules", "s"),
        ("proxies: kube-proxy, start to rules, CPU", "s"),
        ("proxies: kube-proxy, lists to rules", "s"),
        ("proxies: kube-proxy, one endpoint replaced, p50", "s"),
        ("proxies: kube-proxy, one endpoint replaced, worst", "s"),
        ("proxies: kube-proxy, resident memory", "MB"),
    ]
    assert found["one endpoint replaced, p50"] <= found["one endpoint replaced, worst"]
    arguments = json.loads(stand_in.with_name("told.json").read_text(encoding="utf-8"))
    assert {"--proxy-mode=nftables", "--hostname-override=node-1", "--cluster-cidr=10.128.0.0/9"} <= set(arguments)
    assert arguments[-1] == "--feature-gates=Some=true"


def test_one_that_never_gets_there_is_given_up(space: Namespace, stand_in: Path) -> None:
    says = r"1 s passed before every Service is in map service-ips of table ip kube-proxy; its last words:\nstand-in is"
    with pytest.raises(proxies.NotSynced, match=says):
        measured(space, stand_in, "--never", limit_s=1.0)


def test_one_that_ends_is_quoted(space: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "kube-proxy"
    path.write_text("#!/bin/sh\necho unknown flag: --proxy-mode\nexit 3\n", encoding="utf-8")
    path.chmod(0o755)
    with pytest.raises(proxies.NotSynced, match=r"exit code 3 before .*; its last words:\nunknown flag: --proxy-mode"):
        measured(space, path)


def test_one_that_cannot_be_run_is_told(space: Namespace, tmp_path: Path) -> None:
    with pytest.raises(proxies.NotSynced, match=r"none cannot be run: .*No such file"):
        measured(space, tmp_path / "none")


def test_hansa_is_watched_alike(space: Namespace) -> None:
    """The other side of the comparison: the same API server, the same questions to the kernel."""
    (peer,) = (one for one in proxies.peers() if one.name == "hansa")
    report = Report()
    pace = proxies.Pace(limit_s=120.0, changes=2, rest_s=0.05)
    found = space.call(lambda: proxies.watch(report, peer, services=3, endpoints=2, pace=pace))
    assert [unit for _, unit in report.told] == ["s", "s", "s", "s", "s", "MB"]
    assert found["lists to rules"] < found["start to rules"] < 120
