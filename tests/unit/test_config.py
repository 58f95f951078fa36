"""Configuration: kube-proxy's words in, one Config or one error with every fault out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.config import (
    SETTINGS,
    Config,
    DetectLocalMode,
    LinuxConfig,
    NodePortAddresses,
    config_warnings,
    ignored_settings,
    make_config,
    parse_duration,
)
from hansa.errors import ConfigError
from hansa.net import IPFamily, parse_address, parse_prefix

laws = settings(max_examples=50, deadline=None, derandomize=True)
BOTH = frozenset(IPFamily)
# What kubeadm writes for kube-proxy, shortened only by repetition.
KUBEADM = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "bindAddress": "0.0.0.0",
    "bindAddressHardFail": False,
    "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf", "qps": 0},
    "clusterCIDR": "10.244.0.0/16",
    "configSyncPeriod": "0s",
    "conntrack": {"maxPerCore": None, "min": None, "tcpCloseWaitTimeout": None, "tcpEstablishedTimeout": None},
    "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""},
    "detectLocalMode": "",
    "featureGates": None,
    "hostnameOverride": "",
    "iptables": {"localhostNodePorts": None, "masqueradeAll": False, "minSyncPeriod": "0s", "syncPeriod": "0s"},
    "ipvs": {"excludeCIDRs": None, "syncPeriod": "0s"},
    "logging": {"flushFrequency": 0, "options": {"json": {"infoBufferSize": "0"}}},
    "mode": "",
    "nftables": {"masqueradeAll": False, "masqueradeBit": None, "minSyncPeriod": "0s", "syncPeriod": "0s"},
    "nodePortAddresses": None,
    "winkernel": {"enableDSR": False, "networkName": "", "sourceVip": ""},
}


def read(**values: object) -> Config:
    return make_config(values, node_name="n1")


def faults(**values: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(**values)
    return {fault.field: f"{fault.text} | {fault.remedy}" for fault in caught.value.faults}


def test_nothing_given_is_the_default_configuration() -> None:
    assert read() == Config(node_name="n1")


def test_a_file_written_for_kube_proxy_is_read_as_it_is() -> None:
    assert make_config(KUBEADM, node_name="n1") == Config("n1", cluster_cidrs=(parse_prefix("10.244.0.0/16"),))


def test_every_setting_reaches_the_configuration() -> None:
    config = read(
        hostnameOverride="Other",
        bindAddress="192.0.2.9",
        clusterCIDR="10.1.0.0/16,fd00:1::/48",
        detectLocalMode="InterfaceNamePrefix",
        detectLocal={"bridgeInterface": "br0", "interfaceNamePrefix": "veth"},
        nodePortAddresses=["192.0.2.0/24"],
        featureGates={"AllowServiceExternalIPs": False},
        winkernel={
            "networkName": "cbr0",
            "sourceVip": "10.1.1.2",
            "enableDSR": True,
            "rootHnsEndpointName": "host",
            "forwardHealthCheckVip": True,
            "sourceVipEndpoint": "vip",
            "createSourceVip": False,
            "journalPath": "C:\\hansa\\journal",
            "callBudget": 10,
            "passBudget": "5s",
            "verifyPerPeriod": 3,
            "dnsProbePeriod": "15s",
        },
        syncPeriod="20s",
        minSyncPeriod="2s",
        fullSyncPeriod="10m",
        fullCheckPeriod="15s",
        healthzBindAddress="192.0.2.9",
        metricsBindAddress="off",
        bindAddressHardFail=True,
        masqueradeAll=True,
        localhostNodePorts=True,
        proxyName="hansa",
        takeover=False,
        criticalServices=["a/b"],
        conntrack={
            "maxPerCore": 1,
            "min": 2,
            "tcpEstablishedTimeout": "3s",
            "tcpCloseWaitTimeout": "4s",
            "tcpBeLiberal": True,
            "udpTimeout": "5s",
            "udpStreamTimeout": "6s",
        },
        ipForward=True,
        oomScoreAdj=-999,
    )
    untouched = Config(node_name="n1")
    assert config.node_name == "other"
    assert config.bind_addresses == (parse_address("192.0.2.9"),)
    assert config.cluster_cidrs == (parse_prefix("10.1.0.0/16"), parse_prefix("fd00:1::/48"))
    assert config.node_port_addresses == NodePortAddresses(primary=False, prefixes=(parse_prefix("192.0.2.0/24"),))
    assert config.sync_period_s == 20
    assert config.min_sync_period_s == 2
    assert config.full_sync_period_s == 600
    assert config.full_check_period_s == 15
    assert str(config.healthz_bind_address) == "192.0.2.9:10256"
    assert config.windows.critical == ("a/b",)
    assert config.windows.pass_budget_s == 5
    for field in Config.__dataclass_fields__:
        assert getattr(config, field) != getattr(untouched, field), f"{field} cannot be set"
    for field in type(config.windows).__dataclass_fields__:
        assert getattr(config.windows, field) != getattr(untouched.windows, field), f"windows.{field} cannot be set"
    for field in type(config.linux).__dataclass_fields__:
        assert getattr(config.linux, field) != getattr(untouched.linux, field), f"linux.{field} cannot be set"


@pytest.mark.parametrize("setting", [setting.path for setting in SETTINGS])
def test_every_documented_setting_is_read(setting: str) -> None:
    """A list of groups is right nowhere, so whoever reads the setting complains."""
    values: dict[str, object] = {}
    *groups, name = setting.split(".")
    inner = values
    for group in groups:
        inner = inner.setdefault(group, {})  # type: ignore[assignment]
    inner[name] = [{"not": "a value"}]
    if setting.startswith("nftables."):
        values["mode"] = "nftables"
    assert setting in faults(**values)


@pytest.mark.parametrize("hostname", [" N1 ", "n1", "N1"])
def test_i5_the_node_name_is_trimmed_and_lower_cased(hostname: str) -> None:
    assert make_config({}, node_name=hostname).node_name == "n1"
    assert make_config({"hostnameOverride": hostname}, node_name="other").node_name == "n1"


def test_i5_an_empty_node_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="hostnameOverride"):
        make_config({}, node_name="  ")
    assert "hostnameOverride" in faults(hostnameOverride="   ")


@pytest.mark.scenario("t050")
def test_n9_primary_mixed_with_cidrs_is_refused() -> None:
    assert "mixed" in faults(nodePortAddresses=["primary", "192.0.2.0/24"])["nodePortAddresses"]


def test_n4_node_port_addresses_not_given_empty_and_primary_differ() -> None:
    assert read(nodePortAddresses=None).node_port_addresses == NodePortAddresses(primary=True)
    assert read(nodePortAddresses=["primary"]).node_port_addresses == NodePortAddresses(primary=True)
    assert read(nodePortAddresses=[]).node_port_addresses == NodePortAddresses(primary=False)


def test_a_bad_node_port_address_is_named_by_its_place() -> None:
    assert "CIDR" in faults(nodePortAddresses=["192.0.2.0/24", "192.0.2.1"])["nodePortAddresses[1]"]


@pytest.mark.scenario("t137")
def test_two_cluster_cidrs_of_one_family_are_refused() -> None:
    assert "10.1.0.0/16, 10.2.0.0/16" in faults(clusterCIDR="10.1.0.0/16,10.2.0.0/16")["clusterCIDR"]


def test_a_detector_refuses_what_it_lacks_and_ignores_what_is_not_its_own() -> None:
    assert "detectLocal.bridgeInterface" in faults(detectLocalMode="BridgeInterface")
    assert "detectLocal.interfaceNamePrefix" in faults(detectLocalMode="InterfaceNamePrefix")
    assert "NodeCIDR" in faults(detectLocalMode="Nodecidr")["detectLocalMode"]
    assert read(detectLocalMode="NodeCIDR", clusterCIDR="10.1.0.0/16,10.2.0.0/16").detect_local_mode is (
        DetectLocalMode.NODE_CIDR
    )


@pytest.mark.parametrize(
    "values, path",
    [
        ({"minSyncPeriod": "1m"}, "minSyncPeriod"),
        ({"minSyncPeriod": "-1s"}, "minSyncPeriod"),
        ({"syncPeriod": "0s"}, "syncPeriod"),
        ({"syncPeriod": "-5s"}, "syncPeriod"),
        ({"iptables": {"syncPeriod": "-5s"}}, "iptables.syncPeriod"),
        ({"iptables": {"minSyncPeriod": "31s"}}, "iptables.minSyncPeriod"),
    ],
)
def test_b7_periods_that_make_no_sense_are_refused(values: dict[str, object], path: str) -> None:
    assert set(faults(**values)) == {path}


def test_b7_no_pause_at_all_is_allowed() -> None:
    assert read(minSyncPeriod="0s").min_sync_period_s == 0
    assert read(minSyncPeriod=0).min_sync_period_s == 0


def test_periods_come_from_the_top_then_from_the_section_of_the_mode() -> None:
    sections = {"iptables": {"syncPeriod": "40s"}, "nftables": {"syncPeriod": "50s"}}
    assert read(**sections).sync_period_s == 40
    assert read(mode="nftables", **sections).sync_period_s == 50
    assert read(syncPeriod="60s", **sections).sync_period_s == 60


def test_f30_the_full_check_has_a_period_of_its_own_and_follows_sync_period_by_default() -> None:
    assert read().full_check_period_s == 30
    assert read(syncPeriod="10s").full_check_period_s == 10
    assert read(syncPeriod="10s", fullCheckPeriod="5m").full_check_period_s == 300


def test_a11_sloppy_addresses_are_read_as_decimal() -> None:
    config = read(clusterCIDR="10.001.0.0/16", bindAddress="192.000.002.001", winkernel={"sourceVip": "010.1.1.2"})
    assert str(config.cluster_cidrs[0]) == "10.1.0.0/16"
    assert str(config.bind_addresses[0]) == "192.0.2.1"
    assert str(config.windows.source_vip[0]) == "10.1.1.2"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
def test_an_unspecified_bind_address_replaces_nothing(address: str) -> None:
    assert read(bindAddress=address).bind_addresses == ()


@pytest.mark.parametrize("address", ["[::]", "192.0.2.1:80", "foo", "192.0.2.1,192.0.2.2"])
def test_a_bad_bind_address_is_refused(address: str) -> None:
    assert set(faults(bindAddress=address)) == {"bindAddress"}


def test_all_faults_are_told_at_once() -> None:
    found = faults(
        syncPeriod=5,
        clusterCIDR="nonsense",
        masqueradeAll="maybe",
        winkernel={"callBudget": 0},
        criticalServices=["dns"],
    )
    assert set(found) == {"syncPeriod", "clusterCIDR", "masqueradeAll", "winkernel.callBudget", "criticalServices[0]"}
    assert "unit" in found["syncPeriod"]


@pytest.mark.parametrize(
    "values, path, meant",
    [
        ({"clusterCidrs": "10.1.0.0/16"}, "clusterCidrs", "clusterCIDR"),
        ({"enableDSR": True}, "enableDSR", "winkernel.enableDSR"),
        ({"winkernel": {"networkname": "x"}}, "winkernel.networkname", "winkernel.networkName"),
        ({"winkernel": {"syncPeriod": "3s"}}, "winkernel.syncPeriod", "syncPeriod"),
        ({"qqqq": 1}, "qqqq", None),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_known_one(
    values: dict[str, object], path: str, meant: str | None
) -> None:
    expected = f"did you mean {meant}?" if meant else "remove it"
    assert faults(**values) == {path: f"unknown setting | {expected}"}


def test_a_section_that_is_no_group_and_another_kind_of_file_are_refused() -> None:
    assert set(faults(winkernel="cbr0", featureGates=["A"])) == {"winkernel", "featureGates"}
    assert "ConfigMap" in faults(kind="ConfigMap")["kind"]


def test_feature_gates_may_be_a_flags_text_and_unknown_ones_do_not_matter() -> None:
    assert not read(featureGates="AllowServiceExternalIPs=false,IPv6DualStack=true").allow_external_ips
    assert "malformed pair" in faults(featureGates="A")["featureGates"]
    assert "locked" in faults(featureGates={"WinDSR": False})["featureGates.WinDSR"]
    assert read(featureGates={"WinDSR": True}) == Config(node_name="n1")


def test_settings_of_kube_proxy_without_effect_are_listed_with_their_values_given() -> None:
    listed = {fault.field for fault in ignored_settings({**KUBEADM, "featureGates": "IPv6DualStack=true"})}
    assert {"clientConnection.kubeconfig", "configSyncPeriod", "featureGates.IPv6DualStack"} <= listed
    assert "nftables.masqueradeBit" not in listed  # not given
    assert not listed & {setting.path for setting in SETTINGS}


@pytest.mark.parametrize("word, value", [("T", True), ("1", True), ("False", False), ("0", False)])
def test_texts_of_flags_are_read_into_types(word: str, value: bool) -> None:
    assert read(masqueradeAll=word).masquerade_all is value


@pytest.mark.parametrize(
    "text, seconds",
    [("30s", 30), ("1h15m", 4500), ("300ms", 0.3), ("1.5h", 5400), ("0", 0), ("-2s", -2), (".5s", 0.5), ("1µs", 1e-6)],
)
def test_durations_are_read_as_go_writes_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "", "s", "1 s", "1d", "1.2.3s", "--1s", "."])
def test_what_go_refuses_as_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@laws
@given(st.integers(0, 400), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_as_go_prints_them_read_back(hours: int, minutes: int, seconds: int, millis: int) -> None:
    expected = hours * 3600 + minutes * 60 + seconds + millis / 1000
    assert parse_duration(f"{hours}h{minutes}m{seconds}.{millis:03}s") == pytest.approx(expected)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@laws
@given(st.dictionaries(st.sampled_from(sorted({s.path.split(".")[0] for s in SETTINGS})), JSONISH, max_size=4))
def test_whatever_a_file_holds_gives_a_config_or_a_config_error(values: dict[str, object]) -> None:
    try:
        config = make_config(values, node_name="n1")
    except ConfigError:
        return
    assert config.min_sync_period_s <= config.sync_period_s
    ignored_settings(values)


def warned(config: Config, families: frozenset[IPFamily] = BOTH) -> set[str]:
    return {f"{fault.field}: {fault.text}" for fault in config_warnings(config, families)}


def test_n5_n12_a_list_for_one_family_of_a_dual_stack_node_is_warned_about() -> None:
    config = read(nodePortAddresses=["192.0.2.0/24"], detectLocalMode="NodeCIDR")
    (text,) = warned(config)
    assert "no CIDR for IPv6" in text
    assert not warned(config, frozenset({IPFamily.IPV4}))


def test_m3_a_family_without_detector_is_warned_about() -> None:
    (text,) = warned(read(clusterCIDR="10.1.0.0/16"))
    assert "clusterCIDR: no CIDR for IPv6" in text
    assert not warned(read(clusterCIDR="10.1.0.0/16,fd00::/64"))


def test_values_of_a_family_that_the_node_lacks_are_warned_about() -> None:
    config = read(clusterCIDR="10.1.0.0/16,fd00::/64", winkernel={"sourceVip": "fd00::2"}, bindAddress="2001:db8::1")
    found = warned(config, frozenset({IPFamily.IPV4}))
    assert {text.partition(":")[0] for text in found} == {"clusterCIDR", "winkernel.sourceVip", "bindAddress"}
    assert not warned(config, frozenset()) & found  # a Node that is not known yet proves nothing


def test_limits_of_the_kernel_are_left_alone_unless_given() -> None:
    """Other than with kube-proxy, which has limits of its own even where nothing is given."""
    assert read(**KUBEADM).linux == LinuxConfig()
    zeros = {"maxPerCore": 0, "min": "0", "tcpEstablishedTimeout": "0s", "udpTimeout": 0, "tcpBeLiberal": False}
    assert read(conntrack=zeros).linux == LinuxConfig()
    given = {
        "maxPerCore": 32768,
        "min": 131072,
        "tcpEstablishedTimeout": "24h",
        "tcpCloseWaitTimeout": "1h",
        "tcpBeLiberal": True,
        "udpTimeout": "30s",
        "udpStreamTimeout": "2m",
    }
    assert read(conntrack=given, ipForward="true").linux == LinuxConfig(32768, 131072, 86400, 3600, True, 30, 120, True)


@pytest.mark.parametrize("key", ["maxPerCore", "min", "tcpEstablishedTimeout", "udpTimeout"])
@pytest.mark.parametrize("value", [-1, "-1s", "x", True, [3]])
def test_limits_that_are_none_are_refused(key: str, value: object) -> None:
    assert f"conntrack.{key}" in faults(conntrack={key: value})


def test_takeover_is_one_setting_for_all_dataplanes() -> None:
    assert read().takeover
    assert not read(takeover=False).takeover


@pytest.mark.parametrize(
    ("values", "healthz", "metrics"),
    [
        ({}, "0.0.0.0:10256", "127.0.0.1:10249"),
        ({"healthzBindAddress": "", "metricsBindAddress": ""}, "0.0.0.0:10256", "127.0.0.1:10249"),
        ({"bindAddress": "192.0.2.9"}, "0.0.0.0:10256", "127.0.0.1:10249"),
        ({"bindAddress": "::"}, "[::]:10256", "[::1]:10249"),
        ({"bindAddress": "2001:db8::9"}, "[::]:10256", "[::1]:10249"),
        ({"healthzBindAddress": "off", "metricsBindAddress": "off"}, "None", "None"),
        ({"healthzBindAddress": "127.0.0.1", "metricsBindAddress": "::"}, "127.0.0.1:10256", "[::]:10249"),
        ({"healthzBindAddress": "[::1]:0", "metricsBindAddress": "0.0.0.0:9999"}, "[::1]:0", "0.0.0.0:9999"),
    ],
)
def test_health_and_metrics_listen_where_kube_proxy_does(values: dict[str, str], healthz: str, metrics: str) -> None:
    config = make_config(values, node_name="n1")
    assert (str(config.healthz_bind_address), str(config.metrics_bind_address)) == (healthz, metrics)


@pytest.mark.parametrize(
    "text",
    ["localhost:1", ":10256", "0.0.0.0:", "0.0.0.0:65536", "0.0.0.0:-1", "[0.0.0.0]:1", "::1:x", "[::1", "1.2.3"],
)
def test_what_is_no_address_to_listen_at_is_named(text: str) -> None:
    assert "neither IP nor IP:port" in faults(healthzBindAddress=text)["healthzBindAddress"]
