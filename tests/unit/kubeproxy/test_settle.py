"""Flags and file together: what counts, what is said, what hansa runs on. Evidence: operations.md 4, 9, 14, 20."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.config import Config, DetectLocalMode, LogConfig, NodePortAddresses, VModule
from hansa.kubeproxy import settle
from hansa.kubeproxy.configuration import Decoded, decode, decode_own, nested, validate
from hansa.kubeproxy.flags import FLAGS, Origin, parse
from hansa.kubeproxy.gates import GATES, judge
from hansa.kubeproxy.keys import API_VERSION, KEYS, KIND, WINDOWS_ONLY, Key, Type
from hansa.kubeproxy.settle import Completed, Documents, Level, Reload, StartError, Surroundings
from hansa.net import IPFamily, parse_address, parse_prefix

OWN = {"apiVersion": "config.hansa/v1alpha1", "kind": "HansaConfiguration"}
V4, V6 = IPFamily.IPV4, IPFamily.IPV6


def file(**values: object) -> Documents:
    return Documents(decode({"apiVersion": API_VERSION, "kind": KIND, **values}))


def completed(*words: str, documents: Documents | None = None, windows: bool = False, network: str = "") -> Completed:
    parsed = parse(words, windows=windows)
    return settle.complete(parsed, documents or Documents(), Surroundings(" Node-1 ", windows, network))


def config(*words: str, documents: Documents | None = None, windows: bool = False, network: str = "") -> Config:
    found = completed(*words, documents=documents, windows=windows, network=network)
    settle.check_logging(found)
    return settle.check(found)


def remarks(*words: str, documents: Documents | None = None, windows: bool = False) -> list[str]:
    return [one.text for one in completed(*words, documents=documents, windows=windows).remarks]


def error(*words: str, documents: Documents | None = None) -> StartError:
    with pytest.raises(StartError) as caught:
        config(*words, documents=documents)
    return caught.value


# -- from flags


def test_nothing_given_is_what_kube_proxy_would_do() -> None:
    found = config()
    assert found.node_name == "node-1"
    assert found.node_port_addresses == NodePortAddresses(primary=False), "mode iptables: all addresses"
    assert found.localhost_node_ports
    assert (found.sync_period_s, found.min_sync_period_s) == (30, 1)
    assert (str(found.healthz_bind_address), str(found.metrics_bind_address)) == ("0.0.0.0:10256", "127.0.0.1:10249")
    linux = found.linux
    assert (linux.max_per_core, linux.min_entries, linux.oom_score_adj) == (32768, 131072, -999)
    assert (linux.tcp_established_timeout_s, linux.tcp_close_wait_timeout_s) == (86400, 3600)
    assert (linux.udp_timeout_s, linux.udp_stream_timeout_s, linux.tcp_be_liberal) == (None, None, False)


def test_mode_nftables_has_defaults_of_its_own() -> None:
    found = config("--proxy-mode=nftables")
    assert found.node_port_addresses == NodePortAddresses(primary=True)
    assert not found.localhost_node_ports


# What each flag does to the configuration: flag, and what is other than without it.
EFFECTS: list[tuple[str, dict[str, object]]] = [
    ("--hostname-override= N1 ", {"node_name": "n1"}),
    ("--bind-address=192.0.2.1", {"bind_addresses": (parse_address("192.0.2.1"),)}),
    ("--bind-address=::", {}),
    ("--healthz-bind-address=", {"healthz_bind_address": None}),
    ("--metrics-bind-address=", {"metrics_bind_address": None}),
    ("--healthz-port=0", {"healthz_bind_address": None}),
    ("--metrics-port=0", {"metrics_bind_address": None}),
    ("--bind-address-hard-fail", {"bind_address_hard_fail": True}),
    ("--feature-gates=AllowServiceExternalIPs=false", {"allow_external_ips": False}),
    ("--iptables-sync-period=20s", {"sync_period_s": 20.0, "full_check_period_s": 20.0}),
    ("--iptables-min-sync-period=2s", {"min_sync_period_s": 2.0}),
    ("--iptables-localhost-nodeports=false", {"localhost_node_ports": False}),
    ("--masquerade-all", {"masquerade_all": True}),
    ("--cluster-cidr=10.0.0.0/8", {"cluster_cidrs": (parse_prefix("10.0.0.0/8"),)}),
    ("--nodeport-addresses=primary", {"node_port_addresses": NodePortAddresses(primary=True)}),
    (
        "--nodeport-addresses=10.0.0.0/8",
        {"node_port_addresses": NodePortAddresses(primary=False, prefixes=(parse_prefix("10.0.0.0/8"),))},
    ),
    ("--full-sync-period=10m", {"full_sync_period_s": 600.0}),
    ("--full-check-period=7s", {"full_check_period_s": 7.0}),
    ("--service-proxy-name=mine", {"proxy_name": "mine"}),
    ("--config-override=iptables.syncPeriod=20s", {"sync_period_s": 20.0, "full_check_period_s": 20.0}),
    ("--config-override=fullCheckPeriod=7s", {"full_check_period_s": 7.0}),
]
LINUX_EFFECTS: list[tuple[str, dict[str, object]]] = [
    ("--oom-score-adj=-998", {"oom_score_adj": -998}),
    ("--conntrack-max-per-core=0", {"max_per_core": None, "min_entries": None}),
    ("--conntrack-min=5", {"min_entries": 5}),
    ("--conntrack-tcp-timeout-established=0", {"tcp_established_timeout_s": None}),
    ("--conntrack-tcp-timeout-close-wait=5s", {"tcp_close_wait_timeout_s": 5.0}),
    ("--conntrack-tcp-be-liberal", {"tcp_be_liberal": True}),
    ("--conntrack-udp-timeout=5s", {"udp_timeout_s": 5.0}),
    ("--conntrack-udp-timeout-stream=5s", {"udp_stream_timeout_s": 5.0}),
    ("--ip-forward", {"ip_forward": True}),
]
WINDOWS_EFFECTS: list[tuple[str, dict[str, object]]] = [
    ("--source-vip=10.0.0.2", {"source_vip": (parse_address("10.0.0.2"),)}),
    ("--network-name=x", {"network_name": "x"}),
    ("--enable-dsr", {"enable_dsr": True}),
    ("--root-hnsendpoint-name=x", {"root_endpoint_name": "x"}),
    ("--forward-healthcheck-vip", {"forward_health_check_vip": True}),
    ("--source-vip-endpoint=vip", {"source_vip_endpoint": "vip"}),
    ("--create-source-vip=false", {"create_source_vip": False}),
    ("--journal-path=/j", {"journal_path": "/j"}),
    ("--hns-call-budget=5", {"call_budget": 5}),
    ("--hns-pass-budget=5s", {"pass_budget_s": 5.0}),
    ("--hns-verify-per-period=5", {"verify_per_period": 5}),
    ("--dns-probe-period=15s", {"dns_probe_period_s": 15.0}),
    ("--takeover=false", {"takeover": False}),
    ("--critical-services=a/b,c/d", {"critical": ("a/b", "c/d")}),
]


def changed(before: Any, after: Any) -> dict[str, object]:
    fields = type(before).__dataclass_fields__
    return {name: getattr(after, name) for name in fields if getattr(before, name) != getattr(after, name)}


@pytest.mark.parametrize(("flag", "effect"), EFFECTS)
def test_flags_do_what_they_say_and_nothing_else(flag: str, effect: dict[str, object]) -> None:
    assert changed(config(), config(flag)) == effect


@pytest.mark.parametrize(("flag", "effect"), LINUX_EFFECTS)
def test_flags_about_the_kernel(flag: str, effect: dict[str, object]) -> None:
    assert list(changed(config(), config(flag))) == ["linux"]
    assert changed(config().linux, config(flag).linux) == effect


@pytest.mark.parametrize(("flag", "effect"), WINDOWS_EFFECTS)
def test_flags_about_windows(flag: str, effect: dict[str, object]) -> None:
    before, after = config(windows=True), config(flag, windows=True)
    assert list(changed(before, after)) == ["windows"]
    assert changed(before.windows, after.windows) == effect


def test_other_detectors() -> None:
    assert config("--detect-local-mode=NodeCIDR").detect_local_mode.value == "NodeCIDR"
    bridge = config("--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0")
    assert bridge.bridge_interface == "cni0"
    prefix = config("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth")
    assert prefix.interface_name_prefix == "veth"


def test_the_flags_of_iptables_set_the_periods_of_every_mode_but_ipvs() -> None:
    """Quirks 3 and 4."""
    words = ("--iptables-sync-period=20s", "--iptables-min-sync-period=2s", "--masquerade-all")
    ipvs = ("--ipvs-sync-period=40s",)
    for mode in ("", "nftables"):
        found = config(f"--proxy-mode={mode}", *words, *ipvs)
        assert (found.sync_period_s, found.min_sync_period_s, found.masquerade_all) == (20, 2, True)
    found = config("--proxy-mode=ipvs", "--accept-mode=ipvs", *words, *ipvs)
    assert (found.sync_period_s, found.min_sync_period_s, found.masquerade_all) == (40, 1, True)
    found = config(*words, windows=True)
    assert (found.sync_period_s, found.min_sync_period_s) == (20, 2)


def test_a_port_by_itself_goes_to_an_address_without_one() -> None:
    words = ("--healthz-port=1", "--metrics-port=2")
    assert str(config(*words, "--healthz-bind-address=192.0.2.1").healthz_bind_address) == "192.0.2.1:1"
    assert str(config(*words, "--healthz-bind-address=192.0.2.1:9").healthz_bind_address) == "192.0.2.1:9"
    assert str(config(*words).metrics_bind_address) == "127.0.0.1:2"


def test_the_network_comes_from_the_environment_where_nothing_names_it() -> None:
    assert config(windows=True, network="env").windows.network_name == "env"
    assert config("--network-name=flag", windows=True, network="env").windows.network_name == "flag"
    named = file(winkernel={"networkName": "file"})
    assert config(documents=named, windows=True, network="env").windows.network_name == "file"


# -- with a file


def test_a_file_replaces_every_flag_that_a_key_stands_for_and_says_so() -> None:
    given = file(clusterCIDR="10.0.0.0/8")
    words = ("--cluster-cidr=11.0.0.0/8", "--masquerade-all", "--healthz-port=1")
    assert config(*words, documents=given) == config(documents=given)
    (remark, *_) = completed(*words, documents=given).remarks
    assert remark.level is Level.WARNING
    assert remark.text.startswith(
        "flags ignored because --config is given: --cluster-cidr, --masquerade-all, --healthz-port;"
    )


def test_what_wins_over_a_file() -> None:
    """kubeadm gives both; and flags about logging, and the server's address (quirk 14)."""
    given = file(hostnameOverride="file", logging={"verbosity": 1, "vmodule": [{"filePattern": "f", "verbosity": 1}]})
    found = completed("--hostname-override=Flag", "-v4", "--vmodule=a=2", "--master=https://x", documents=given)
    assert settle.check(found).node_name == "flag"
    assert settle.check_logging(found) == LogConfig(verbosity=4, vmodule=(VModule("a", 2), VModule("f", 1)))
    assert settle.api_access(found).master == "https://x"
    assert not any("ignored" in one.text for one in found.remarks)
    assert config(documents=given).node_name == "file"


