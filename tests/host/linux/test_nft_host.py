"""The node around the rules on the real kernel: probing, making way for nobody or taking over, settings, leaving."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.host.linux.namespaces import Namespace, missing, namespace, run

from hansa.config import Config, LinuxConfig, NodePortAddresses, WindowsConfig
from hansa.dataplanes.base import Outcome, SyncReport
from hansa.dataplanes.nftables import host, needs, wire
from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.dataplanes.nftables.needs import IptablesRival, NftablesRival, Probe
from hansa.errors import DataplaneError
from hansa.net import IPFamily
from hansa.netlink import nftables as nf
from hansa.netlink.codec import NLM_F_CREATE
from hansa.netlink.socket import NetfilterSocket
from hansa.rules.model import RuleChanges
from hansa.rules.surroundings import make_surroundings
from hansa.testing import NODE_FACTS, config

WHY_NOT = missing() or ("" if shutil.which("iptables-legacy") else "needs iptables (apt-get install iptables)")
pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")]

V4, V6 = IPFamily.IPV4, IPFamily.IPV6


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespace("host") as found:
        yield found


@pytest.fixture
def kernel(space: Namespace) -> Iterator[NetfilterSocket]:
    with closing(space.call(NetfilterSocket)) as found:
        yield found


def inside(space: Namespace, *command: str) -> str:
    return run("nsenter", f"--net=/run/netns/{space.name}", *command)


def start(space: Namespace, settings: Config) -> tuple[NftablesDataplane, host.Preparation]:
    return space.call(lambda: host.open_dataplane(settings))


def first_sync(space: Namespace, dataplane: NftablesDataplane, settings: Config) -> SyncReport:
    nothing = RuleChanges({}, make_surroundings(NODE_FACTS, settings, ()), complete=True)
    return space.call(lambda: dataplane.sync(nothing, now=0.0, audit=False))


# -- features --------------------------------------------------------------------------------------------------------


def test_this_kernel_has_all_and_probing_changes_nothing(space: Namespace, kernel: NetfilterSocket) -> None:
    space.nft("add", "table", "ip", "hansa-probe")
    with closing(space.call(KernelRuleset)) as ruleset:
        before, generation = space.nft("list", "ruleset"), ruleset.generation()
        assert host.probe(kernel, tuple(IPFamily)) == ()
        assert (space.nft("list", "ruleset"), ruleset.generation()) == (before, generation)


@pytest.mark.parametrize("family", list(IPFamily), ids=str)
def test_a_missing_feature_is_named_and_nothing_else(kernel: NetfilterSocket, family: IPFamily) -> None:
    """As with a kernel that was built without it: an expression that nobody knows."""
    number = wire.family_number(family)
    unknown = needs.Feature("telling the future", "CONFIG_NFT_ORACLE")
    rule = nf.rule(number, needs.PROBE_TABLE, "first", [nf.Expression("oracle", {})], "")
    extra = Probe(unknown, (needs.tables(family),), nf.NEW_RULE, NLM_F_CREATE, rule)
    [lost] = host.probe(kernel, (family,), [extra])
    assert lost.feature == unknown
    assert lost.words == "ENOENT"


def test_without_the_privilege_the_error_says_so(space: Namespace) -> None:
    program = "from hansa.dataplanes.nftables.host import open_dataplane; from hansa.config import Config; "
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{space.name}", "setpriv", "--bounding-set", "-net_admin",
         sys.executable, "-c", program + "open_dataplane(Config('n1'))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "DataplaneError" in last
    assert "the right to change rules (CAP_NET_ADMIN in the network namespace): EPERM" in last
    assert "CONFIG" not in last


# -- another proxy ---------------------------------------------------------------------------------------------------


def test_a_node_of_its_own_has_no_rivals(space: Namespace, kernel: NetfilterSocket) -> None:
    names = Path("/proc/thread-self/net/ip_tables_names")
    before = space.call(lambda: names.exists() and names.read_text(encoding="ascii"))
    assert space.call(lambda: host.find_rivals(kernel)) == ()
    after = space.call(lambda: names.exists() and names.read_text(encoding="ascii"))
    assert after == before, "looking for old tables must not create them"


def test_kube_proxys_tables_are_replaced_once_ours_are_in_place(space: Namespace) -> None:
    for family in ("ip", "ip6", "inet"):
        space.nft("add", "table", family, "kube-proxy")
    space.nft("add", "table", "ip", "kube-proxy-of-another-kind")
    settings = config()
    dataplane, prepared = start(space, settings)
    with closing(dataplane):
        assert prepared.replaced == (NftablesRival(V4), NftablesRival(V6))
        assert "kube-proxy" in space.nft("list", "tables"), "nothing goes before the rules are there"
        report = first_sync(space, dataplane, settings)
        assert report.ok
        gone = [one.change.key for one in report.results if one.change.why == "hansa has taken its place"]
        assert gone == ["table ip kube-proxy", "table ip6 kube-proxy"]
        assert set(space.nft("list", "tables").splitlines()) == {
            "table ip hansa", "table ip6 hansa", "table inet kube-proxy", "table ip kube-proxy-of-another-kind",
        }  # fmt: skip
        assert not first_sync(space, dataplane, settings).results
    again, prepared = start(space, settings)
    again.close()
    assert prepared.replaced == ()


def test_without_takeover_kube_proxys_table_is_in_the_way(space: Namespace) -> None:
    space.nft("add", "table", "ip6", "kube-proxy")
    settings = Config("n1", windows=WindowsConfig(takeover=False))
    with pytest.raises(DataplaneError, match=r"in the way: table ip6 kube-proxy\. Stop kube-proxy"):
        start(space, settings)
    assert space.nft("list", "tables").strip() == "table ip6 kube-proxy"


def test_beside_the_default_proxy_its_rules_stay(space: Namespace) -> None:
    space.nft("add", "table", "ip", "kube-proxy")
    settings = config(proxy_name="other")
    dataplane, prepared = start(space, settings)
    with closing(dataplane):
        assert first_sync(space, dataplane, settings).ok
    assert "table ip kube-proxy is left alone: hansa serves proxyName other" in prepared.notes
    assert "table ip kube-proxy" in space.nft("list", "tables")


@pytest.mark.parametrize("table", ["nat", "filter"])
@pytest.mark.parametrize("family", list(IPFamily), ids=str)
@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_rules_of_iptables_are_found_and_in_the_way(
    space: Namespace, kernel: NetfilterSocket, table: str, family: IPFamily, kind: str
) -> None:
    program = f"{'iptables' if family is V4 else 'ip6tables'}-{kind}"
    inside(space, program, "-t", table, "-N", "KUBE-KUBELET-CANARY")
    inside(space, program, "-t", table, "-N", "KUBE-SERVICES-OF-ANOTHER")
    assert space.call(lambda: host.find_rivals(kernel)) == ()
    inside(space, program, "-t", table, "-N", "KUBE-SERVICES")
    assert space.call(lambda: host.find_rivals(kernel)) == (IptablesRival(family, table, legacy=kind == "legacy"),)
    settings = Config("n1", windows=WindowsConfig(takeover=False))
    with pytest.raises(DataplaneError, match=rf"chain KUBE-SERVICES in {program} -t {table}.*kube-proxy --cleanup"):
        start(space, settings)


# As kube-proxy's iptables mode leaves it, beside what kubelet, a network plugin and an administrator have made.
LEFT_BEHIND = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-XQC7UPJZ2DOSA7NY - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d ADDRESS -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes:https" -j KUBE-SEP-XQC7UPJZ2DOSA7NY
-A KUBE-SEP-XQC7UPJZ2DOSA7NY -p tcp -j MASQUERADE_OR_MARK
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"""


