"""What a node needs besides rules: which refusals mean what, whom hansa makes way for, and which settings it makes."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest

from hansa.config import LinuxConfig
from hansa.dataplanes.nftables import host, needs
from hansa.dataplanes.nftables.needs import Feature, IptablesRival, NftablesRival, Setting
from hansa.errors import DataplaneError
from hansa.net import IPFamily
from hansa.netlink.codec import Answer

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
PROBES = tuple(needs.probe_messages(V4))
DOOM = len(PROBES) - 1


def missing(refused: Mapping[int, int], whole: int = 0) -> list[Feature]:
    answers = {place: Answer(place, code, "") for place, code in {**refused, DOOM: errno.ENOENT}.items()}
    found = needs.missing_features(PROBES, answers, Answer(0, whole, "") if whole else None)
    return [one.feature for one in found]


def places(feature: Feature) -> dict[int, int]:
    return {place: errno.ENOENT for place, probe in enumerate(PROBES) if probe.feature == feature}


# -- features --------------------------------------------------------------------------------------------------------


def test_a_kernel_that_refuses_only_the_last_message_has_all() -> None:
    assert PROBES[DOOM].feature is None
    assert missing({}) == []


@pytest.mark.parametrize("feature", sorted({one.feature for one in PROBES if one.feature}, key=str), ids=str)
def test_each_feature_is_missed_by_name(feature: Feature) -> None:
    assert places(feature)
    assert missing(places(feature)) == [feature]


def test_what_hangs_on_a_missing_feature_is_not_blamed() -> None:
    everything = dict.fromkeys(range(DOOM), errno.ENOENT)
    assert missing(everything) == [needs.tables(V4)]
    assert missing({**places(needs.MAPS), **places(needs.DNAT)}) == [needs.MAPS]
    hanging = {**places(needs.MASQUERADE), **places(needs.DNAT), **places(needs.NUMGEN)}
    assert missing({**places(needs.NAT_CHAINS), **hanging}) == [needs.NAT_CHAINS]


@pytest.mark.parametrize("code, feature", [(errno.EPERM, needs.PRIVILEGE), (errno.EOPNOTSUPP, needs.NF_TABLES)])
def test_a_refusal_of_the_whole(code: int, feature: Feature) -> None:
    assert missing({}, whole=code) == [feature]


def test_the_error_names_feature_remedy_and_the_kernels_words() -> None:
    lost = [needs.Missing(needs.NUMGEN, "ENOENT"), needs.Missing(needs.own_addresses(V6), "ENOENT: no such expression")]
    assert needs.explain_missing(lost) == (
        "this kernel lacks what the nftables dataplane is made of: "
        "random numbers (numgen) (CONFIG_NFT_NUMGEN): ENOENT; "
        "telling own IPv6 addresses (fib) (CONFIG_NFT_FIB_IPV6): ENOENT: no such expression"
    )


# -- another proxy ---------------------------------------------------------------------------------------------------

TABLES = (NftablesRival(V4), NftablesRival(V6))
CHAIN = IptablesRival(V4, "nat", legacy=True)


def test_nobody_else_is_here() -> None:
    assert needs.judge_rivals((), takeover=False, beside_another=False) == ()


def test_tables_of_kube_proxy_are_taken_over_or_in_the_way() -> None:
    assert needs.judge_rivals(TABLES, takeover=True, beside_another=False) == TABLES
    assert needs.judge_rivals(TABLES[1:], takeover=True, beside_another=False) == TABLES[1:]
    with pytest.raises(DataplaneError, match=r"table ip kube-proxy, table ip6 kube-proxy.*Stop kube-proxy.*takeover"):
        needs.judge_rivals(TABLES, takeover=False, beside_another=False)


def test_rules_of_iptables_are_taken_over_too_where_its_programs_are() -> None:
    other = IptablesRival(V6, "filter", legacy=False)
    assert needs.judge_rivals((*TABLES, CHAIN, other), takeover=True, beside_another=False) == (*TABLES, CHAIN, other)
    with pytest.raises(DataplaneError, match=r"KUBE-SERVICES in iptables-legacy -t nat.*kube-proxy --cleanup"):
        needs.judge_rivals((*TABLES, CHAIN), takeover=False, beside_another=False)
    text = needs.explain_missing_programs((CHAIN, other), ("iptables-legacy-save",))
    assert "KUBE-SERVICES in ip6tables-nft -t filter" in text
    assert "needs iptables-legacy-save, which" in text


def test_beside_another_proxy_its_rules_stay() -> None:
    """S4, S5: with a service-proxy-name, the default proxy is meant to be there."""
    assert needs.judge_rivals((*TABLES, CHAIN), takeover=True, beside_another=True) == ()


# -- settings --------------------------------------------------------------------------------------------------------


def wanted(config: LinuxConfig, *, cores: int = 4) -> dict[str, int]:
    return dict(needs.wanted_settings(config, core_count=cores, families=IPFamily))


def test_nothing_is_set_unless_asked() -> None:
    assert wanted(LinuxConfig()) == {}


@pytest.mark.parametrize(
    "per_core, least, cores, entries",
    [
        (32768, 131072, 2, 131072),
        (32768, 131072, 8, 262144),
        (32768, None, 2, 65536),
        (None, 5000, 2, 5000),
        (32768, 131072, 64, 1048576),
        (32768, 2000000, 64, 2000000),
    ],
)
def test_the_size_of_the_connection_table(per_core: int | None, least: int | None, cores: int, entries: int) -> None:
    config = LinuxConfig(max_per_core=per_core, min_entries=least)
    assert wanted(config, cores=cores) == {"net/netfilter/nf_conntrack_max": entries}


def test_times_and_switches() -> None:
    config = LinuxConfig(
        tcp_established_timeout_s=86400,
        tcp_close_wait_timeout_s=3600,
        tcp_be_liberal=True,
        udp_timeout_s=0.5,
        udp_stream_timeout_s=180,
        ip_forward=True,
    )
    assert wanted(config) == {
        "net/netfilter/nf_conntrack_tcp_timeout_established": 86400,
        "net/netfilter/nf_conntrack_tcp_timeout_close_wait": 3600,
        "net/netfilter/nf_conntrack_tcp_be_liberal": 1,
        "net/netfilter/nf_conntrack_udp_timeout": 1,
        "net/netfilter/nf_conntrack_udp_timeout_stream": 180,
        "net/ipv4/ip_forward": 1,
        "net/ipv6/conf/all/forwarding": 1,
    }


@pytest.mark.parametrize("text, count", [("0", 1), ("0-1\n", 2), ("0-3,6,8-9", 7)])
def test_cores_are_the_hosts(text: str, count: int) -> None:
    assert needs.count_cores(text) == count


def test_forwarding_that_is_off_is_told() -> None:
    [note] = needs.forwarding_notes({V4: 0, V6: 1})
    assert note.startswith("net/ipv4/ip_forward is 0")
    assert needs.forwarding_notes({V4: 1, V6: None}) == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A pretended /proc and /sys."""
    for path, value in {
        "proc/sys/net/netfilter/nf_conntrack_max": 1000,
        "proc/sys/net/netfilter/nf_conntrack_udp_timeout": 30,
        "sys/module/nf_conntrack/parameters/hashsize": 250,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{value}\n", encoding="ascii")
    return tmp_path


def number(root: Path, path: str) -> int:
    return int((root / path).read_text(encoding="ascii"))


def test_settings_are_written(root: Path) -> None:
    assert host.apply_settings([Setting("net/netfilter/nf_conntrack_udp_timeout", 10)], root) == []
    assert number(root, "proc/sys/net/netfilter/nf_conntrack_udp_timeout") == 10
    assert number(root, "proc/sys/net/netfilter/nf_conntrack_max") == 1000


@pytest.mark.parametrize("entries, buckets", [(4000, 1000), (800, 250)])
def test_buckets_grow_with_the_table_and_never_shrink(root: Path, entries: int, buckets: int) -> None:
    assert host.apply_settings([Setting(needs.MAX_ENTRIES, entries)], root) == []
    assert number(root, "proc/sys/net/netfilter/nf_conntrack_max") == entries
    assert number(root, "sys/module/nf_conntrack/parameters/hashsize") == buckets


def test_a_setting_that_cannot_be_made_is_told_and_the_others_are_made(root: Path) -> None:
    notes = host.apply_settings(
        [Setting("net/no/such", 1), Setting("net/netfilter/nf_conntrack_udp_timeout", 10)], root
    )
    assert notes == ["net/no/such cannot be set to 1: No such file or directory"]
    assert number(root, "proc/sys/net/netfilter/nf_conntrack_udp_timeout") == 10


def test_families_of_the_node(tmp_path: Path) -> None:
    net = tmp_path / "proc/thread-self/net"
    net.mkdir(parents=True)
    assert host.node_families(tmp_path) == (V4,)
    (net / "if_inet6").write_text("", encoding="ascii")
    assert host.node_families(tmp_path) == (V4, V6)
    switch = tmp_path / "proc/sys/net/ipv6/conf/all/disable_ipv6"
    switch.parent.mkdir(parents=True)
    switch.write_text("1\n", encoding="ascii")
    assert host.node_families(tmp_path) == (V4,)