def test_single_values_win_over_a_file_by_config_override() -> None:
    given = file(conntrack={"maxPerCore": 1}, nodePortAddresses=["10.0.0.0/8"])
    found = config("--config-override=conntrack.maxPerCore=0", "--config-override=mode=nftables", documents=given)
    assert found.linux.max_per_core is None
    assert not found.localhost_node_ports
    assert config("--config-override=nodePortAddresses=", documents=given).node_port_addresses.prefixes == ()
    found = config("--config-override=featureGates=AllowServiceExternalIPs=false", documents=given)
    assert not found.allow_external_ips


def test_overrides_of_unknown_keys_and_wrong_types_are_refused_together() -> None:
    found = error("--config-override=bogus=1", "--config-override=conntrack.min=x", documents=file())
    assert str(found) == (
        "failed complete: [--config-override bogus: there is no such key, "
        '--config-override conntrack.min: "x" is not a whole number]'
    )


def test_a_file_counts_by_the_section_of_its_mode() -> None:
    sections = {
        "iptables": {"syncPeriod": "11s", "masqueradeAll": True},
        "nftables": {"syncPeriod": "22s", "masqueradeAll": False},
        "ipvs": {"syncPeriod": "33s"},
    }
    assert config(documents=file(**sections)).sync_period_s == 11
    assert config(documents=file(**sections)).masquerade_all
    nftables = config(documents=file(mode="nftables", **sections))
    assert (nftables.sync_period_s, nftables.masquerade_all) == (22, False)
    ipvs = config("--accept-mode=ipvs", documents=file(mode="ipvs", **sections))
    assert (ipvs.sync_period_s, ipvs.min_sync_period_s, ipvs.masquerade_all) == (33, 0, True)


