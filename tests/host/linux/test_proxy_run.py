"""`hansa proxy` on a Linux node where kube-proxy stood: its iptables rules give way under traffic; one-shot modes.

Evidence: operations.md 6, 14, 16 and 18.
"""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.host.linux.hansa_node import (
    HANSA,
    START_LIMIT_S,
    STEADY,
    Node,
    inside,
    lab_of_two,
    plain,
    steady_client,
    until,
)
from tests.host.linux.namespaces import LIMIT_S, Lab, missing

from hansa.dataplanes.nftables import host
from hansa.testing import L1, node

WHY_NOT = missing()
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
    pytest.mark.xdist_group("nft-run"),
]

# As kube-proxy in mode iptables has it for one Service, and as short.
OLD_RULES = f"""\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-STEADY - [0:0]
:KUBE-SEP-STEADY - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d {STEADY[0]}/32 -p tcp -m tcp --dport {STEADY[1]} -j KUBE-SVC-STEADY
-A KUBE-SVC-STEADY -j KUBE-SEP-STEADY
-A KUBE-SEP-STEADY -p tcp -m tcp -j DNAT --to-destination {L1.address}:9090
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_of_two() as found:
        yield found


class ProxyNode(Node):
    """A node on which `hansa proxy` is started as a DaemonSet of kubeadm's would start kube-proxy."""

    def configuration(self, **values: object) -> Path:
        document = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clusterCIDR": "10.1.0.0/16",
            "mode": "",
            "conntrack": {"maxPerCore": 0, "udpTimeout": "11s"},
            "oomScoreAdj": 100,
            **values,
        }
        path = self._scratch / "config.conf"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def proxy(self, *arguments: str) -> list[str]:
        lock = self._scratch / "lock"
        common = ("proxy", "--hostname-override=n1", f"--source={self.folder}", f"--lock={lock}")
        return [*inside(self.lab), str(HANSA), *common, *arguments]

    def start_proxy(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.launch(self.proxy(f"--config={self.configuration()}", "-v2", *arguments))

    def once(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.proxy(*arguments), capture_output=True, text=True, check=False, env=plain())

    def inside(self, *command: str, stdin: str = "") -> str:
        done = subprocess.run([*inside(self.lab), *command], input=stdin, capture_output=True, text=True, check=True)
        return done.stdout

    def get(self, url: str) -> str:
        def ask() -> str:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
                return str(answer.read().decode())

        return self.lab.node.call(ask)


@pytest.fixture
def on(lab: Lab, tmp_path: Path) -> Iterator[ProxyNode]:
    found = ProxyNode(lab, tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_kube_proxys_iptables_rules_give_way_without_a_failed_connection(on: ProxyNode, kind: str) -> None:
    on.inside(f"iptables-{kind}-restore", "--noflush", stdin=OLD_RULES)
    with steady_client(on.lab) as failures:
        process = on.start_proxy()
        until(lambda: "KUBE-SVC" not in on.inside(f"iptables-{kind}-save"), LIMIT_S, lambda: on.log)
        assert on.inside("nft", "list", "tables").count("hansa") == 2
    assert failures == []
    assert "no mode is given, which to kube-proxy means iptables" in on.log
    assert on.get("http://127.0.0.1:10249/proxyMode") == "nftables"
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "100"
    assert on.inside("cat", "/proc/sys/net/netfilter/nf_conntrack_udp_timeout").strip() == "11"
    process.terminate()
    assert process.wait() == 143
    assert on.met(1), "rules stay"
    done = on.once("--cleanup")
    assert (done.returncode, done.stdout) == (0, "")
    assert on.inside("nft", "list", "tables").count("hansa") == 0


def test_cleanup_takes_what_kube_proxy_left(on: ProxyNode) -> None:
    on.inside("iptables-nft-restore", "--noflush", stdin=OLD_RULES)
    on.inside("nft", "add", "table", "ip6", "kube-proxy")
    done = on.once("--cleanup")
    assert done.returncode == 0
    assert "chains of kube-proxy in iptables-nft" in done.stderr
    assert on.lab.node.call(lambda: host.clean_up_kube_proxy()) == ()
    assert on.once("--cleanup").returncode == 0


def test_init_only_sets_the_kernel_and_nothing_else(on: ProxyNode) -> None:
    done = on.once(f"--config={on.configuration()}", "--init-only")
    assert done.returncode == 0, done.stderr
    assert on.inside("cat", "/proc/sys/net/netfilter/nf_conntrack_udp_timeout").strip() == "11"
    assert "hansa" not in on.inside("nft", "list", "tables")


def test_a_mode_that_hansa_lacks_leaves_the_node_alone(on: ProxyNode) -> None:
    on.inside("iptables-nft-restore", "--noflush", stdin=OLD_RULES)
    done = on.once(f"--config={on.configuration(mode='ipvs')}")
    assert done.returncode == 1
    assert "hansa has no mode ipvs" in done.stderr
    assert "--accept-mode=ipvs" in done.stderr
    assert "KUBE-SVC-STEADY" in on.inside("iptables-nft-save")


def test_a_node_of_a_family_that_the_kernel_has_not_ends_the_start(on: ProxyNode) -> None:
    on.lab.node.sysctl(ipv6__conf__all__disable_ipv6="1")
    on.put(node("n1", addresses=["2001:db8::1"]))
    done = on.once("--proxy-mode=nftables")
    assert done.returncode == 1
    assert 'no support for primary IP family \\"IPv6\\"' in done.stderr
    assert "hansa" not in on.inside("nft", "list", "tables")


def test_changed_pod_cidrs_end_it_where_pods_are_recognised_by_them(on: ProxyNode) -> None:
    on.put(node("n1", addresses=["192.0.2.1"], pod_cidrs=["10.1.1.0/24"]))
    process = on.start_proxy("--config-override=detectLocalMode=NodeCIDR", "--config-override=clusterCIDR=")
    on.put(node("n1", addresses=["192.0.2.1"], pod_cidrs=["10.1.9.0/24"]))
    assert process.wait(START_LIMIT_S) == 1
    assert 'podCIDRs of node \\"n1\\" changed from 10.1.1.0/24 to 10.1.9.0/24' in on.log
    assert on.inside("nft", "list", "tables").count("hansa") == 2, "rules stay"


def test_pods_of_another_family_than_the_nodes_only_one_end_the_start(on: ProxyNode) -> None:
    done = on.once("--cluster-cidr=fd00:10::/48")
    assert done.returncode == 1
    assert "kube-proxy configuration is incorrect: cannot match clusterCIDR with IPv4" in done.stderr
    assert "hansa" not in on.inside("nft", "list", "tables")


def test_hansa_run_warns_once_of_what_a_node_lacks(on: ProxyNode) -> None:
    on.put(node("n1", addresses=["192.0.2.1", "2001:db8::1"]))
    process = on.start()
    on.put(node("n1", addresses=["192.0.2.1", "2001:db8::2"]))
    until(lambda: "2001:db8::2" in on.inside("nft", "list", "ruleset") or on.syncs > 1, START_LIMIT_S, lambda: on.log)
    assert on.log.count("clusterCIDR: no CIDR for IPv6") == 1
    process.terminate()
    assert process.wait() == 143
