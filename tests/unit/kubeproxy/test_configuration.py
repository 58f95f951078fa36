"""KubeProxyConfiguration: every key decoded, defaulted, checked and written again. Evidence: operations.md 3 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from hansa.kubeproxy.configuration import (
    DecodeError,
    decode,
    decode_own,
    encode,
    is_own,
    nested,
    validate,
    validate_logging,
    with_defaults,
)
from hansa.kubeproxy.gates import judge
from hansa.kubeproxy.keys import API_VERSION, BY_PATH, KEYS, KIND, Key, Type

HEAD = {"apiVersion": API_VERSION, "kind": KIND}
CONNTRACK = "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration"

# For each type a value that a file may have, what it is read as, and values of the wrong type.
VALID: dict[Type, tuple[object, object]] = {
    Type.TEXT: ("abc", "abc"),
    Type.BOOL: (True, True),
    Type.INTEGER: (7, 7),
    Type.NUMBER: (7, 7.0),
    Type.DURATION: ("90m", "1h30m0s"),
    Type.FLUSH_PERIOD: (2_000_000_000, "2s"),
    Type.LIST: (["a", "b"], ("a", "b")),
    Type.GATES: ({"A": True}, {"A": True}),
    Type.VMODULE: ([{"filePattern": "x*", "verbosity": 2}], ("x*=2",)),
    Type.QUANTITY: ("16Mi", "16Mi"),
}
WRONG: dict[Type, tuple[object, ...]] = {
    Type.TEXT: (1, True, [], {}),
    Type.BOOL: (1, "maybe", []),
    Type.INTEGER: ("7", 1.5, True, 2**31),
    Type.NUMBER: ("7", True, []),
    Type.DURATION: (30, "30", "x", True),
    Type.FLUSH_PERIOD: ("30", 1.5, True),
    Type.LIST: ("a", [1], {}),
    Type.GATES: ("A=true", {"A": "maybe"}, []),
    Type.VMODULE: ("x=2", [1], [{"filePattern": "x"}], [{"filePattern": "x", "verbosity": -1}]),
    Type.QUANTITY: (True, "x", []),
}


def document(path: str, value: object) -> dict[str, Any]:
    return {**HEAD, **nested({path: value})}


def faults(found: object) -> dict[str, str]:
    with pytest.raises(DecodeError) as caught:
        decode(found)
    return {fault.field: fault.text for fault in caught.value.faults}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_takes_what_its_type_takes_and_nothing_else(key: Key) -> None:
    given, wanted = VALID[key.type]
    found = decode(document(key.path, given))
    assert found.values == {key.path: wanted}
    assert not found.lenient
    assert decode(document(key.path, None)).values == {}, "null is as if it were left out"
    for wrong in WRONG[key.type]:
        assert list(faults(document(key.path, wrong))) == [key.path], wrong


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_says_what_it_does_or_why_it_does_nothing(key: Key) -> None:
    assert key.meaning or key.why
    assert key.planes or key.why


def test_all_wrong_types_come_at_once() -> None:
    found = faults({**HEAD, "clusterCIDR": 5, "iptables": {"syncPeriod": 30}, "conntrack": "x", "oomScoreAdj": "a"})
    assert found == {
        "clusterCIDR": "cannot unmarshal number 5 into text",
        "iptables.syncPeriod": "cannot unmarshal number 30 into duration",
        "conntrack": "cannot unmarshal string into a group of settings",
        "oomScoreAdj": "cannot unmarshal string into integer",
    }


def test_unknown_and_doubled_keys_are_passed_over_and_told() -> None:
    found = decode({**HEAD, "bogus": 1, "iptables": {"nonsense": {"a": 1}}, "mode": "nftables"}, doubled=["twice"])
    assert found.values == {"mode": "nftables"}
    assert found.lenient == ("twice", 'unknown field "bogus"', 'unknown field "iptables.nonsense"')


@pytest.mark.parametrize(
    ("found", "field", "text"),
    [
        ([], "document", "couldn't get version/kind: it holds no mapping"),
        ({"apiVersion": API_VERSION}, "kind", "Object 'Kind' is missing"),
        ({"kind": KIND}, "apiVersion", "Object 'apiVersion' is missing"),
        ({"apiVersion": "v1", "kind": "ConfigMap"}, "kind", 'no kind "ConfigMap" is registered for version "v1"'),
        (
            {"apiVersion": "kubeproxy.config.k8s.io/v1", "kind": KIND},
            "kind",
            'no kind "KubeProxyConfiguration" is registered for version "kubeproxy.config.k8s.io/v1"',
        ),
    ],
)
def test_another_kind_or_version_is_refused(found: object, field: str, text: str) -> None:
    assert faults(found) == {field: text}


@pytest.mark.parametrize(("word", "value"), [("yes", True), ("On", True), ("n", False), ("off", False)])
def test_bools_of_yaml_1_1_are_bools(word: str, value: bool) -> None:
    assert decode(document("iptables.masqueradeAll", word)).values == {"iptables.masqueradeAll": value}


# -- defaults


def defaults(windows: bool = False, **given: object) -> dict[str, object]:
    return with_defaults(decode({**HEAD, **given}).values, windows=windows)


def test_a_file_that_says_nothing_has_kube_proxys_defaults() -> None:
    found = defaults()
    wanted = {key.path: key.default for key in KEYS}
    wanted |= {"healthzBindAddress": "0.0.0.0:10256", "metricsBindAddress": "127.0.0.1:10249"}
    assert found == wanted
    assert found["conntrack.tcpEstablishedTimeout"] == "24h0m0s"
    assert found["ipvs.minSyncPeriod"] == "0s"


def test_an_ipv6_bind_address_has_defaults_of_its_own() -> None:
    found = defaults(bindAddress="::")
    assert (found["healthzBindAddress"], found["metricsBindAddress"]) == ("[::]:10256", "[::1]:10249")


def test_a_port_is_added_where_there_is_none() -> None:
    found = defaults(healthzBindAddress="192.0.2.1", metricsBindAddress="::1")
    assert (found["healthzBindAddress"], found["metricsBindAddress"]) == ("192.0.2.1:10256", "[::1]:10249")
    assert defaults(healthzBindAddress="")["healthzBindAddress"] == "0.0.0.0:10256", "a file cannot empty it"
    assert defaults(healthzBindAddress="x")["healthzBindAddress"] == "x", "and what is wrong is told later"


def test_zero_means_not_given_where_kube_proxy_reads_it_so() -> None:
    found = defaults(
        clientConnection={"qps": 0, "burst": 0},
        configSyncPeriod="0s",
        iptables={"syncPeriod": "0s", "minSyncPeriod": "0s"},
        conntrack={"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s"},
    )
    assert (found["clientConnection.qps"], found["clientConnection.burst"]) == (5.0, 10)
    assert (found["iptables.syncPeriod"], found["iptables.minSyncPeriod"]) == ("30s", "1s")
    assert found["configSyncPeriod"] == "15m0s"
    assert (found["conntrack.maxPerCore"], found["conntrack.tcpEstablishedTimeout"]) == (0, "0s"), "0 = as it is"


def test_windows_has_a_root_endpoint() -> None:
    assert defaults(windows=True)["winkernel.rootHnsEndpointName"] == "cbr0"
    assert defaults(windows=True, winkernel={"rootHnsEndpointName": "x"})["winkernel.rootHnsEndpointName"] == "x"
    assert defaults()["winkernel.rootHnsEndpointName"] == ""


# -- validation

GOOD = {"clusterCIDR": "10.244.0.0/16,fd00::/48", "mode": "nftables"}


def problems(windows: bool = False, accept: tuple[str, ...] = (), **given: object) -> list[str]:
    found = validate(defaults(windows, **given), windows=windows, accepted_modes=accept)
    assert all(one.remedy and one.key in BY_PATH for one in found)
    return [one.text.removeprefix("KubeProxyConfiguration.") for one in found]


def test_nothing_is_wrong_with_the_defaults() -> None:
    assert problems() == []
    assert problems(windows=True) == []
    assert problems(**GOOD) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"iptables": {"masqueradeBit": 32}},
            "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]",
        ),
        (
            {"mode": "nftables", "nftables": {"masqueradeBit": -1}},
            "KubeProxyNFTablesConfiguration.MasqueradeBit: Invalid value: -1: must be within the range [0, 31]",
        ),
        (
            {"conntrack": {"maxPerCore": -1}},
            f"{CONNTRACK}.MaxPerCore: Invalid value: -1: must be greater than or equal to 0",
        ),
        ({"conntrack": {"min": -1}}, f"{CONNTRACK}.Min: Invalid value: -1: must be greater than or equal to 0"),
        (
            {"conntrack": {"tcpEstablishedTimeout": "-5s"}},
            f'{CONNTRACK}.TCPEstablishedTimeout: Invalid value: "-5s": must be greater than or equal to 0',
        ),
        (
            {"conntrack": {"tcpCloseWaitTimeout": "-5s"}},
            f'{CONNTRACK}.TCPCloseWaitTimeout: Invalid value: "-5s": must be greater than or equal to 0',
        ),
        (
            {"conntrack": {"udpTimeout": "-5s"}},
            f'{CONNTRACK}.UDPTimeout: Invalid value: "-5s": must be greater than or equal to 0',
        ),
        (
            {"conntrack": {"udpStreamTimeout": "-5s"}},
            f'{CONNTRACK}.UDPStreamTimeout: Invalid value: "-5s": must be greater than or equal to 0',
        ),
        (
            {"oomScoreAdj": -1001},
            "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: -1001: must be within the range [-1000, 1000]",
        ),
        (
            {"clientConnection": {"burst": -5}},
            "ClientConnection.Burst: Invalid value: -5: must be greater than or equal to 0",
        ),
        ({"configSyncPeriod": "-1s"}, 'ConfigSyncPeriod: Invalid value: "-1s": must be greater than 0'),
        (
            {"mode": "nftables", "nftables": {"minSyncPeriod": "-1s"}},
            'MinSyncPeriod: Invalid value: "-1s": must be greater than or equal to 0',
        ),
        (
            {"iptables": {"syncPeriod": "5s", "minSyncPeriod": "10s"}},
            'SyncPeriod: Invalid value: "10s": must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod',
        ),
        (
            {"bindAddress": "[::]"},
            'BindAddress: Invalid value: "[::]": not a valid textual representation of an IP address',
        ),
        ({"healthzBindAddress": "nope"}, 'HealthzBindAddress: Invalid value: "nope": must be IP:port'),
        ({"healthzBindAddress": "x:1"}, 'HealthzBindAddress: Invalid value: "x:1": must be a valid IP'),
        ({"metricsBindAddress": "1.2.3.4:0"}, 'MetricsBindAddress: Invalid value: "1.2.3.4:0": must be a valid port'),
        ({"metricsBindAddress": "1.2.3.4:x"}, 'MetricsBindAddress: Invalid value: "1.2.3.4:x": must be a valid port'),
        ({"nodePortAddresses": ["10/8"]}, 'NodePortAddresses[0]: Invalid value: "10/8": must be a valid CIDR'),
        (
            {"nodePortAddresses": ["primary", "10.0.0.0/8"]},
            """NodePortAddresses: Invalid value: ["primary","10.0.0.0/8"]: can't use both 'primary' and CIDRs""",
        ),
        (
            {"showHiddenMetricsForVersion": "1.34"},
            'ShowHiddenMetricsForVersion: Invalid value: "1.34": invalid showHiddenMetricsForVersion: 1.34, '
            "only the previous minor version is allowed",
        ),
        (
            {"detectLocalMode": "Bad"},
            'DetectLocalMode: Unsupported value: "Bad": supported values: "ClusterCIDR", "NodeCIDR", '
            '"BridgeInterface", "InterfaceNamePrefix", ""',
        ),
        (
            {"detectLocalMode": "BridgeInterface"},
            'DetectLocalConfiguration.InterfaceName: Invalid value: "": must not be empty',
        ),
        (
            {"detectLocalMode": "InterfaceNamePrefix"},
            'DetectLocalConfiguration.InterfacePrefix: Invalid value: "": must not be empty',
        ),
        (
            {"clusterCIDR": "10.0.0.0/8, fd00::/48"},  # quirk 7: the blank stays a fault
            'DetectLocalConfiguration.ClusterCIDRs[1]: Invalid value: " fd00::/48": must be a valid CIDR block '
            "(e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
        ),
        (
            {"clusterCIDR": "10.0.0.0/8,11.0.0.0/8"},
            'DetectLocalConfiguration.ClusterCIDRs: Invalid value: ["10.0.0.0/8","11.0.0.0/8"]: must be a either a '
            "single CIDR or dual-stack pair of CIDRs (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48 or a pair of them)",
        ),
        ({"mode": "iptables"}, 'Mode.ProxyMode: Invalid value: "iptables": hansa has no mode iptables'),
        ({"mode": "ipvs"}, 'Mode.ProxyMode: Invalid value: "ipvs": hansa has no mode ipvs'),
        (
            {"mode": "kernelspace"},
            'Mode.ProxyMode: Invalid value: "kernelspace": must be nftables or blank (blank means nftables); '
            "iptables and ipvs need --accept-mode",
        ),
    ],
)
def test_what_is_wrong_is_said_as_kube_proxy_says_it(given: Mapping[str, Any], text: str) -> None:
    assert problems(**given) == [text]