def test_hansas_own_settings_come_from_its_document_and_flags_win() -> None:
    own = decode_own({**OWN, "takeover": False, "fullCheckPeriod": "9s", "winkernel": {"callBudget": 5}})
    found = config("--full-check-period=8s", documents=Documents(own=own), windows=True)
    assert (found.windows.takeover, found.full_check_period_s, found.windows.call_budget) == (False, 8, 5)
    both = Documents(Decoded({"clusterCIDR": "10.0.0.0/8"}), own)
    assert config(documents=both).cluster_cidrs == (parse_prefix("10.0.0.0/8"),)
    assert not config(documents=both).takeover


def test_what_is_wrong_with_hansas_own_settings_is_told_by_path() -> None:
    own = decode_own({**OWN, "fullCheckPeriod": 9, "criticalServices": ["x"]})
    assert "fullCheckPeriod: 9 is not a duration" in str(error(documents=Documents(own=own)))
    assert "criticalServices[0]: 'x' names no Service" in str(error(documents=Documents(own=own)))


# What each key of a file does: value, mode, and what it reaches. Configuration fields as above; `log.` and `api.` are
# of `check_logging` and `api_access`.
KEY_EFFECTS: dict[str, tuple[object, dict[str, object]]] = {
    "hostnameOverride": ("Other", {"node_name": "other"}),
    "bindAddress": ("192.0.2.1", {"bind_addresses": (parse_address("192.0.2.1"),)}),
    "healthzBindAddress": ("off", {"healthz_bind_address": None}),
    "metricsBindAddress": ("off", {"metrics_bind_address": None}),
    "bindAddressHardFail": (True, {"bind_address_hard_fail": True}),
    "clientConnection.kubeconfig": ("/k", {"api.kubeconfig": "/k"}),
    "clientConnection.qps": (9, {"api.qps": 9.0}),
    "clientConnection.burst": (9, {"api.burst": 9}),
    "clusterCIDR": ("10.0.0.0/8", {"cluster_cidrs": (parse_prefix("10.0.0.0/8"),)}),
    "detectLocalMode": ("NodeCIDR", {"detect_local_mode": DetectLocalMode.NODE_CIDR}),
    "detectLocal.bridgeInterface": ("cni0", {"bridge_interface": "cni0"}),
    "detectLocal.interfaceNamePrefix": ("veth", {"interface_name_prefix": "veth"}),
    "nodePortAddresses": (["primary"], {"node_port_addresses": NodePortAddresses(primary=True)}),
    "featureGates": ({"AllowServiceExternalIPs": False}, {"allow_external_ips": False}),
    "mode": (
        "nftables",
        {"node_port_addresses": NodePortAddresses(primary=True), "localhost_node_ports": False},
    ),
    "iptables.syncPeriod": ("20s", {"sync_period_s": 20.0, "full_check_period_s": 20.0}),
    "iptables.minSyncPeriod": ("2s", {"min_sync_period_s": 2.0}),
    "iptables.masqueradeAll": (True, {"masquerade_all": True}),
    "iptables.localhostNodePorts": (False, {"localhost_node_ports": False}),
    "nftables.syncPeriod": ("20s", {"sync_period_s": 20.0, "full_check_period_s": 20.0}),
    "nftables.minSyncPeriod": ("2s", {"min_sync_period_s": 2.0}),
    "nftables.masqueradeAll": (True, {"masquerade_all": True}),
    "conntrack.maxPerCore": (5, {"linux.max_per_core": 5}),
    "conntrack.min": (5, {"linux.min_entries": 5}),
    "conntrack.tcpEstablishedTimeout": ("5s", {"linux.tcp_established_timeout_s": 5.0}),
    "conntrack.tcpCloseWaitTimeout": ("5s", {"linux.tcp_close_wait_timeout_s": 5.0}),
    "conntrack.tcpBeLiberal": (True, {"linux.tcp_be_liberal": True}),
    "conntrack.udpTimeout": ("5s", {"linux.udp_timeout_s": 5.0}),
    "conntrack.udpStreamTimeout": ("5s", {"linux.udp_stream_timeout_s": 5.0}),
    "oomScoreAdj": (-5, {"linux.oom_score_adj": -5}),
    "winkernel.networkName": ("x", {"windows.network_name": "x"}),
    "winkernel.sourceVip": ("10.0.0.2", {"windows.source_vip": (parse_address("10.0.0.2"),)}),
    "winkernel.enableDSR": (True, {"windows.enable_dsr": True}),
    "winkernel.rootHnsEndpointName": ("x", {"windows.root_endpoint_name": "x"}),
    "winkernel.forwardHealthCheckVip": (True, {"windows.forward_health_check_vip": True}),
    "logging.format": ("json", {"log.format": "json"}),
    "logging.flushFrequency": ("9s", {"log.flush_frequency_s": 9.0}),
    "logging.verbosity": (4, {"log.verbosity": 4}),
    "logging.vmodule": ([{"filePattern": "a", "verbosity": 2}], {"log.vmodule": (VModule("a", 2),)}),
    "logging.options.text.splitStream": (True, {"log.split_stream": True}),
    "logging.options.text.infoBufferSize": ("1Ki", {"log.info_buffer_bytes": 1024}),
    "logging.options.json.splitStream": (True, {"log.split_stream": True}),
    "logging.options.json.infoBufferSize": ("1Ki", {"log.info_buffer_bytes": 1024}),
}
# What is read by `hansa proxy` itself; their own tests show it.
OF_THE_PROCESS = {"enableProfiling", "windowsRunAsService"}