@pytest.mark.parametrize("family", list(IPFamily), ids=str)
@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_kube_proxys_rules_in_iptables_are_replaced_once_ours_are_in_place(
    space: Namespace, kernel: NetfilterSocket, family: IPFamily, kind: str
) -> None:
    """Whoever had kube-proxy in mode iptables starts hansa in its place and need not clean up by hand."""
    program = f"{'iptables' if family is V4 else 'ip6tables'}-{kind}"
    text = LEFT_BEHIND.replace("ADDRESS", "10.96.0.1" if family is V4 else "fd00::1").replace(
        "MASQUERADE_OR_MARK", "KUBE-MARK-MASQ"
    )
    before = inside(space, f"{program}-save")
    run("nsenter", f"--net=/run/netns/{space.name}", f"{program}-restore", "--noflush", stdin=text)
    dataplane, prepared = start(space, config())
    with closing(dataplane):
        assert {one.program for one in prepared.replaced if isinstance(one, IptablesRival)} == {program}
        assert "KUBE-SEP-XQC7UPJZ2DOSA7NY" in inside(space, f"{program}-save"), "nothing goes before ours is there"
        report = first_sync(space, dataplane, config())
        assert report.ok
        gone = [one.change.key for one in report.results if one.change.why == "hansa has taken its place"]
        assert gone == [f"chains of kube-proxy in {program}"]
    after = [line for line in inside(space, f"{program}-save").splitlines() if line[:1] in "-:" and line not in before]
    assert sorted(line.split(" [")[0] for line in after if "KUBE" in line or "CNI" in line) == sorted(
        [
            ":CNI-HOSTPORT-DNAT -",
            ":KUBE-FIREWALL -",
            ":KUBE-KUBELET-CANARY -",
            ":KUBE-MARK-MASQ -",
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ",
            "-A INPUT -j KUBE-FIREWALL",
        ]
    )
    assert space.call(lambda: host.find_rivals(kernel)) == ()
    again, prepared = start(space, config())
    again.close()
    assert prepared.replaced == ()