def test_windows_knows_one_mode() -> None:
    assert problems(windows=True, mode="kernelspace") == []
    assert problems(windows=True, mode="iptables")[0].startswith('Mode.ProxyMode: Invalid value: "iptables": must be k')


def test_a_mode_of_elsewhere_is_refused_with_the_way_there() -> None:
    (found,) = validate(defaults(mode="kernelspace"), windows=False)
    assert found.key == "mode"
    assert "--hns emulator" in found.remedy


def test_ipvs_keys_count_in_that_mode_only() -> None:
    bad = {"tcpTimeout": "-1s", "tcpFinTimeout": "-1s", "udpTimeout": "-1s", "excludeCIDRs": ["x"]}
    assert problems(ipvs=bad) == []
    assert [one.split(":")[0] for one in problems(accept=("ipvs",), mode="ipvs", ipvs=bad)] == [
        "KubeProxyIPVSConfiguration.TCPTimeout",
        "KubeProxyIPVSConfiguration.TCPFinTimeout",
        "KubeProxyIPVSConfiguration.UDPTimeout",
        "KubeProxyIPVSConfiguration.ExcludeCidrs[0]",
    ]


def test_everything_wrong_comes_at_once_in_kube_proxys_order() -> None:
    found = problems(
        nodePortAddresses=["x"], oomScoreAdj=5000, mode="ipvs", bindAddress="y", iptables={"masqueradeBit": 99}
    )
    assert [one.split(":")[0] for one in found] == [
        "KubeProxyIPTablesConfiguration.MasqueradeBit",
        "KubeProxyLinuxConfiguration.OOMScoreAdj",
        "Mode.ProxyMode",
        "BindAddress",
        "NodePortAddresses[0]",
    ]