def reached(values: dict[str, object], *, windows: bool) -> dict[str, object]:
    """Everything that a file's values reach."""
    found = completed(documents=file(**nested(values)), windows=windows)
    config, log, access = settle.check(found), settle.check_logging(found), settle.api_access(found)
    parts = {"": config, "linux.": config.linux, "windows.": config.windows, "log.": log, "api.": access}
    return {
        f"{prefix}{name}": getattr(part, name)
        for prefix, part in parts.items()
        for name in type(part).__dataclass_fields__
        if name not in ("linux", "windows")
    }


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_does_what_it_says_and_nothing_else(key: Key) -> None:
    around: dict[str, object] = {}
    if key.path.startswith("nftables."):
        around["mode"] = "nftables"
    if key.path.startswith("logging.options."):
        around |= {"featureGates": {"LoggingAlphaOptions": True}, "logging.format": key.path.split(".")[2]}
    if not key.planes:
        samples = {Type.TEXT: "1.35", Type.BOOL: True, Type.INTEGER: 7, Type.DURATION: "77s", Type.LIST: ["10.0.0.0/8"]}
        value, effect = samples[key.type], {}
    elif key.path in OF_THE_PROCESS:
        value, effect = True, {}
        assert completed(documents=file(**{key.path: True})).values[key.path] is True
    else:
        value, effect = KEY_EFFECTS[key.path]
    windows = key.planes == WINDOWS_ONLY
    before, after = reached(around, windows=windows), reached({**around, key.path: value}, windows=windows)
    assert {name: after[name] for name in after if after[name] != before[name]} == effect