def test_the_interface_of_ipvs_goes_with_the_chains(space: Namespace) -> None:
    inside(space, "ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other")
    inside(space, "iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
    dataplane, _ = start(space, config())
    with closing(dataplane):
        report = first_sync(space, dataplane, config())
    gone = [one.change.key for one in report.results if one.change.why == "hansa has taken its place"]
    assert gone == ["chains of kube-proxy in iptables-nft, interface kube-ipvs0"]
    assert "kube-ipvs0" not in inside(space, "ip", "link")
    assert space.call(host.remove_ipvs_device) == ""


def test_without_the_programs_it_is_said_what_is_missing(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    inside(space, "iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
    monkeypatch.setattr(host, "_SYSTEM_PATH", "/nonexistent")
    with pytest.raises(
        DataplaneError, match="needs iptables-nft-save, iptables-nft-restore, which this system has not"
    ):
        start(space, config())


def test_both_kinds_of_rival_at_once(space: Namespace, kernel: NetfilterSocket) -> None:
    space.nft("add", "table", "ip", "kube-proxy")
    for number in range(40):
        inside(space, "iptables-legacy", "-t", "nat", "-N", f"OTHER-{number}")
    inside(space, "iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES")
    found = space.call(lambda: host.find_rivals(kernel))
    assert found == (NftablesRival(V4), IptablesRival(V4, "nat", legacy=True))


# -- settings --------------------------------------------------------------------------------------------------------


def sysctl(path: str) -> int:
    return int((Path("/proc/sys") / path).read_text(encoding="ascii"))


def test_only_what_is_configured_is_set_and_only_in_this_namespace(space: Namespace) -> None:
    paths = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/netfilter/nf_conntrack_udp_timeout",
             "net/netfilter/nf_conntrack_tcp_timeout_established", "net/ipv4/conf/all/route_localnet"]  # fmt: skip
    machine = [sysctl(path) for path in paths]
    space.sysctl(ipv4__ip_forward="0", ipv6__conf__all__forwarding="0")
    before = space.call(lambda: [sysctl(path) for path in paths])
    prepared = space.call(lambda: host.prepare(config()))
    assert space.call(lambda: [sysctl(path) for path in paths]) == before
    assert [note.partition(" is 0")[0] for note in prepared.notes] == paths[:2]
    asked = LinuxConfig(udp_timeout_s=11, ip_forward=True)
    assert space.call(lambda: host.prepare(config(linux=asked))).notes == ()
    assert space.call(lambda: [sysctl(path) for path in paths]) == [1, 1, 11, *before[3:]]
    assert [sysctl(path) for path in paths] == machine


def test_a_limit_that_belongs_to_the_machine_is_told_not_forced(space: Namespace) -> None:
    """nf_conntrack_max is one for all namespaces, and since Linux 5.12 only the first may set it."""
    current = sysctl(needs.MAX_ENTRIES)
    buckets = (host.ROOT / host.BUCKETS).read_text(encoding="ascii")
    prepared = space.call(lambda: host.prepare(config(linux=LinuxConfig(min_entries=current + 1, ip_forward=True))))
    [note] = prepared.notes
    assert note.startswith(f"{needs.MAX_ENTRIES} cannot be set to {current + 1}, stays {current}")
    enough = space.call(lambda: host.prepare(config(linux=LinuxConfig(min_entries=current - 1, ip_forward=True))))
    assert enough.notes == ()
    assert sysctl(needs.MAX_ENTRIES) == current
    assert (host.ROOT / host.BUCKETS).read_text(encoding="ascii") == buckets


# -- leaving ---------------------------------------------------------------------------------------------------------


def test_cleaning_up_removes_our_tables_and_nothing_else(space: Namespace) -> None:
    space.nft("add", "table", "ip", "other")
    assert space.call(host.clean_up) == ()
    settings = config(node_port_addresses=NodePortAddresses(primary=False), localhost_node_ports=True)
    dataplane, _ = start(space, settings)
    with closing(dataplane):
        assert first_sync(space, dataplane, settings).ok
    assert space.call(lambda: sysctl("net/ipv4/conf/all/route_localnet")) == 1
    results = space.call(host.clean_up)
    assert [(one.change.key, one.outcome) for one in results] == [
        ("net/ipv4/conf/all/route_localnet", Outcome.DONE),
        ("ip hansa", Outcome.DONE),
        ("ip6 hansa", Outcome.DONE),
    ]
    assert space.nft("list", "tables").strip() == "table ip other"
    assert space.call(lambda: sysctl("net/ipv4/conf/all/route_localnet")) == 0
    assert space.call(host.clean_up) == ()


def test_cleaning_up_leaves_route_localnet_to_whoever_set_it(space: Namespace) -> None:
    space.sysctl(ipv4__conf__all__route_localnet="1")
    dataplane, _ = start(space, config())
    with closing(dataplane):
        assert first_sync(space, dataplane, config()).ok
    assert [one.change.key for one in space.call(host.clean_up)] == ["ip hansa", "ip6 hansa"]
    assert space.call(lambda: sysctl("net/ipv4/conf/all/route_localnet")) == 1


def test_cleaning_up_without_the_privilege_is_a_failure_that_is_told(space: Namespace) -> None:
    space.nft("add", "table", "ip", "hansa")
    program = (
        "from hansa.dataplanes.nftables.host import clean_up; print([(r.outcome.value, r.error) for r in clean_up()])"
    )
    done = inside(space, "setpriv", "--bounding-set", "-net_admin", sys.executable, "-c", program)
    assert "('failed', 'EPERM')" in done
    assert space.nft("list", "tables").strip() == "table ip hansa"


def test_cleaning_up_after_kube_proxy_takes_the_rules_of_all_its_modes(
    space: Namespace, kernel: NetfilterSocket
) -> None:
    space.nft("add", "table", "ip6", "kube-proxy")
    inside(space, "iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
    inside(space, "ip6tables-legacy", "-t", "filter", "-N", "KUBE-SERVICES")
    results = space.call(host.clean_up_kube_proxy)
    assert [(one.change.key, one.outcome) for one in results] == [
        ("chains of kube-proxy in iptables-nft", Outcome.DONE),
        ("table ip6 kube-proxy, chains of kube-proxy in ip6tables-legacy", Outcome.DONE),
    ]
    assert space.call(lambda: host.find_rivals(kernel)) == ()
    assert space.call(host.clean_up_kube_proxy) == ()


def test_the_oom_score_is_set_and_a_refusal_is_only_told(tmp_path: Path) -> None:
    score = tmp_path / host.OOM_SCORE
    score.parent.mkdir(parents=True)
    score.write_text("0\n", encoding="ascii")
    wanted = LinuxConfig(oom_score_adj=-999)
    assert host._set_oom_score(LinuxConfig(), tmp_path) == host._set_oom_score(wanted, tmp_path) == []
    assert score.read_text(encoding="ascii") == "-999"
    score.unlink()
    [note] = host._set_oom_score(wanted, tmp_path)
    assert note == "oom_score_adj cannot be set to -999: No such file or directory"


def test_a_plan_tells_that_kube_proxys_table_would_go(space: Namespace) -> None:
    space.nft("add", "table", "ip", "kube-proxy")
    nothing = RuleChanges({}, make_surroundings(NODE_FACTS, config(), ()), complete=True)

    def planned(settings: Config) -> list[str]:
        with closing(space.call(lambda: host.open_for_reading(settings))) as reader:
            return [f"{one.verb.value} {one.key}" for one in space.call(lambda: reader.plan(nothing, now=0.0))]

    assert "delete table ip kube-proxy" in planned(config())
    without = Config("n1", windows=WindowsConfig(takeover=False))
    assert "delete table ip kube-proxy" not in planned(without)
    assert "table ip kube-proxy" in space.nft("list", "tables")


def test_a_kube_proxy_that_comes_back_is_told_and_not_fought(space: Namespace) -> None:
    settings = config()
    dataplane, _ = start(space, settings)
    with closing(dataplane):
        assert first_sync(space, dataplane, settings).ok
        space.nft("add", "table", "ip6", "kube-proxy")
        nothing = RuleChanges({}, make_surroundings(NODE_FACTS, settings, ()))
        report = space.call(lambda: dataplane.sync(nothing, now=1.0, audit=True))
        assert [one.partition(";")[0] for one in report.conditions] == [
            "IPv6: another proxy is at work: table ip6 kube-proxy"
        ]
        assert "table ip6 kube-proxy" in space.nft("list", "tables")