def test_cluster_cidrs_matter_in_their_mode_only() -> None:
    assert problems(detectLocalMode="NodeCIDR", clusterCIDR="x") == []


def test_addresses_may_have_leading_zeros() -> None:
    assert problems(bindAddress="010.0.0.01", clusterCIDR="010.0.0.0/8", nodePortAddresses=["192.000.2.0/24"]) == []


# -- logging


def logging_problems(gates: dict[str, bool] | None = None, **given: object) -> list[str]:
    found = validate_logging(defaults(logging=given), judge(gates or {}).enabled)
    assert all(one.remedy and one.key.startswith("logging.") for one in found)
    return [one.text for one in found]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"format": "xml"}, 'format: Invalid value: "xml": Unsupported log format'),
        ({"flushFrequency": "-1s"}, 'flushFrequency: Invalid value: "-1s": Must be greater than zero'),
        ({"verbosity": -1}, "verbosity: Invalid value: -1: Must be less than or equal to 2147483647"),
        (
            {"format": "json", "vmodule": [{"filePattern": "x", "verbosity": 1}]},
            "vmodule: Forbidden: Only supported for text log format",
        ),
        (
            {"options": {"text": {"splitStream": True}}},
            "options.text.splitStream: Forbidden: Feature LoggingAlphaOptions is disabled",
        ),
        (
            {"options": {"json": {"infoBufferSize": "1Mi"}}},
            "options.json.infoBufferSize: Forbidden: Feature LoggingAlphaOptions is disabled",
        ),
    ],
)
def test_what_is_wrong_with_logging(given: Mapping[str, Any], text: str) -> None:
    assert logging_problems(**given) == [text]