def test_every_flag_with_an_effect_is_in_a_table_above() -> None:
    tried = {flag.partition("=")[0].removeprefix("--") for flag, _ in (*EFFECTS, *LINUX_EFFECTS, *WINDOWS_EFFECTS)}
    settings = {one.name for one in FLAGS if one.planes and one.key and one.origin is not Origin.GONE}
    elsewhere = {
        *("kubeconfig", "kube-api-qps", "kube-api-burst", "profiling", "proxy-mode", "detect-local-mode"),
        *("pod-bridge-interface", "pod-interface-name-prefix", "windows-service"),
        *("v", "vmodule", "logging-format", "log-flush-frequency", "log-text-split-stream", "log-json-split-stream"),
        *("log-text-info-buffer-size", "log-json-info-buffer-size"),
    }
    assert settings - tried == elsewhere


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["-v4"], LogConfig(verbosity=4)),
        (["--vmodule=a=1,b*=2"], LogConfig(vmodule=(VModule("a", 1), VModule("b*", 2)))),
        (["--logging-format=json"], LogConfig(format="json")),
        (["--log-flush-frequency=9s"], LogConfig(flush_frequency_s=9.0)),
        (["--feature-gates=LoggingAlphaOptions=true", "--log-text-split-stream"], LogConfig(split_stream=True)),
        (
            [
                "--feature-gates=AllAlpha=true",
                "--logging-format=json",
                "--log-json-split-stream",
                "--log-json-info-buffer-size=1Ki",
                "--log-text-info-buffer-size=2Ki",
            ],
            LogConfig(format="json", split_stream=True, info_buffer_bytes=1024),
        ),
    ],
)
def test_flags_about_logging(words: list[str], wanted: LogConfig) -> None:
    assert settle.check_logging(completed(*words)) == wanted


# -- modes


def test_without_a_mode_nftables_works_and_says_so_once() -> None:
    assert len([one for one in remarks() if "no mode is given" in one]) == 1
    assert not any("mode" in one for one in remarks("--proxy-mode=nftables"))


@pytest.mark.parametrize(
    ("words", "windows", "chosen"),
    [
        ([], False, "nftables"),
        ([], True, "windows"),
        (["--proxy-mode=userspace"], False, "userspace"),
        (["--proxy-mode=nftables", "--dataplane=exec:cat"], False, "exec:cat"),
    ],
)
def test_the_mode_implies_a_dataplane_and_the_flag_wins(words: list[str], windows: bool, chosen: str) -> None:
    parsed = parse(words, windows=windows)
    found = settle.complete(parsed, Documents(), Surroundings("n1", windows))
    settle.check(found)
    assert settle.dataplane(parsed, found) == chosen
    assert not any("userspace" in one.text for one in found.remarks)


def test_a_mode_that_hansa_lacks_is_refused_unless_it_may_be_stood_for() -> None:
    found = error("--proxy-mode=ipvs")
    assert str(found).startswith("failed validate: KubeProxyConfiguration.Mode.ProxyMode: Invalid value: ")
    assert "--accept-mode=ipvs" in found.remedies[0]
    for accept in ("--accept-mode=ipvs", "--accept-mode=iptables,ipvs"):
        assert any("asked for" in one for one in remarks("--proxy-mode=ipvs", accept))
        assert not config("--proxy-mode=ipvs", accept).localhost_node_ports
    own = Documents(own=decode_own({**OWN, "acceptModes": ["iptables"]}))
    assert config("--proxy-mode=iptables", documents=own) == config()


# -- what is said


