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
        assert prepared.replaced == (V4, V6)
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
    with pytest.raises(DataplaneError, match=rf"chain KUBE-SERVICES in {program} -t {table}.*kube-proxy --cleanup"):
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