def test_gates_of_logging() -> None:
    assert logging_problems(format="json") == []
    assert logging_problems({"LoggingBetaOptions": False}, format="json") == [
        "format: Forbidden: Log format json is disabled, see LoggingBetaOptions feature"
    ]
    options = {"text": {"splitStream": True, "infoBufferSize": "1Mi"}}
    assert logging_problems({"LoggingAlphaOptions": True}, options=options) == []
    assert logging_problems({"AllAlpha": True}, options=options) == []


# -- writing


def everything() -> dict[str, object]:
    values = {key.path: VALID[key.type][1] for key in KEYS}
    return {**values, "mode": "nftables", "windowsRunAsService": True}


@pytest.mark.parametrize("mode", ["", "iptables", "ipvs", "nftables", "kernelspace"])
def test_what_is_written_reads_back(mode: str) -> None:
    values = {**everything(), "mode": mode}
    written = json.loads(json.dumps(encode(values)))
    assert not decode(written).lenient
    again = decode(written).values
    others = {
        f"{section}.{name}"
        for section in ("iptables", "ipvs", "nftables")
        for name in ("syncPeriod", "minSyncPeriod", "masqueradeAll")
    }
    assert {path: again[path] for path in again if path not in others} == {
        path: value for path, value in values.items() if path not in others
    }
    section = mode if mode in ("ipvs", "nftables") else "iptables"
    for one in ("iptables", "ipvs", "nftables"):
        period = "1h30m0s" if one == section else "0s"
        assert (again[f"{one}.syncPeriod"], again[f"{one}.minSyncPeriod"]) == (period, period)
    assert (again["nftables.masqueradeAll"], again["iptables.masqueradeAll"]) == (
        mode == "nftables",
        mode != "nftables",
    )


def test_a_service_of_windows_is_left_out_when_it_is_none() -> None:
    assert "windowsRunAsService" not in encode(defaults())


# -- hansa's own


def test_hansas_own_kind_is_read_strictly() -> None:
    own = {"apiVersion": "config.hansa/v1alpha1", "kind": "HansaConfiguration"}
    assert is_own(own)
    assert not is_own(HEAD)
    found = decode_own({**own, "takeover": False, "winkernel": {"callBudget": 5}, "acceptModes": ["ipvs"]})
    assert found == {"takeover": False, "winkernel.callBudget": 5, "acceptModes": ["ipvs"]}
    with pytest.raises(DecodeError) as caught:
        decode_own({**own, "bogus": 1, "clusterCIDR": "10.0.0.0/8"})
    assert {fault.field: fault.remedy for fault in caught.value.faults} == {
        "bogus": "see the reference of kube-proxy",
        "clusterCIDR": "it belongs into the KubeProxyConfiguration",
    }