def test_what_has_no_effect_is_said_once_with_its_reason() -> None:
    assert remarks("--proxy-mode=nftables", "--ipvs-scheduler=rr", "--ipvs-strict-arp") == [
        "without effect: --ipvs-scheduler, --ipvs-strict-arp (hansa has no ipvs mode)"
    ]
    assert remarks("--proxy-mode=nftables", "--ipvs-scheduler=") == [], "its default needs no word"
    found = remarks(documents=file(mode="nftables", ipvs={"scheduler": "rr"}, winkernel={"enableDSR": True}))
    assert found == [
        "without effect: ipvs.scheduler (hansa has no ipvs mode)",
        "without effect: winkernel.enableDSR (it is about the host networking service of Windows)",
    ]
    assert "--oom-score-adj (it sets the Linux kernel)" in remarks("--oom-score-adj=1", windows=True)[0]


def test_lenient_decoding_is_said() -> None:
    found = remarks(documents=file(mode="nftables", bogus=1, bindAdress="10.0.0.1"))
    assert found == [
        'Using lenient decoding as strict decoding failed: unknown field "bogus"; unknown field "bindAdress"',
        "keys that nobody knows have no effect: bogus, bindAdress (did you mean bindAddress?)",
    ]


def test_strict_decoding_can_be_asked_for() -> None:
    """Everything that it finds, with what was probably meant; a file that has nothing of that goes on."""
    documents = file(mode="nftables", bogus=1, bindAdress="10.0.0.1")
    found = error("--strict-config", documents=documents)
    assert str(found) == (
        'failed complete: failed to decode: strict decoding error: unknown field "bogus", unknown field "bindAdress"'
    )
    assert found.remedies == ("bogus: remove it", "bindAdress: did you mean bindAddress?")
    twice = Documents(decode({"apiVersion": API_VERSION, "kind": KIND}, doubled=['key "mode" already set']))
    assert error("--strict-config", documents=twice).remedies == ("give each key once",)
    assert config("--strict-config", documents=file(mode="nftables")) == config(documents=file(mode="nftables"))


def test_gates() -> None:
    assert "unrecognized feature gate: IPv6DualStack" in remarks("--feature-gates=WinOverlay=true,IPv6DualStack=false")
    locked = judge({"WinDSR": True})
    assert locked.infos == ("Setting GA feature gate WinDSR=true. It will be removed in a future release.",)
    found = error("--feature-gates=WinDSR=false")
    assert str(found) == "failed complete: cannot set feature gate WinDSR to false, feature is locked to true"
    assert judge({"AllAlpha": True}).enabled["NativeHistograms"]
    assert not judge({"AllBeta": False}).enabled["WatchListClient"]
    assert judge({"AllBeta": False, "WatchListClient": True}).enabled["WatchListClient"]
    for gate in GATES.values():
        assert (gate.name in judge({gate.name: not gate.default}).faults) is gate.locked


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--hostname-override=   "], "failed complete: empty hostname-override is invalid"),
        (["--config-reload=x"], "failed complete: --config-reload: 'x' is unknown"),
        (["--logging-format=xml"], 'initialize logging: format: Invalid value: "xml": Unsupported log format'),
        (
            ["--cluster-cidr=x", "--logging-format=xml"],
            'initialize logging: format: Invalid value: "xml": Unsupported log format',
        ),
        (
            ["--oom-score-adj=5000"],
            "failed validate: KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 5000: "
            "must be within the range [-1000, 1000]",
        ),
        (
            ["--oom-score-adj=5000", "--kube-api-burst=-1"],
            "failed validate: [KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 5000: "
            "must be within the range [-1000, 1000], KubeProxyConfiguration.ClientConnection.Burst: Invalid value: -1: "
            "must be greater than or equal to 0]",
        ),
    ],
)
def test_the_first_step_that_fails_has_the_word(words: list[str], text: str) -> None:
    assert str(error(*words)) == text
    assert error(*words).remedies


def test_access_to_the_api_server() -> None:
    access = settle.api_access(completed("--kube-api-qps=-1", "--kube-api-burst=3", "--kubeconfig=/k"))
    assert (access.kubeconfig, access.qps, access.burst, access.watch_list) == ("/k", -1, 3, True)
    assert not settle.api_access(completed("--feature-gates=WatchListClient=false")).watch_list
    assert settle.api_access(completed(documents=file(clientConnection={"qps": 0}))).qps == 5


# -- the node


def test_what_a_node_lacks_is_warned_of_where_it_matters() -> None:
    found = config("--cluster-cidr=10.0.0.0/8")
    assert [one.split(":")[0] for one in settle.warnings_on_node(found, [V4, V6], "nftables")] == ["clusterCIDR"]
    assert settle.warnings_on_node(found, [V4], "nftables") == ()
    assert settle.warnings_on_node(found, [V4, V6], "windows") == (), "nothing is decided by clusterCIDR there"


@pytest.mark.parametrize(
    ("words", "node", "pods", "is_wrong"),
    [
        (["--cluster-cidr=10.0.0.0/8"], {V6}, set(), True),
        (["--cluster-cidr=10.0.0.0/8"], {V4, V6}, set(), False),
        (["--cluster-cidr=10.0.0.0/8,fd00::/48"], {V6}, set(), False),
        ([], {V6}, set(), False),
        (["--detect-local-mode=NodeCIDR"], {V6}, {V4}, True),
        (["--detect-local-mode=NodeCIDR"], {V6}, {V6}, False),
        (["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=x"], {V6}, {V4}, False),
    ],
)
def test_pods_of_another_family_than_the_nodes_only_one(
    words: list[str], node: set[IPFamily], pods: set[IPFamily], is_wrong: bool
) -> None:
    found = config(*words)
    assert bool(settle.wrong_families(found, frozenset(node), frozenset(pods), "nftables")) is is_wrong
    assert settle.wrong_families(found, frozenset(node), frozenset(pods), "windows") == ""


def test_pod_cidrs_are_needed_where_pods_are_recognised_by_them() -> None:
    for words, windows, needed in (([], False, False), (["--detect-local-mode=NodeCIDR"], False, True),
                                   (["--detect-local-mode=NodeCIDR"], True, False)):  # fmt: skip
        found = completed(*words, windows=windows)
        assert settle.needs_pod_cidrs(found, settle.check(found)) is needed


# -- a changed file


def test_what_can_change_under_a_running_proxy_and_what_cannot() -> None:
    old, new = (
        completed(documents=file(iptables={"syncPeriod": "30s"})),
        completed(
            documents=file(
                iptables={"syncPeriod": "20s"},
                nodePortAddresses=["primary"],
                logging={"verbosity": 3},
                healthzBindAddress="0.0.0.0:1",
                conntrack={"min": 1},
                clientConnection={"qps": 9},
                mode="nftables",
            )
        ),
    )
    found = settle.difference(old, new)
    assert set(found.live) == {"mode", "iptables.syncPeriod", "nodePortAddresses", "logging.verbosity"}
    assert set(found.restart) == {"healthzBindAddress", "conntrack.min", "clientConnection.qps"}
    assert settle.difference(old, old) == settle.Difference((), ())


def test_gates_and_own_settings_that_change() -> None:
    def with_gates(**gates: bool) -> Completed:
        return completed(documents=file(featureGates=gates))

    before = with_gates()
    assert settle.difference(before, with_gates(AllowServiceExternalIPs=False)).live == ("featureGates",)
    assert settle.difference(before, with_gates(WatchListClient=False)).restart == ("featureGates",)
    assert settle.difference(before, with_gates(AllowServiceExternalIPs=True)) == settle.Difference((), ())
    own = completed("--full-check-period=9s", "--ip-forward", documents=file())
    assert settle.difference(before, own) == settle.Difference(("fullCheckPeriod",), ("ipForward",))


def test_what_is_live_reaches_what_can_change_and_nothing_else() -> None:
    for path, (_, effect) in KEY_EFFECTS.items():
        if path != "featureGates" and not path.startswith("logging."):
            assert (path in settle.LIVE_KEYS) is (effect.keys() <= settle.LIVE_FIELDS), path
    for flag, effect in EFFECTS:
        name = flag.partition("=")[0].removeprefix("--")
        key = next(one.key for one in FLAGS if one.name == name)
        if key in settle.LIVE_KEYS:
            assert effect.keys() <= settle.LIVE_FIELDS, flag


def test_only_live_fields_are_applied() -> None:
    running = config("--proxy-mode=nftables")
    new = config("--cluster-cidr=10.0.0.0/8", "--healthz-port=0", "--conntrack-min=5")
    applied = settle.with_live_fields(running, new)
    assert applied.cluster_cidrs == new.cluster_cidrs
    assert applied.node_port_addresses == new.node_port_addresses
    assert (applied.healthz_bind_address, applied.linux) == (running.healthz_bind_address, running.linux)


def test_every_live_field_exists() -> None:
    assert set(Config.__dataclass_fields__) >= settle.LIVE_FIELDS


def test_reload_by_flag_or_document() -> None:
    assert completed().reload is Reload.EXIT
    assert completed("--config-reload=apply").reload is Reload.APPLY
    assert completed(documents=Documents(own=decode_own({**OWN, "configReload": "ignore"}))).reload is Reload.IGNORE


# -- as others start it

COMMAND_LINES: dict[str, tuple[bool, str]] = {
    "a static pod of GCE": (
        False,
        "--master=https://10.0.0.1 --kubeconfig=/var/lib/kube-proxy/kubeconfig --cluster-cidr=10.64.0.0/14 "
        "--oom-score-adj=-998 --v=2 --feature-gates=AllAlpha=false --iptables-sync-period=1m "
        "--iptables-min-sync-period=10s --ipvs-sync-period=1m --ipvs-min-sync-period=10s",
    ),
    "Calico on Windows": (
        True,
        "--hostname-override=win-1 --v=2 --proxy-mode=kernelspace --kubeconfig=C:\\k\\config --enable-dsr=true "
        "--feature-gates=WinDSR=true",
    ),
    "Calico on Windows with VXLAN": (
        True,
        "--hostname-override=win-1 --v=2 --proxy-mode=kernelspace --kubeconfig=C:\\k\\config --source-vip=10.244.2.2 "
        "--feature-gates=WinOverlay=true,IPv6DualStack=false",
    ),
    "Flannel on Windows": (
        True,
        "--v=6 --config=unused --hostname-override=win-1 --feature-gates=WinOverlay=true --source-vip=10.244.2.2",
    ),
    "AKS": (
        True,
        "--v=3 --proxy-mode=kernelspace --hostname-override=AKS000000 --kubeconfig=c:\\k\\config "
        "--cluster-cidr=10.244.0.0/16 --enable-dsr=true --feature-gates=WinDSR=true,IPv6DualStack=false",
    ),
    "an old service wrapper": (
        True,
        "--windows-service --logtostderr=false --log-dir=C:\\k\\logs --proxy-mode=kernelspace --kubeconfig=C:\\k\\c",
    ),
    "k3s": (
        False,
        "--cluster-cidr=10.42.0.0/16 --conntrack-max-per-core=0 --conntrack-tcp-timeout-close-wait=0s "
        "--conntrack-tcp-timeout-established=0s --healthz-bind-address=127.0.0.1 --hostname-override=n1 "
        "--kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig --proxy-mode=nftables",
    ),
}


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_command_lines_of_others_are_taken_as_they_are(name: str) -> None:
    windows, line = COMMAND_LINES[name]
    found = completed(*line.split(" "), windows=windows)
    settle.check_logging(found)
    assert settle.check(found).node_name


# -- any file

ADDRESSES = st.sampled_from(
    ["0.0.0.0", "::", "192.0.2.1", "010.0.0.1", "fd00::1", "[::1]", "x", "", "1.2.3.4:5", "off"]
)
PREFIXES = st.sampled_from(
    ["10.0.0.0/8", "fd00::/48", "10.0.0.0", "x/8", "", "primary", "::ffff:10.0.0.0/104", " 10.0.0.0/8"]
)
WORDS = st.sampled_from(["", "x", "iptables", "ipvs", "nftables", "kernelspace", "NodeCIDR", "BridgeInterface", "json"])
SAMPLES: dict[Type, st.SearchStrategy[object]] = {
    Type.TEXT: st.one_of(ADDRESSES, PREFIXES, WORDS, st.lists(PREFIXES, max_size=3).map(",".join)),
    Type.BOOL: st.booleans(),
    Type.INTEGER: st.sampled_from([-1001, -1, 0, 1, 14, 32, 65536, 2**31 - 1]),
    Type.NUMBER: st.sampled_from([-1.0, 0.0, 0.5, 9]),
    Type.DURATION: st.sampled_from(["0s", "1s", "-1s", "500ms", "1h", "2540400h"]),
    Type.FLUSH_PERIOD: st.sampled_from([0, -1, 5_000_000_000, "1s"]),
    Type.LIST: st.lists(PREFIXES, max_size=3),
    Type.GATES: st.dictionaries(st.sampled_from([*GATES, "Unknown"]), st.booleans(), max_size=4),
    Type.VMODULE: st.lists(st.just({"filePattern": "a", "verbosity": 1}), max_size=2),
    Type.QUANTITY: st.sampled_from(["0", "1Mi", "5"]),
}


@st.composite
def any_file(draw: st.DrawFn) -> dict[str, object]:
    chosen = draw(st.lists(st.sampled_from(KEYS), max_size=8, unique_by=lambda key: key.path))
    return {key.path: draw(SAMPLES[key.type]) for key in chosen}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(any_file(), st.booleans())
def test_what_kube_proxy_would_take_hansa_takes_and_what_it_refuses_is_refused_by_it(
    values: dict[str, object], windows: bool
) -> None:
    """Its checks come first and are enough: what passes them becomes a configuration."""
    words = ["--hns=emulator"] if windows else ["--accept-mode=iptables,ipvs"]
    try:
        found = completed(*words, documents=file(**nested(values)), windows=windows)
        settle.check_logging(found)
        problems = validate(found.values, windows=windows, accepted_modes=found.accepted_modes)
    except StartError:
        return  # an earlier step has the word
    if problems:
        with pytest.raises(StartError, match=r"failed validate: \[?KubeProxyConfiguration\."):
            settle.check(found)
    elif windows and found.values["winkernel.sourceVip"]:
        pass  # kube-proxy finds out later, when it parses it
    else:
        settle.check(found)
